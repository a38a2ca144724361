"""What stands round the core of attention in a model: a block with its projections, and layers of a Transformer.

Heads side by side are tokens: q [batch, heads, seq_q, head_dim] is the input [batch, seq_q, heads * head_dim].

- `block`: out = attention(q W_Q, k W_K, v W_V) W_O, as torch.nn.MultiheadAttention without its additive biases.
- `layer:N`, seq_q == seq_kv: N layers on the tokens of q, x += attention(norm(x)), x += feed-forward(norm(x)), as
  torch.nn.TransformerEncoderLayer with norm_first; causal, it is a layer of a GPT. k and v are not read.
- `layer:N`, lengths apart: N decoder layers, with self-attention of the tokens of q, causal, before the attention to a
  memory, the tokens of k, as torch.nn.TransformerDecoderLayer with norm_first. v is not read.

The feed-forward is four times as wide as the model, with a GELU: a ReLU has a kink, at which a rounding
would decide a gradient. Weights are fixed (parameters.py); norms have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.attention import parameters
from attnbench.attention.problem import Problem, Scope

if TYPE_CHECKING:
    from torch import Tensor

Attend = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]

FEED_FORWARD = 4  # times the width of the model


def shapes(problem: Problem) -> dict[str, tuple[int, int]]:
    """The weight matrices [width, out] of a block or of all layers, by name."""
    queries, keys = problem.heads * problem.head_dim, problem.kv_heads * problem.head_dim
    values, out = problem.kv_heads * problem.head_dim_v, problem.heads * problem.head_dim_v
    kind, depth = problem.scoped
    if kind is Scope.CORE:
        return {}
    if kind is Scope.BLOCK:
        return {"q": (queries, queries), "k": (keys, keys), "v": (values, values), "o": (out, out)}
    found: dict[str, tuple[int, int]] = {}
    for layer in range(depth):
        if inner := self_attention(problem):
            found |= {f"{layer} self {name}": (queries, queries) for name in "qkvo"}
        memory = keys if inner else queries
        found |= {f"{layer} q": (queries, queries), f"{layer} k": (memory, keys), f"{layer} v": (memory, values)}
        found[f"{layer} o"] = (out, queries)
        found |= {f"{layer} up": (queries, FEED_FORWARD * queries), f"{layer} down": (FEED_FORWARD * queries, queries)}
    return found


def matrices(problem: Problem) -> Iterator[tuple[str, Tensor]]:
    """One after another in float64, each as large as keeps the size of what it is given."""
    for name, shape in shapes(problem).items():
        yield name, parameters.projection(f"scope {name}", *shape)


def weights(problem: Problem) -> Mapping[str, Tensor]:
    """All of them by name."""
    return dict(matrices(problem))


def self_attention(problem: Problem) -> Problem | None:
    """The causal self-attention of a decoder layer; None where there is none."""
    if problem.scoped[0] is not Scope.LAYER or problem.seq_q == problem.seq_kv:
        return None
    shape = {"seq_kv": problem.seq_q, "kv_heads": problem.heads, "mask": "causal"}
    return replace(problem, **shape, scope="core", dtype=problem.working, autocast="none")


def around(
    problem: Problem, given: Mapping[str, Tensor], core: Attend, inner: Attend | None, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """The output of the scope, [batch, heads, seq_q, head_dim_v], with `core` for its attention.

    `given` are `weights` where the tensors lie; `inner` computes `self_attention`.
    """
    if problem.scoped[0] is Scope.BLOCK:
        tokens = (_tokens(tensor) for tensor in (q, k, v))
        projected = (x @ given[name] for x, name in zip(tokens, "qkv", strict=True))
        heads = (problem.heads, problem.kv_heads, problem.kv_heads)
        parts = (_heads(x, count) for x, count in zip(projected, heads, strict=True))
        return _heads(_tokens(core(*parts)) @ given["o"], problem.heads)
    x, memory = _tokens(q), _tokens(k)
    for layer in range(problem.scoped[1]):
        if inner is not None:
            normed = _norm(x)
            x = x + _attended(problem, given, f"{layer} self ", problem.heads, inner, normed, normed)
        normed = _norm(x)
        source = normed if inner is None else memory
        x = x + _attended(problem, given, f"{layer} ", problem.kv_heads, core, normed, source)
        x = x + _gelu(_norm(x) @ given[f"{layer} up"]) @ given[f"{layer} down"]
    return _heads(x, problem.heads)


def _attended(
    problem: Problem, given: Mapping[str, Tensor], name: str, kv_heads: int, attend: Attend, x: Tensor, source: Tensor
) -> Tensor:
    q = _heads(x @ given[f"{name}q"], problem.heads)
    k, v = (_heads(source @ given[f"{name}{letter}"], kv_heads) for letter in "kv")
    out: Tensor = _tokens(attend(q, k, v)) @ given[f"{name}o"]
    return out


def _tokens(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).flatten(2)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _gelu(x: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.gelu(x)


def _norm(x: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:])
