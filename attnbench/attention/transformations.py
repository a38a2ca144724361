"""Changes of the inputs of a problem after which the outputs are known from those before, without another reference.

v P gives out P, where P permutes the channels of a kv head and flips signs; q S and k S give the same logits. Gradients
follow: dv P for dout P, dq S and dk S. Signs and powers of two are exact in floats. A permutation changes the order of
a sum over these channels, of logits or of dout . v, and is exact otherwise. docs/method.md says what holds where.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention.biases import AdaptiveSpan, Shaw
from attnbench.attention.choices import Dtype, KvDtype, Positions
from attnbench.attention.problem import Problem
from attnbench.attention.scope_text import Scope
from attnbench.attention.scores import Similarity
from attnbench.attention.weightings import GumbelMax

if TYPE_CHECKING:
    from torch import Tensor

ScalarT = TypeVar("ScalarT", bound=np.generic)
NAMES = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
OF_QUERIES = frozenset({"q", "dout", "out", "lse", "weights", "dq"})  # tensors with a head for each query head
MAX_CHANNELS = 4096  # of a batch whose sequences differ in their channels: a draw takes microseconds
MAX_EXPONENT = 2
WIDE = frozenset({Dtype.FP32, Dtype.TF32, Dtype.BF16})  # dtypes with the exponents of fp32
SIGN_BIT = 0x80  # of an 8-bit float


class Channels(Enum):
    """What may happen to the channels of a product: of q with k, or of weights with v."""

    FIXED = auto()
    NEGATED = auto()  # all together
    SIGNED = auto()  # each sign by itself
    PERMUTED = auto()  # in another order, each with its own sign


class Freedom(NamedTuple):
    """What a problem allows."""

    logits: Channels  # of q and k
    values: Channels  # of v and out
    heads: bool  # whether heads may change places
    sequences: bool  # whether sequences of the batch may
    exponents: tuple[range, range, range]  # of the powers of two of v, of dout, and of q, by which k is divided


class ChannelMap(NamedTuple):
    """new[..., d] = factor[..., d] * old[..., source[..., d]], each [sequences or 1, kv_heads, width]."""

    source: NDArray[np.int64] | None  # None: every channel stays
    factor: NDArray[np.float64]  # with a sign, a power of two

    def after(self, first: ChannelMap) -> ChannelMap:
        """The composition: `first`, then this transformation."""
        if self.source is None:
            return ChannelMap(first.source, self.factor * first.factor)
        before = self.source if first.source is None else np.take_along_axis(first.source, self.source, -1)
        return ChannelMap(before, self.factor * np.take_along_axis(first.factor, self.source, -1))

    def inverse(self) -> ChannelMap:
        """What undoes this one."""
        if self.source is None:
            return ChannelMap(None, 1 / self.factor)
        where = np.argsort(self.source, axis=-1)
        return ChannelMap(where, 1 / np.take_along_axis(self.factor, where, -1))

    def moved(self, by: Transformation) -> ChannelMap:
        """With its sequences and kv heads in the order after a transformation."""
        return ChannelMap(None if self.source is None else by.moved(self.source), by.moved(self.factor))


class Transformation(msgspec.Struct, frozen=True, kw_only=True):
    """A change of q, k, v and dout, and of the outputs with them. None: nothing changes places."""

    sequences: NDArray[np.int64] | None = None  # the new order, of each the old place
    groups: NDArray[np.int64] | None = None  # the same of kv heads
    heads: NDArray[np.int64] | None = None  # the same of query heads, which move with their kv head
    maps: dict[str, ChannelMap]  # by tensor; `lse` and `weights` have no channels that change
    exponents: tuple[int, int, int] = (0, 0, 0)  # reached so far, in the order of `Freedom`

    def applied(self, name: str, tensor: Tensor, head_axis: int = 1) -> Tensor:
        """The changed tensor, a new one: [batch, ..., width] in any layout, with the heads in `head_axis`."""
        import torch

        changed = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
        order = self.heads if name in OF_QUERIES else self.groups
        for axis, places in ((0, self.sequences), (head_axis, order)):
            if places is not None:
                changed = changed.index_select(axis, torch.from_numpy(places).to(changed.device))
        if name in self.maps and tensor.shape[-1]:
            changed = _mapped(self.maps[name], changed, head_axis)
        is_new = changed.data_ptr() != tensor.data_ptr()
        return changed.view(tensor.dtype) if is_new else tensor.clone(memory_format=torch.contiguous_format)

    def apply_to(self, name: str, tensor: Tensor, head_axis: int = 1) -> None:
        """Change the tensor in place."""
        moves = (self.sequences, self.heads if name in OF_QUERIES else self.groups, self.maps[name].source)
        if any(order is not None for order in moves) or tensor.element_size() == 1:
            tensor.copy_(self.applied(name, tensor, head_axis))
        else:
            tensor.mul_(_laid_out(self.maps[name].factor, tensor, head_axis).to(tensor.dtype))

    def after(self, first: Transformation) -> Transformation:
        """The composition: `first`, then this transformation."""
        maps = {name: each.after(first.maps[name].moved(self)) for name, each in self.maps.items()}
        return Transformation(
            sequences=_joined(self.sequences, first.sequences),
            groups=_joined(self.groups, first.groups),
            heads=_joined(self.heads, first.heads),
            maps=maps,
            exponents=self.exponents,
        )

    def inverse(self) -> Transformation:
        """What undoes this one."""
        sequences, groups, heads = (
            None if order is None else np.argsort(order) for order in (self.sequences, self.groups, self.heads)
        )
        back = Transformation(sequences=sequences, groups=groups, heads=heads, maps={})
        maps = {name: each.inverse().moved(back) for name, each in self.maps.items()}
        return msgspec.structs.replace(back, maps=maps)

    def moved(self, of_groups: NDArray[ScalarT]) -> NDArray[ScalarT]:
        """An array by sequence and kv head, in the new order of both."""
        if self.sequences is not None and len(of_groups) > 1:
            of_groups = of_groups[self.sequences]
        return of_groups if self.groups is None else of_groups[:, self.groups]


def identity(problem: Problem, *, gradients: bool) -> Transformation:
    """Nothing changes; `gradients`: whether there are any, and dout."""
    shape = _sequences(problem), problem.kv_heads
    names = NAMES if gradients else NAMES[:4]
    widths = _widths(problem)
    return Transformation(maps={name: ChannelMap(None, np.ones((*shape, widths[name]))) for name in names})


def freedom(
    problem: Problem, *, gradients: bool, moves: bool = True, reorder: bool = True, scaled: bool = True
) -> Freedom:
    """What the problem allows: without `moves` factors alone, which cost least; without `scaled` no powers of two.

    Without `reorder` only what changes no order of a sum.
    """
    logits, values = _of_logits(problem), _of_values(problem)
    narrow = problem.dtype is Dtype.FP8_E4M3 or problem.kv_dtype is not KvDtype.SAME
    if logits is Channels.PERMUTED and (narrow or not (moves and reorder)):
        logits = Channels.SIGNED
    if values is Channels.PERMUTED and (narrow or not moves or (gradients and not reorder)):
        values = Channels.SIGNED
    return Freedom(
        logits=logits,
        values=values,
        heads=moves and _heads_are_alike(problem),
        sequences=moves and _sequences_are_alike(problem),
        exponents=_exponents(problem, logits, gradients) if scaled and not narrow else (range(1),) * 3,
    )


def step(problem: Problem, allowed: Freedom, seed: int, before: Transformation) -> Transformation:
    """A change drawn from the seed, to follow `before`. It changes every output that the problem lets change."""
    source = np.random.default_rng(seed)
    exponents = []
    for powers, now in zip(allowed.exponents, before.exponents, strict=True):
        others = [power for power in powers if power != now] or [now]
        exponents.append(others[source.integers(len(others))])
    of_v, of_dout, of_q = (2.0 ** (new - now) for new, now in zip(exponents, before.exponents, strict=True))
    shape = _sequences(problem), problem.kv_heads
    if problem.latent:
        maps = _latent_maps(problem, allowed, of_v, source)
    else:
        logits = _drawn(allowed.logits, (*shape, problem.head_dim), source)
        values = _drawn(allowed.values, (*shape, problem.head_dim_v), source)
        v = _times(values, of_v)
        maps = {"q": _times(logits, of_q), "k": _times(logits, 1 / of_q), "v": v, "out": v}
        if "dout" in before.maps:
            upstream = _upstream_signs(allowed, shape, source)
            dout = _times(values, upstream * of_dout)
            dq = _times(logits, upstream * (of_v * of_dout / of_q))
            maps |= {"dout": dout, "dv": dout, "dq": dq, "dk": _times(dq, of_q * of_q)}
    sharing = problem.heads // problem.kv_heads
    groups = heads = None
    if allowed.heads and problem.heads > 1:
        groups = source.permutation(problem.kv_heads)
        members = source.permuted(np.tile(np.arange(sharing), (problem.kv_heads, 1)), axis=1)
        heads = (groups[:, None] * sharing + members).ravel()
    sequences = source.permutation(problem.batch) if allowed.sequences and problem.batch > 1 else None
    return Transformation(
        sequences=sequences, groups=groups, heads=heads, maps=maps, exponents=(exponents[0], exponents[1], exponents[2])
    )


def _of_logits(problem: Problem) -> Channels:
    """Of q and k: rotations and matrices fix their channels; other scores are not even in both."""
    if problem.scoped[0] is Scope.LAYER or not problem.is_even:
        return Channels.FIXED
    rotated = problem.positions is Positions.ROPE or problem.score.similarity is Similarity.BILINEAR
    return Channels.NEGATED if rotated or problem.scope != "core" else Channels.PERMUTED


def _of_values(problem: Problem) -> Channels:
    """Of v: the output is linear in v, but projections fix its channels, and a layer is linear in none."""
    if problem.scope == "core":
        return Channels.PERMUTED
    return Channels.NEGATED if problem.scoped[0] is Scope.BLOCK else Channels.FIXED


def _heads_are_alike(problem: Problem) -> bool:
    of_each = problem.bias is not None and not isinstance(problem.bias, AdaptiveSpan | Shaw)
    drawn = isinstance(problem.weighing, GumbelMax)
    return problem.scope == "core" and not (of_each or drawn or problem.sinks or problem.kv)


def _sequences_are_alike(problem: Problem) -> bool:
    apart = bool(problem.requests or problem.page_size) or isinstance(problem.weighing, GumbelMax)
    return not apart and not any(term.differs_by_sequence for term in problem.masking.terms)


def _exponents(problem: Problem, logits: Channels, gradients: bool) -> tuple[range, range, range]:
    """The powers of two of v, dout and q: none where a number could leave the range of the dtype."""
    wide = range(-MAX_EXPONENT, MAX_EXPONENT + 1) if {problem.dtype, problem.working_dtype} <= WIDE else range(1)
    of_v = wide
    averages = problem.weighting not in ("raw", "sigmoid") and not problem.kv
    if problem.dtype is Dtype.FP16 and averages and not gradients:
        of_v = range(MAX_EXPONENT + 1)  # a mean of values is no larger than these
    layer = problem.scoped[0] is Scope.LAYER
    of_q = range(1) if logits is Channels.FIXED or problem.latent else wide
    return range(1) if layer else of_v, wide if gradients else range(1), of_q


def _sequences(problem: Problem) -> int:
    """How many sequences have channels of their own: all, or 1 where they share keys or are too many."""
    together = bool(problem.requests or problem.page_size)
    channels = problem.batch * problem.kv_heads * max(_widths(problem).values())
    return 1 if together or channels > MAX_CHANNELS else problem.batch


def _widths(problem: Problem) -> dict[str, int]:
    of_k, of_v = problem.kv_widths
    queries, values = problem.head_dim, problem.head_dim_v
    return {
        "q": queries, "k": of_k, "v": of_v, "dout": values, "out": values, "dq": queries, "dk": of_k, "dv": of_v
    }  # fmt: skip


def _drawn(channels: Channels, shape: tuple[int, int, int], source: np.random.Generator) -> ChannelMap:
    width = shape[-1]
    if channels in (Channels.FIXED, Channels.NEGATED) or width < 2:
        return ChannelMap(None, np.full(shape, 1.0 if channels is Channels.FIXED else -1.0))
    order = source.permuted(np.tile(np.arange(width), (*shape[:2], 1)), axis=-1)
    if channels is Channels.SIGNED:  # half of them, so that every row of an output changes
        return ChannelMap(None, np.where(order < (width + 1) // 2, -1.0, 1.0))
    moved = np.empty(shape, np.int64)  # one cycle: no channel stays
    np.put_along_axis(moved, order, np.roll(order, -1, axis=-1), -1)
    return ChannelMap(moved, _signs(shape, source))


def _signs(shape: tuple[int, ...], source: np.random.Generator) -> NDArray[np.float64]:
    return np.where(source.integers(0, 2, shape) == 1, 1.0, -1.0)


def _upstream_signs(allowed: Freedom, shape: tuple[int, int], source: np.random.Generator) -> NDArray[np.float64]:
    """A sign of dout for each kv head, beyond that of v, which changes dq and dk where q and k do not."""
    if allowed.logits in (Channels.SIGNED, Channels.PERMUTED):
        return _signs((*shape, 1), source)
    changes = allowed.logits is Channels.FIXED and allowed.values is not Channels.NEGATED
    return np.full((*shape, 1), -1.0 if changes else 1.0)


def _latent_maps(
    problem: Problem, allowed: Freedom, scale: float, source: np.random.Generator
) -> dict[str, ChannelMap]:
    """Matrices fix the latent channels, which change their sign together; the numbers of RoPE are free as q and k."""
    assert problem.latent
    shape, (rank, rope) = (_sequences(problem), 1), problem.latent
    rotary = _drawn(allowed.logits, (*shape, rope), source)

    def beside(width: int, factor: float) -> ChannelMap:
        latent = np.full((*shape, width), -factor)
        places = np.broadcast_to(np.arange(width), latent.shape)
        moved = None if rotary.source is None else np.concatenate([places, rotary.source + width], -1)
        return ChannelMap(moved, np.concatenate([latent, rotary.factor], -1))

    nope = problem.head_dim - rope
    values = {
        "v": ChannelMap(None, np.ones((*shape, 0))),
        "out": ChannelMap(None, np.full((*shape, problem.head_dim_v), -scale)),
    }
    return {"q": beside(nope, 1 / scale), "k": beside(rank, scale), **values}


def _times(channels: ChannelMap, factor: float | NDArray[np.float64]) -> ChannelMap:
    return ChannelMap(channels.source, channels.factor * factor)


def _joined(order: NDArray[np.int64] | None, first: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    if order is None or first is None:
        return first if order is None else order
    return first[order]


def _mapped(channels: ChannelMap, tensor: Tensor, head_axis: int) -> Tensor:
    """The channels of a tensor changed; of 8-bit floats, given as bytes, only signs."""
    import torch

    if channels.source is not None:
        tensor = tensor.gather(-1, _laid_out(channels.source, tensor, head_axis).expand(*tensor.shape))
    if tensor.dtype is torch.uint8:
        return tensor ^ _laid_out(np.where(channels.factor < 0, SIGN_BIT, 0).astype(np.uint8), tensor, head_axis)
    return tensor * _laid_out(channels.factor, tensor, head_axis).to(tensor.dtype)


def _laid_out(array: NDArray[np.generic], tensor: Tensor, head_axis: int) -> Tensor:
    """[sequences or 1, kv_heads, width] on the device of a tensor, to broadcast with it."""
    import torch

    heads = tensor.shape[head_axis]
    of_heads = array if heads == array.shape[1] else np.repeat(array, heads // array.shape[1], axis=1)
    shape = [len(array), *(1,) * (tensor.ndim - 2), array.shape[-1]]
    shape[head_axis] = heads
    return torch.from_numpy(np.ascontiguousarray(of_heads)).to(tensor.device).reshape(shape)
