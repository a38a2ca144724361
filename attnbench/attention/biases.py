"""Biases, added to a logit after the soft cap: by distance, by pair, or by query and distance.

`delta` is the offset of the key from the diagonal of its row, below 0 for keys before it. A bias is divided by the
temperature, as the logit is. Learned parameters are fixed random numbers (fixed_random.py).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec
import numpy as np

from attnbench.attention import fixed_random, grammar
from attnbench.attention.fixed_random import splitmix64
from attnbench.attention.masks import Mask
from attnbench.attention.terms import Grid
from attnbench.errors import ProblemError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DENSE = ":dense"


class BiasedProblem(Hashable, Protocol):
    """What a bias reads of a `Problem`, which imports this module."""

    @property
    def heads(self) -> int: ...
    @property
    def seq_q(self) -> int: ...
    @property
    def seq_kv(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def masking(self) -> Mask: ...


class LogitBias(grammar.Spec, frozen=True, kw_only=True):
    """What is added to the logits."""

    noun = "bias"
    summary: ClassVar[str]  # what a backend must support
    not_in_text = frozenset({"dense"})

    dense: bool = False  # pass it as a tensor even to a backend that could compute it

    @property
    def text(self) -> str:
        return super().text + (DENSE if self.dense else "")

    def check(self, problem: BiasedProblem) -> None:
        """Raise ProblemError if the bias does not apply to the problem."""

    def added(self, problem: BiasedProblem, heads: slice, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The bias in the dtype of q: [..., heads or 1, rows, keys].

        q: [..., heads, rows, head_dim]; k: [..., heads or 1, keys, head_dim]; `heads`: the heads of the problem that q
        has; i: [rows], j: [keys], indices.
        """
        raise NotImplementedError


class Constant(LogitBias, frozen=True, kw_only=True):
    """A bias that does not depend on q and k."""

    def values(self, problem: BiasedProblem, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        """[heads or 1, rows, keys] in float64."""
        raise NotImplementedError

    def added(self, problem: BiasedProblem, heads: slice, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.values(problem, heads, i, j).to(q)

    def dense_tensor(self, problem: BiasedProblem) -> Tensor:
        """The bias of all pairs: [heads or 1, seq_q, seq_kv] in float64."""
        import torch

        rows, keys = (torch.arange(count, device="cpu") for count in (problem.seq_q, problem.seq_kv))
        return self.values(problem, slice(0, problem.heads), rows, keys)


class ByDistance(Constant, frozen=True, kw_only=True):
    """A bias that depends on the head and the distance from the diagonal."""

    def by_delta(self, problem: BiasedProblem, delta: Tensor) -> Tensor:
        """[heads or 1, *delta.shape] in float64."""
        raise NotImplementedError

    def values(self, problem: BiasedProblem, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        values = self.by_delta(problem, _delta(problem, i, j))
        return values[heads] if len(values) > 1 else values

    def distances(self, problem: BiasedProblem) -> Tensor:
        """[heads or 1, seq_q + seq_kv - 1] in float64: the bias of a pair is entry delta + seq_kv - 1."""
        import torch

        return self.by_delta(
            problem, torch.arange(problem.seq_q + problem.seq_kv - 1, device="cpu") - (problem.seq_kv - 1)
        )


class Alibi(ByDistance, frozen=True, kw_only=True):
    """A slope of the head times the distance, subtracted (ALiBi, https://arxiv.org/abs/2108.12409)."""

    word = "alibi"
    example = "alibi"
    summary = "ALiBi bias"

    def by_delta(self, problem: BiasedProblem, delta: Tensor) -> Tensor:
        slopes = self.slopes(problem).reshape(-1, *(1,) * delta.ndim)
        return -slopes * delta.abs().double()

    def slopes(self, problem: BiasedProblem) -> Tensor:
        """[heads] in float64, divided by the temperature: 2^(-8/heads) and its powers, as in the code of the paper."""
        import torch

        power = 2 ** int(math.log2(problem.heads))
        steps = [2.0 ** (-8 * n / power) for n in range(1, power + 1)]
        steps += [2.0 ** (-8 * n / (2 * power)) for n in range(1, 2 * power, 2)][: problem.heads - power]
        return torch.tensor(steps, dtype=torch.float64, device="cpu") / problem.temperature


class T5(ByDistance, frozen=True, kw_only=True):
    """A learned number for each head and bucket of distances (T5, https://arxiv.org/abs/1910.10683).

    Buckets are one-sided under a causal mask, as in a decoder.
    """

    word = "t5"
    example = "t5"
    summary = "T5's bias by buckets"

    buckets: int = 32
    distance: int = 128  # tokens, from which on all distances share the last bucket

    def check(self, problem: BiasedProblem) -> None:
        single = self.buckets // (2 if problem.masking.holds_causal else 4)
        if single < 1 or self.distance <= single:
            raise self.error(f"at least 4 buckets, and a distance above {single}")

    def bucket(self, delta: Tensor, one_sided: bool) -> Tensor:
        """The bucket of each delta: half of them are for single distances, half grow with the logarithm."""
        import torch

        count = self.buckets if one_sided else self.buckets // 2
        far = (-delta).clamp_min(0) if one_sided else delta.abs()
        single = count // 2
        steps = torch.log(far.clamp_min(1).double() / single) / math.log(self.distance / single) * (count - single)
        # The logarithm of the first distance of a bucket may be rounded to below the bucket.
        logarithmic = (single + (steps + 1e-9).floor().long()).clamp_max(count - 1)
        return torch.where(far < single, far, logarithmic) + (0 if one_sided else (delta > 0) * count)

    def by_delta(self, problem: BiasedProblem, delta: Tensor) -> Tensor:
        table = fixed_random.normal(f"t5 {self.buckets} {problem.heads}", self.buckets, problem.heads)
        return (table / problem.temperature)[self.bucket(delta, problem.masking.holds_causal)].movedim(-1, 0)


class AdaptiveSpan(ByDistance, frozen=True, kw_only=True):
    """A weight of 1 within `size`, falling to 0 over `ramp` keys (adaptive span, https://arxiv.org/abs/1905.07799).

    Adds the logarithm of clamp((ramp + size - distance) / ramp, 0, 1), by which the weight is multiplied.
    """

    word = "span"
    example = "span:512:32"
    summary = "adaptive span"

    size: int  # tokens
    ramp: int = 32  # tokens

    def check(self, problem: BiasedProblem) -> None:
        self.check_at_least(ramp=1)
        if problem.seq_q > problem.seq_kv or "padding" in problem.masking.words:
            raise self.error("every row must see its diagonal key: seq_q <= seq_kv, no padding")

    def by_delta(self, problem: BiasedProblem, delta: Tensor) -> Tensor:
        soft = ((self.ramp + self.size - delta.abs()).double() / self.ramp).clamp(0, 1)
        return soft.log()[None] / problem.temperature


class Edge(Constant, frozen=True, kw_only=True):
    """A learned number for each head and type of edge; the type is a fixed hash of the pair (Graphormer).

    https://arxiv.org/abs/2106.05234, section 3.1.3.
    """

    word = "edge"
    example = "edge:4"
    summary = "bias by type of edge"

    types: int

    def check(self, problem: BiasedProblem) -> None:
        self.check_at_least(types=1)

    def values(self, problem: BiasedProblem, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        import torch

        rows, keys = i.numpy()[:, None], j.numpy()[None, :]
        hashes = splitmix64(0, np.minimum(rows, keys), np.maximum(rows, keys))
        kind = torch.from_numpy((hashes % np.uint64(self.types)).astype(np.int64))
        table = fixed_random.normal(f"edge {self.types} {problem.heads}", self.types, problem.heads)
        return (table / problem.temperature)[kind].movedim(-1, 0)[heads]


class Relative(LogitBias, frozen=True, kw_only=True):
    """The product of the query with a vector for the distance, scaled as q . k is."""

    def table_row(self, problem: BiasedProblem, delta: Tensor) -> Tensor:
        """The number of the row of the table for each delta."""
        raise NotImplementedError

    def table_rows(self, problem: BiasedProblem) -> int:
        """The number of rows of the table."""
        raise NotImplementedError

    def table(self, problem: BiasedProblem) -> Tensor:
        """[heads or 1, table_rows, head_dim] in float64."""
        raise NotImplementedError

    def vectors(self, problem: BiasedProblem) -> tuple[Tensor, ...]:
        """(u, v), each [heads, head_dim], if u . k and v . table are added too."""
        return ()

    def products(self, problem: BiasedProblem, heads: slice, q: Tensor) -> Tensor:
        """The products of q with every row of the table, scaled: [..., heads, rows, table_rows] in the dtype of q."""
        table, vectors = _on_device(self, problem, q.dtype, q.device)
        table = table[heads] if len(table) > 1 else table
        if vectors:
            q = q + vectors[1][heads, None]
        return q @ table.mT * problem.scale

    def of_keys(self, problem: BiasedProblem, heads: slice, k: Tensor) -> Tensor | None:
        """The products of u with k, scaled: [..., heads, 1, keys] in the dtype of k; None if there is no u."""
        vectors = _on_device(self, problem, k.dtype, k.device)[1]
        return vectors[0][heads, None] @ k.mT * problem.scale if vectors else None

    def added(self, problem: BiasedProblem, heads: slice, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self._gathered(problem, heads, q, k, self.table_row(problem, _delta(problem, i, j)))

    def whole(self, problem: BiasedProblem, q: Tensor, k: Tensor) -> Tensor:
        """The bias of all pairs: [batch, heads, seq_q, seq_kv].

        q: [batch, heads, seq_q, head_dim]; k: [batch, heads or kv_heads, seq_kv, head_dim].
        """
        if k.shape[1] != problem.heads:
            k = k.repeat_interleave(problem.heads // k.shape[1], dim=1)
        return self._gathered(problem, slice(0, problem.heads), q, k, _pair_rows(self, problem, q.device))

    def _gathered(self, problem: BiasedProblem, heads: slice, q: Tensor, k: Tensor, table_rows: Tensor) -> Tensor:
        products = self.products(problem, heads, q)
        bias = products.gather(-1, table_rows.expand(*products.shape[:-2], *table_rows.shape))
        of_keys = self.of_keys(problem, heads, k)
        return bias if of_keys is None else bias + of_keys


# Not part of the measured call; a process measures one problem at a time.
@lru_cache(maxsize=4)
def _on_device(
    bias: Relative, problem: BiasedProblem, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """The table and the vectors of the bias."""
    return bias.table(problem).to(device, dtype), [vector.to(device, dtype) for vector in bias.vectors(problem)]


@lru_cache(maxsize=1)
def _pair_rows(bias: Relative, problem: BiasedProblem, device: torch.device) -> Tensor:
    """The number of the row of the table for every pair: [seq_q, seq_kv]."""
    import torch

    rows, keys = (torch.arange(count, device="cpu") for count in (problem.seq_q, problem.seq_kv))
    return bias.table_row(problem, _delta(problem, rows, keys)).to(device)


class Shaw(Relative, frozen=True, kw_only=True):
    """A learned vector for each distance up to `clip` (https://arxiv.org/abs/1803.02155), the key term only."""

    word = "shaw"
    example = "shaw:16"
    summary = "Shaw's relative bias"

    clip: int  # tokens

    def check(self, problem: BiasedProblem) -> None:
        self.check_at_least(clip=1)

    def table_rows(self, problem: BiasedProblem) -> int:
        return 2 * self.clip + 1

    def table_row(self, problem: BiasedProblem, delta: Tensor) -> Tensor:
        return delta.clamp(-self.clip, self.clip) + self.clip

    def table(self, problem: BiasedProblem) -> Tensor:
        rows = self.table_rows(problem)
        return fixed_random.normal(f"shaw {rows} {problem.head_dim}", rows, problem.head_dim)[None]


class XL(Relative, frozen=True, kw_only=True):
    """(q + u) . k + (q + v) . r[-delta] of Transformer-XL (https://arxiv.org/abs/1901.02860), without q . k."""

    word = "xl"
    example = "xl"
    summary = "Transformer-XL's relative bias"

    def table_rows(self, problem: BiasedProblem) -> int:
        return problem.seq_q + problem.seq_kv - 1

    def table_row(self, problem: BiasedProblem, delta: Tensor) -> Tensor:
        return delta + problem.seq_kv - 1

    def table(self, problem: BiasedProblem) -> Tensor:
        import torch

        width = problem.heads * problem.head_dim
        distances = problem.seq_kv - 1 - torch.arange(self.table_rows(problem), device="cpu")
        projected = fixed_random.sinusoids(distances, width) @ fixed_random.projection("xl r", width, width)
        return projected.reshape(-1, problem.heads, problem.head_dim).transpose(0, 1)

    def vectors(self, problem: BiasedProblem) -> tuple[Tensor, Tensor]:
        heads, width = problem.heads, problem.head_dim
        u, v = (fixed_random.normal(f"xl {name} {heads} {width}", heads, width) for name in "uv")
        return u, v


BIASES: dict[str, type[LogitBias]] = {kind.word: kind for kind in (Alibi, T5, XL, Shaw, AdaptiveSpan, Edge)}


@lru_cache(maxsize=1024)
def parse(text: str) -> LogitBias | None:
    """Parse `alibi`, `t5:dense`, `shaw:16`; None for `none`. Raises ProblemError or UnknownNameError."""
    if text in ("none", ""):
        return None
    dense = text.endswith(DENSE)
    bias = grammar.parse(text.removesuffix(DENSE), BIASES, "bias", text, ("none",))
    if dense and isinstance(bias, Relative):
        raise ProblemError(f"bias {text!r}: depends on the queries, so there is no tensor of it; use {bias.text}")
    return msgspec.structs.replace(bias, dense=dense)


def _delta(problem: BiasedProblem, i: Tensor, j: Tensor) -> Tensor:
    """The offset of each key from the diagonal of each row: [rows, keys]."""
    return j[None, :] - (i[:, None] + problem.grid.offset)
