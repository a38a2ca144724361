"""The steps from q and k to logits in torch, in whatever dtype they are given: what stands round and in the products.

Naive attention and the float64 reference take these steps from here; tests hold each against its definition, written
out a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.attention import parameters
from attnbench.attention.problem import Positions, Problem
from attnbench.attention.scores import Similarity, load_function
from attnbench.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

ROPE_BASE = 10_000.0


def turned(problem: Problem, q: Tensor, k: Tensor, *, heads_last: bool = False) -> tuple[Tensor, Tensor]:
    """q and k as the products take them: with positions, normalised for cosine, q times W for bilinear.

    [..., seq, head_dim], or [..., seq, heads, head_dim] with `heads_last`; a sequence's queries end where its keys end.
    """
    import torch

    if problem.positions is not Positions.NONE:
        apply = _rotated if problem.positions is Positions.ROPE else _shifted
        places = torch.arange(problem.seq_q) + problem.grid.offset, torch.arange(problem.seq_kv)
        q, k = (apply(tensor, place, heads_last) for tensor, place in zip((q, k), places, strict=True))
    if problem.score.similarity is Similarity.COSINE:
        return tuple(torch.nn.functional.normalize(tensor, dim=-1) for tensor in (q, k))  # type: ignore[return-value]
    if problem.score.similarity is Similarity.BILINEAR:
        return q @ _bilinear(problem).to(q), k
    return q, k


def similarity(problem: Problem, q: Tensor, k: Tensor) -> Tensor:
    """[..., seq_q, seq_kv] of turned q [..., seq_q, head_dim] and k [..., seq_kv, head_dim], not scaled.

    ProblemError where a function of the user gives another shape.
    """
    if problem.score.similarity is Similarity.ADDITIVE:
        of_q, of_k, weight = (tensor.to(q) for tensor in additive(problem))
        return ((q @ of_q)[..., :, None, :] + (k @ of_k)[..., None, :, :]).tanh() @ weight
    if problem.score.similarity is not Similarity.FILE:
        return q @ k.mT
    found: Tensor = load_function(problem.score.function)(q, k)
    wanted = (*q.shape[:-1], k.shape[-2])
    if tuple(getattr(found, "shape", ())) != wanted:
        given = list(found.shape) if hasattr(found, "shape") else type(found).__name__
        raise ProblemError(f"score {problem.score.function}: gave {given} where {list(wanted)} is due")
    return found


def additive(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """A and B [head_dim, head_dim], w [head_dim] of w . tanh(q A + k B), in float64."""
    width = problem.head_dim
    of_q, of_k = (parameters.projection(f"additive {name}", width, width) for name in "qk")
    return of_q, of_k, parameters.normal(f"additive w {width}", width)


def sinks(problem: Problem) -> Tensor:
    """[heads] in float64: the logit that each head sets aside for no key at all."""
    return parameters.normal(f"sinks {problem.heads}", problem.heads)


def _bilinear(problem: Problem) -> Tensor:
    return parameters.projection("bilinear", problem.head_dim, problem.head_dim)


def _shifted(tensor: Tensor, places: Tensor, heads_last: bool) -> Tensor:
    waves = parameters.sinusoids(places, tensor.shape[-1])
    return tensor + (waves[:, None] if heads_last else waves).to(tensor)


def _rotated(tensor: Tensor, places: Tensor, heads_last: bool) -> Tensor:
    """Rotary embedding (https://arxiv.org/abs/2104.09864), pairs half a width apart, as in GPT-NeoX and Llama."""
    import torch

    half = tensor.shape[-1] // 2
    speeds = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = places.double()[:, None] * speeds
    angles = angles[:, None] if heads_last else angles
    cos, sin = angles.cos().to(tensor), angles.sin().to(tensor)
    first, second = tensor[..., :half], tensor[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
