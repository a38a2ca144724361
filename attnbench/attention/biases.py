"""What is added to a logit after the soft cap: by distance, by pair, or by query and distance.

`delta` is the key's place from the diagonal key of its row, j - d: below 0 for what came before. A bias is divided by
the temperature, as the logit is. What a model would have learned is drawn once and for all (parameters.py).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from attnbench.attention import grammar, parameters
from attnbench.attention.patterns import hashed
from attnbench.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.attention.problem import Problem

DENSE = ":dense"


class Bias(grammar.Word, frozen=True, kw_only=True):
    """A bias; `dense` hands it over as a tensor where a backend could compute it."""

    unspelled = frozenset({"dense"})

    dense: bool = False

    @property
    def text(self) -> str:
        return super().text + (DENSE if self.dense else "")

    def check(self, problem: Problem) -> None:
        """Raise ProblemError where the bias makes no sense."""

    def added(self, problem: Problem, heads: slice, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """[..., heads or 1, rows, keys] for q [..., heads, rows, head_dim], k [..., heads or 1, keys, head_dim].

        `heads` are those of the problem that q holds; i: [rows], j: [keys], indices. In the dtype of q.
        """
        raise NotImplementedError


class Constant(Bias, frozen=True, kw_only=True):
    """A bias that depends on no tensor."""

    def values(self, problem: Problem, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        """[heads or 1, rows, keys] in float64."""
        raise NotImplementedError

    def added(self, problem: Problem, heads: slice, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.values(problem, heads, i, j).to(q)

    def dense_tensor(self, problem: Problem) -> Tensor:
        """The whole of it: [heads or 1, seq_q, seq_kv] in float64."""
        import torch

        return self.values(problem, slice(0, problem.heads), torch.arange(problem.seq_q), torch.arange(problem.seq_kv))


class ByDistance(Constant, frozen=True, kw_only=True):
    """A bias of (head, distance from the diagonal key)."""

    def of(self, problem: Problem, delta: Tensor) -> Tensor:
        """[heads or 1, *delta.shape] in float64."""
        raise NotImplementedError

    def values(self, problem: Problem, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        found = self.of(problem, _delta(problem, i, j))
        return found[heads] if len(found) > 1 else found

    def distances(self, problem: Problem) -> Tensor:
        """[heads or 1, seq_q + seq_kv - 1] in float64: entry j - d + seq_kv - 1 serves a pair."""
        import torch

        return self.of(problem, torch.arange(problem.seq_q + problem.seq_kv - 1) - (problem.seq_kv - 1))


class Alibi(ByDistance, frozen=True, kw_only=True):
    """A slope of the head times the distance, taken away (ALiBi, https://arxiv.org/abs/2108.12409)."""

    word = "alibi"
    example = "alibi"

    def of(self, problem: Problem, delta: Tensor) -> Tensor:
        slopes = self.slopes(problem).reshape(-1, *(1,) * delta.ndim)
        return -slopes * delta.abs().double()

    def slopes(self, problem: Problem) -> Tensor:
        """[heads] in float64, the temperature in them: 2^(-8/n) and its powers, as the paper's code has them."""
        import torch

        power = 2 ** int(math.log2(problem.heads))
        steps = [2.0 ** (-8 * n / power) for n in range(1, power + 1)]
        steps += [2.0 ** (-8 * n / (2 * power)) for n in range(1, 2 * power, 2)][: problem.heads - power]
        return torch.tensor(steps, dtype=torch.float64) / problem.temperature


class T5(ByDistance, frozen=True, kw_only=True):
    """A learned number for each head and bucket of distances (T5, https://arxiv.org/abs/1910.10683).

    One-sided under a mask that holds causal, as in a decoder.
    """

    word = "t5"
    example = "t5"

    buckets: int = 32
    distance: int = 128  # from here on all are in the last bucket

    def check(self, problem: Problem) -> None:
        single = self.buckets // (2 if self.one_sided(problem) else 4)
        if single < 1 or self.distance <= single:
            raise ProblemError(f"bias {self.text!r}: at least 4 buckets, and a distance above {single}")

    def one_sided(self, problem: Problem) -> bool:
        """Whether all buckets are for keys that came before."""
        pattern = problem.masking.pattern
        return bool(problem.masking.words & {"causal", "prefix"} or (pattern and pattern.holds_causal))

    def bucket(self, delta: Tensor, one_sided: bool) -> Tensor:
        """Half of the buckets are for single distances, half grow with the logarithm."""
        import torch

        count = self.buckets if one_sided else self.buckets // 2
        far = (-delta).clamp_min(0) if one_sided else delta.abs()
        single = count // 2
        steps = torch.log(far.clamp_min(1).double() / single) / math.log(self.distance / single) * (count - single)
        # The tiny addition keeps a distance that begins a bucket in it, where the logarithm is a rounding below.
        grown = (single + (steps + 1e-9).floor().long()).clamp_max(count - 1)
        return torch.where(far < single, far, grown) + (0 if one_sided else (delta > 0) * count)

    def of(self, problem: Problem, delta: Tensor) -> Tensor:
        table = self.table(problem) / problem.temperature
        return table[self.bucket(delta, self.one_sided(problem))].movedim(-1, 0)

    def table(self, problem: Problem) -> Tensor:
        """[buckets, heads]."""
        return parameters.normal(f"t5 {self.buckets} {problem.heads}", self.buckets, problem.heads)


class Span(ByDistance, frozen=True, kw_only=True):
    """All of it within `size`, then over `ramp` keys less and less (adaptive span, https://arxiv.org/abs/1905.07799).

    The logarithm of clamp((ramp + size - distance) / ramp, 0, 1), so that weights are multiplied by it.
    """

    word = "span"
    example = "span:512:32"

    size: int
    ramp: int = 32

    def check(self, problem: Problem) -> None:
        if self.ramp < 1:
            raise ProblemError(f"bias {self.text!r}: ramp={self.ramp}: at least 1")
        if problem.seq_q > problem.seq_kv or "padding" in problem.masking.words:
            raise ProblemError(f"bias {self.text!r}: every row must see its diagonal key: seq_q <= seq_kv, no padding")

    def of(self, problem: Problem, delta: Tensor) -> Tensor:
        soft = ((self.ramp + self.size - delta.abs()).double() / self.ramp).clamp(0, 1)
        return soft.log()[None] / problem.temperature


class Edge(Constant, frozen=True, kw_only=True):
    """A learned number for each head and type of edge; the type of {i, j} is a fixed hash (Graphormer)."""

    word = "edge"
    example = "edge:4"

    types: int

    def check(self, problem: Problem) -> None:
        if self.types < 1:
            raise ProblemError(f"bias {self.text!r}: types={self.types}: at least 1")

    def values(self, problem: Problem, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        import torch

        rows, keys = i.numpy()[:, None], j.numpy()[None, :]
        mixed = hashed(0, np.minimum(rows, keys), np.maximum(rows, keys))
        kind = torch.from_numpy((mixed % np.uint64(self.types)).astype(np.int64))
        table = parameters.normal(f"edge {self.types} {problem.heads}", self.types, problem.heads)
        return (table / problem.temperature)[kind].movedim(-1, 0)[heads]


class Relative(Bias, frozen=True, kw_only=True):
    """A product of the query with a vector that stands for the distance, scaled as q . k is."""

    def place(self, problem: Problem, delta: Tensor) -> Tensor:
        """The row of the table that serves a distance."""
        raise NotImplementedError

    def places(self, problem: Problem) -> int:
        """Rows of the table."""
        raise NotImplementedError

    def whole_bytes(self, problem: Problem) -> int:
        """Bytes that `whole` takes: products twice, what is picked from them, and the 64-bit places."""
        rows = problem.batch * problem.heads * problem.seq_q
        numbers = rows * (2 * self.places(problem) + problem.seq_kv)
        return numbers * problem.dtype.bytes + 8 * problem.seq_q * problem.seq_kv

    def table(self, problem: Problem) -> Tensor:
        """[heads or 1, places, head_dim] in float64."""
        raise NotImplementedError

    def vectors(self, problem: Problem) -> tuple[Tensor, Tensor] | None:
        """(u, v), each [heads, head_dim]: u . k and v . table are added too; None: they are not."""
        return None

    def products(self, problem: Problem, heads: slice, q: Tensor) -> Tensor:
        """[..., heads, rows, places] in the dtype of q, scaled: what `place` picks from."""
        table, vectors = _placed(self, problem, q.dtype, q.device)
        table = table[heads] if len(table) > 1 else table
        if vectors is not None:
            q = q + vectors[1][heads, None]
        return q @ table.mT * problem.scale

    def of_keys(self, problem: Problem, heads: slice, k: Tensor) -> Tensor | None:
        """[..., heads, 1, keys] in the dtype of k, scaled: what a key brings whatever the query; None: nothing."""
        vectors = _placed(self, problem, k.dtype, k.device)[1]
        return None if vectors is None else vectors[0][heads, None] @ k.mT * problem.scale

    def added(self, problem: Problem, heads: slice, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self._picked(problem, heads, q, k, self.place(problem, _delta(problem, i, j)))

    def whole(self, problem: Problem, q: Tensor, k: Tensor) -> Tensor:
        """[batch, heads, seq_q, seq_kv] for q [batch, heads, ...] and k [batch, heads or kv_heads, ...]."""
        if k.shape[1] != problem.heads:
            k = k.repeat_interleave(problem.heads // problem.kv_heads, dim=1)
        return self._picked(problem, slice(0, problem.heads), q, k, _places(self, problem, q.device))

    def _picked(self, problem: Problem, heads: slice, q: Tensor, k: Tensor, places: Tensor) -> Tensor:
        products = self.products(problem, heads, q)
        found = products.gather(-1, places.expand(*products.shape[:-2], *places.shape))
        of_keys = self.of_keys(problem, heads, k)
        return found if of_keys is None else found + of_keys


# What every call would otherwise make again; a process measures one problem at a time.
@lru_cache(maxsize=4)
def _placed(bias: Relative, problem: Problem, dtype: Any, device: Any) -> tuple[Tensor, list[Tensor] | None]:
    vectors = bias.vectors(problem)
    placed = None if vectors is None else [vector.to(device, dtype) for vector in vectors]
    return bias.table(problem).to(device, dtype), placed


@lru_cache(maxsize=1)
def _places(bias: Relative, problem: Problem, device: Any) -> Tensor:
    """[seq_q, seq_kv]: the row of the table for every pair."""
    import torch

    return bias.place(problem, _delta(problem, torch.arange(problem.seq_q), torch.arange(problem.seq_kv))).to(device)


class Shaw(Relative, frozen=True, kw_only=True):
    """A learned vector for each distance up to `clip` (https://arxiv.org/abs/1803.02155), its key term."""

    word = "shaw"
    example = "shaw:16"

    clip: int

    def check(self, problem: Problem) -> None:
        if self.clip < 1:
            raise ProblemError(f"bias {self.text!r}: clip={self.clip}: at least 1")

    def places(self, problem: Problem) -> int:
        return 2 * self.clip + 1

    def place(self, problem: Problem, delta: Tensor) -> Tensor:
        return delta.clamp(-self.clip, self.clip) + self.clip

    def table(self, problem: Problem) -> Tensor:
        places = self.places(problem)
        return parameters.normal(f"shaw {places} {problem.head_dim}", places, problem.head_dim)[None]


class XL(Relative, frozen=True, kw_only=True):
    """(q + u) . k + (q + v) . r[d - j] of Transformer-XL (https://arxiv.org/abs/1901.02860), less q . k."""

    word = "xl"
    example = "xl"

    def places(self, problem: Problem) -> int:
        return problem.seq_q + problem.seq_kv - 1

    def place(self, problem: Problem, delta: Tensor) -> Tensor:
        return delta + problem.seq_kv - 1

    def table(self, problem: Problem) -> Tensor:
        import torch

        width = problem.heads * problem.head_dim
        distances = problem.seq_kv - 1 - torch.arange(self.places(problem))
        projected = parameters.sinusoids(distances, width) @ parameters.projection("xl r", width, width)
        return projected.reshape(-1, problem.heads, problem.head_dim).transpose(0, 1)

    def vectors(self, problem: Problem) -> tuple[Tensor, Tensor]:
        heads, width = problem.heads, problem.head_dim
        u, v = (parameters.normal(f"xl {name} {heads} {width}", heads, width) for name in "uv")
        return u, v


BIASES: dict[str, type[Bias]] = {kind.word: kind for kind in (Alibi, T5, XL, Shaw, Span, Edge)}


@lru_cache(maxsize=1024)
def parse(text: str) -> Bias | None:
    """Read `alibi`, `t5:dense`, `shaw:16`; None for `none`. Raises ProblemError or UnknownNameError."""
    if text in ("none", ""):
        return None
    dense = text.endswith(DENSE)
    bias = grammar.read(text.removesuffix(DENSE), BIASES, "bias", text, ("none",))
    if dense and isinstance(bias, Relative):
        raise ProblemError(f"bias {text!r}: depends on the queries, so there is no tensor to hand over beforehand")
    return type(bias)(**{**_fields(bias), "dense": dense})


def _fields(bias: Bias) -> dict[str, Any]:
    return {name: getattr(bias, name) for name in bias.__struct_fields__}


def _delta(problem: Problem, i: Tensor, j: Tensor) -> Tensor:
    """[rows, keys]."""
    return j[None, :] - (i[:, None] + problem.grid.offset)
