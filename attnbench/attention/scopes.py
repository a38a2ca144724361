"""The model around attention: a block with its projections, and layers of a Transformer.

The concatenated heads are tokens: q [batch, heads, seq_q, head_dim] is the input [batch, seq_q, heads * head_dim].

- `block`: out = attention(q W_Q, k W_K, v W_V) W_O, as torch.nn.MultiheadAttention without its additive biases.
- `layer:N`, seq_q == seq_kv: N layers on the tokens of q, x += attention(norm(x)), x += feed-forward(norm(x)), as
  torch.nn.TransformerEncoderLayer with norm_first; causal, it is a layer of a GPT. k and v are not read.
- `layer:N`, seq_q != seq_kv: N decoder layers, with causal self-attention of the tokens of q before the attention to a
  memory, the tokens of k, as torch.nn.TransformerDecoderLayer with norm_first. v is not read.

The feed-forward is four times as wide as the model, with a GELU: the gradient of a ReLU jumps at 0, where it would
depend on rounding. Weights are fixed (fixed_random.py); norms have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.attention import fixed_random
from attnbench.attention.problem import Problem
from attnbench.attention.scope_text import Scope

if TYPE_CHECKING:
    from torch import Tensor

Attend = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]

FEED_FORWARD = 4  # width of the feed-forward, in widths of the model


def shapes(problem: Problem) -> dict[str, tuple[int, int]]:
    """The shapes (width, out) of the weight matrices of a block or of all layers, by name."""
    queries, keys = problem.heads * problem.head_dim, problem.kv_heads * problem.head_dim
    values, out = problem.kv_heads * problem.head_dim_v, problem.heads * problem.head_dim_v
    kind, depth = problem.scoped
    if kind is Scope.CORE:
        return {}
    if kind is Scope.BLOCK:
        return {"q": (queries, queries), "k": (keys, keys), "v": (values, values), "o": (out, out)}
    result: dict[str, tuple[int, int]] = {}
    for layer in range(depth):
        if inner := self_attention(problem):
            result |= {f"{layer} self {name}": (queries, queries) for name in "qkvo"}
        memory = keys if inner else queries
        core = {"q": (queries, queries), "k": (memory, keys), "v": (memory, values), "o": (out, queries)}
        feed_forward = {"up": (queries, FEED_FORWARD * queries), "down": (FEED_FORWARD * queries, queries)}
        result |= {f"{layer} {name}": shape for name, shape in (core | feed_forward).items()}
    return result


def matrices(problem: Problem) -> Iterator[tuple[str, Tensor]]:
    """Generate the weight matrices in float64, one at a time, with their names."""
    for name, shape in shapes(problem).items():
        yield name, fixed_random.projection(f"scope {name}", *shape)


def self_attention(problem: Problem) -> Problem | None:
    """The causal self-attention of a decoder layer; None for other scopes."""
    if problem.scoped[0] is not Scope.LAYER or problem.seq_q == problem.seq_kv:
        return None
    shape = {"seq_kv": problem.seq_q, "kv_heads": problem.heads, "mask": "causal"}
    return replace(problem, **shape, scope="core", dtype=problem.working_dtype, autocast="none")


def apply(
    problem: Problem, weights: Mapping[str, Tensor], core: Attend, inner: Attend | None, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """The output of the scope, [batch, heads, seq_q, head_dim_v], with `core` as its attention.

    `weights` are on the device of q, k and v; `inner` computes `self_attention`.
    """
    import torch

    if problem.scoped[0] is Scope.BLOCK:
        tokens = (_tokens(tensor) for tensor in (q, k, v))
        projected = (x @ weights[name] for x, name in zip(tokens, "qkv", strict=True))
        heads = (problem.heads, problem.kv_heads, problem.kv_heads)
        parts = (_heads(x, count) for x, count in zip(projected, heads, strict=True))
        return _heads(_tokens(core(*parts)) @ weights["o"], problem.heads)
    x, memory = _tokens(q), _tokens(k)
    for layer in range(problem.scoped[1]):
        if inner is not None:
            normed = _norm(x)
            x = x + _attended(problem, weights, f"{layer} self ", problem.heads, inner, normed, normed)
        normed = _norm(x)
        source = normed if inner is None else memory
        x = x + _attended(problem, weights, f"{layer} ", problem.kv_heads, core, normed, source)
        x = x + torch.nn.functional.gelu(_norm(x) @ weights[f"{layer} up"]) @ weights[f"{layer} down"]
    return _heads(x, problem.heads)


def _attended(
    problem: Problem, weights: Mapping[str, Tensor], name: str, kv_heads: int, attend: Attend, x: Tensor, source: Tensor
) -> Tensor:
    q = _heads(x @ weights[f"{name}q"], problem.heads)
    k, v = (_heads(source @ weights[f"{name}{letter}"], kv_heads) for letter in "kv")
    out: Tensor = _tokens(attend(q, k, v)) @ weights[f"{name}o"]
    return out


def _tokens(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).flatten(2)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _norm(x: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:])
