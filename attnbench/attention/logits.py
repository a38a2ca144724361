"""The steps from q and k to logits in torch, in the dtype of q and k: positions, normalisation, similarity.

Shared by naive attention and the float64 reference; tests compare each step with a second implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.attention import fixed_random
from attnbench.attention.choices import Positions
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Similarity, load_function
from attnbench.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

ROPE_BASE = 10_000.0


def positioned(problem: Problem, q: Tensor, k: Tensor, *, heads_last: bool = False) -> tuple[Tensor, Tensor]:
    """q and k as inputs of the similarity: with positions, normalised for cosine, q times W for bilinear.

    [..., seq, head_dim], or [..., seq, heads, head_dim] with `heads_last`. The last query of a sequence has the place
    of its last key; each of the packed requests has its own places.
    """
    import torch

    if problem.positions is not Positions.NONE:
        apply = _rotated if problem.positions is Positions.ROPE else _with_sinusoids
        sizes = problem.sizes if problem.requests else problem.sizes[:1]
        rows = [torch.arange(keys - queries, keys, device="cpu") for queries, keys in sizes]
        keys = [torch.arange(keys, device="cpu") for _, keys in sizes]
        places = torch.cat(rows), torch.cat(keys)
        q, k = (apply(tensor, place, heads_last) for tensor, place in zip((q, k), places, strict=True))
    if problem.score.similarity is Similarity.COSINE:
        return torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    if problem.score.similarity is Similarity.BILINEAR:
        return q @ fixed_random.projection("bilinear", problem.head_dim, problem.head_dim).to(q), k
    return q, k


def similarity(problem: Problem, q: Tensor, k: Tensor) -> Tensor:
    """The similarity, not scaled: [..., seq_q, seq_kv].

    q [..., seq_q, head_dim] and k [..., seq_kv, head_dim] come from `positioned`. Raises ProblemError if a user's
    function returns another shape.
    """
    if problem.score.similarity is Similarity.ADDITIVE:
        of_q, of_k, weight = (tensor.to(q) for tensor in additive(problem))
        return ((q @ of_q)[..., :, None, :] + (k @ of_k)[..., None, :, :]).tanh() @ weight
    if problem.score.similarity is not Similarity.FILE:
        return q @ k.mT
    result = load_function(problem.score.function)(q, k)
    expected = (*q.shape[:-1], k.shape[-2])
    if tuple(getattr(result, "shape", ())) != expected:
        actual = list(result.shape) if hasattr(result, "shape") else type(result).__name__
        raise ProblemError(f"score {problem.score.function}: returned {actual}; it must return {list(expected)}")
    return result


def additive(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """A and B [head_dim, head_dim], w [head_dim] of w . tanh(q A + k B), in float64."""
    width = problem.head_dim
    of_q, of_k = (fixed_random.projection(f"additive {name}", width, width) for name in "qk")
    return of_q, of_k, fixed_random.normal(f"additive w {width}", width)


def sink_logits(problem: Problem) -> Tensor:
    """The logit of the sink of each head: [heads] in float64."""
    return fixed_random.normal(f"sinks {problem.heads}", problem.heads)


def _with_sinusoids(tensor: Tensor, places: Tensor, heads_last: bool) -> Tensor:
    waves = fixed_random.sinusoids(places, tensor.shape[-1])
    return tensor + (waves[:, None] if heads_last else waves).to(tensor)


def _rotated(tensor: Tensor, places: Tensor, heads_last: bool) -> Tensor:
    """Rotary embedding (https://arxiv.org/abs/2104.09864), pairs half a width apart, as in GPT-NeoX and Llama."""
    import torch

    half = tensor.shape[-1] // 2
    speeds = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = places.double()[:, None] * speeds
    angles = angles[:, None] if heads_last else angles
    cos, sin = angles.cos().to(tensor), angles.sin().to(tensor)
    first, second = tensor[..., :half], tensor[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
