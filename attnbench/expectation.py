"""Expected values of a problem: the float64 reference and how far a plain formula is from it, computed once.

They are written to files, so that any number of processes can share them. Where the whole reference is too dear, whole
(sequence, kv head) groups are drawn by seed, then runs of rows; the share that is checked is recorded.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from attnbench.attention import general, inputs, reference, scopes
from attnbench.attention.blocks import Gradients, Group, Span, groups, query_heads, touched
from attnbench.attention.inputs import Inputs, torch_dtype
from attnbench.attention.problem import Dtype, Mode, Problem
from attnbench.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

FACTOR = 2.0  # times the error of the plain formula
TILE = 16  # rows that are judged together: fewer than a kernel computes at once, enough for a steady mean
TILE_SLACK = 2.0  # a tile may be off by this much more than the whole
RUN = 64  # rows of a sample, where one group is too dear
LOGITS_WITHIN = 16.0  # the size of logits within a block or layers, whose lse nobody sees
LOOSE_PEAK = 4.0  # how far the largest number of a row that chose otherwise is off, over its root mean square
FACTS = "expected.json"
GRADIENTS = ("dq", "dk", "dv")
DROPPED = ("out", "dv")  # outputs that dropout changes without a bias: their mean is that of no dropout


class Precision(NamedTuple):
    """What can be asked of a dtype."""

    eps: float  # spacing of the numbers next to 1, in the working dtype
    cap: float  # of the relative error, in the root mean square
    lse: float  # absolute up to 1, relative above


PRECISION: dict[Dtype, Precision] = {
    Dtype.FP32: Precision(eps=2.0**-23, cap=1e-5, lse=1e-5),
    Dtype.TF32: Precision(eps=2.0**-10, cap=5e-3, lse=1e-3),
    Dtype.FP16: Precision(eps=2.0**-10, cap=5e-3, lse=1e-3),
    Dtype.BF16: Precision(eps=2.0**-7, cap=3e-2, lse=1e-3),
    Dtype.FP8_E4M3: Precision(eps=2.0**-7, cap=3e-2, lse=1e-3),
}


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values only, unknown keys refused."""


class Selection(Record, frozen=True, kw_only=True):
    """What is checked: rows `spans` of every group in `groups`; no spans are all rows."""

    groups: tuple[Group, ...]
    spans: tuple[Span, ...] = ()
    share: float = 1.0  # of all query rows, over batch and heads

    @property
    def span_list(self) -> list[Span] | None:
        """As `reference` takes it."""
        return list(self.spans) or None


class Tolerance(Record, frozen=True, kw_only=True):
    """How far an output may be from the reference. `factor` multiplies all but `rounding`."""

    yardstick_max: float  # largest error of the plain formula
    yardstick_mean: float
    yardstick_rms: float
    rounding: float  # what rounding of the output and cancelling terms explain, at any element
    rms: float  # of the reference
    rms_error: float  # of the plain formula, or what half the cap of the dtype allows, whichever is more
    loose: float = 0.0  # the largest error that another choice of keys makes, where a rounding decides it


class Expected(Record, frozen=True, kw_only=True):
    """Expected values of a problem; the arrays lie beside its file and are mapped when used."""

    problem: Problem
    mode: Mode
    seed: int
    distribution: str
    digest: str  # of the inputs
    selection: Selection
    tolerances: dict[str, Tolerance]
    seconds: float  # that it took
    directory: str = ""

    @property
    def share(self) -> float:
        """The checked part of all query rows."""
        return self.selection.share

    def array(self, name: str) -> NDArray[np.floating]:
        """`out`: [groups, heads of a group, rows, width]; `out.tiles`: the error that each tile may have."""
        return np.load(Path(self.directory) / f"{name}.npy", mmap_mode="r")  # type: ignore[no-any-return]


def expect(problem: Problem, mode: Mode, seed: int, distribution: str, directory: Path, budget_s: float) -> Expected:
    """Compute reference and yardstick once and write them, so that any number of processes can `load` them.

    Groups are drawn by seed where all would take longer than `budget_s`; gradients need at least one whole group.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    made = inputs.make(problem, seed, distribution)
    selection = select(problem, mode, seed, budget_s)
    tallies: dict[str, _Tally] = {}
    for place, group in enumerate(selection.groups):
        for output in _computed(problem, mode, made, group, selection.span_list):
            if output.name not in tallies:
                tallies[output.name] = _Tally(problem.working, directory, output.name, len(selection.groups))
            tallies[output.name].add(place, output)
            if problem.dropout and output.name in DROPPED:
                tallies[output.name].keep_mass(place, output)
    largest = tallies["lse"].largest if "lse" in tallies else LOGITS_WITHIN
    expected = Expected(
        problem=problem,
        mode=mode,
        seed=seed,
        distribution=distribution,
        digest=inputs.digest(made),
        selection=selection,
        tolerances={
            name: tally.tolerance(_walk(problem) * largest if name in GRADIENTS else 0.0)
            for name, tally in tallies.items()
        },
        seconds=time.perf_counter() - start,
    )
    _around.cache_clear()  # which would hold the tensors of a sequence
    # The facts come last and at once: a reader finds all of it, or nothing.
    draft = directory / f"{FACTS}.{os.getpid()}"
    draft.write_bytes(msgspec.json.encode(expected))
    draft.replace(directory / FACTS)
    return replace(expected, directory=str(directory))


def load(directory: Path) -> Expected:
    """What `expect` wrote there."""
    try:
        facts = (directory / FACTS).read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{directory}: no expected values ({FACTS} is missing)") from None
    return replace(msgspec.json.decode(facts, type=Expected), directory=str(directory))


class Output(NamedTuple):
    """One output of a group, [heads, rows, width], and what its tolerance follows from; mass and loose have width 1."""

    name: str
    truth: Tensor
    plain: Tensor
    mass: Tensor
    loose: Tensor | None = None  # the error that another choice of keys makes, where a rounding decides it


def _computed(problem: Problem, mode: Mode, made: Inputs, group: Group, spans: list[Span] | None) -> Iterator[Output]:
    """Every output of a group."""
    if problem.scope != "core":
        yield from _computed_around(problem, mode, made, group)
        return
    if not general.is_plain(problem):
        yield from _computed_generally(problem, mode, made, group, spans)
        return
    qkv = made.q, made.k, made.v
    truth = reference.attend_group(problem, *qkv, group, spans)
    plain, mass = reference.yardstick_group(problem, *qkv, group, spans)
    yield Output("out", truth.out, plain.out, mass)
    yield Output("lse", truth.lse[..., None], plain.lse[..., None], mass.new_zeros(mass.shape))
    if mode.needs_grad:
        true_gradients = reference.gradients_group(problem, *qkv, made.dout, group)
        gradients, masses = reference.yardstick_gradients_group(problem, *qkv, made.dout, group)
        yield from map(Output, GRADIENTS, true_gradients, gradients, masses)


def _computed_generally(
    problem: Problem, mode: Mode, made: Inputs, group: Group, spans: list[Span] | None
) -> Iterator[Output]:
    qkv, step = (made.q, made.k, made.v), general.steps_for(problem)
    truth = general.forward_group(problem, *qkv, group, spans, None)
    plain = general.forward_group(problem, *qkv, group, spans, step)
    nothing = plain.mass.new_zeros(plain.mass.shape)
    yield Output("out", truth.out, plain.out, plain.mass, truth.loose)
    yield Output("lse", truth.lse[..., None], plain.lse[..., None], nothing)
    if truth.weights is not None and plain.weights is not None:
        yield Output("weights", truth.weights, plain.weights, nothing)
    if mode.needs_grad:
        true = general.gradients_group(problem, *qkv, made.dout, group, None)
        rough = general.gradients_group(problem, *qkv, made.dout, group, step)
        yield from map(Output, GRADIENTS, true.gradients, rough.gradients, rough.mass, true.loose)


def _computed_around(problem: Problem, mode: Mode, made: Inputs, group: Group) -> Iterator[Output]:
    """Of a block or layers: all heads of a sequence are worked out together, each group is given its part."""
    truth, plain = (_around(problem, mode, made, group[0], exact) for exact in (True, False))
    heads = query_heads(problem, group)
    shared = slice(group[1], group[1] + 1)
    for name in truth:
        own = shared if name in ("dk", "dv") else heads
        # Every number is a sum over all heads of its token: their size stands for that of the terms, layer by layer.
        mass = truth[name].square().mean((0, 2)).sqrt()[None, :, None] * (1 + problem.scoped[1])
        yield Output(name, truth[name][own], plain[name][own], mass.expand(len(truth[name][own]), -1, 1))


@lru_cache(maxsize=2)
def _around(problem: Problem, mode: Mode, made: Inputs, sequence: int, exact: bool) -> dict[str, Tensor]:
    """out and, for gradients, dq, dk, dv of one sequence: [heads, seq, width], exact or as its dtype rounds."""
    import torch

    dtype = torch.float64 if exact else torch_dtype(problem.working.out)
    given = {name: matrix.to(dtype) for name, matrix in scopes.matrices(problem)}
    leaves = [getattr(made, name)[sequence : sequence + 1].to(dtype).requires_grad_() for name in "qkv"]
    core = differentiable(replace(problem, scope="core", dtype=problem.working, autocast="none"), exact, sequence)
    inner = scopes.self_attention(problem)
    own = None if inner is None else differentiable(inner, exact, sequence)
    out = scopes.around(problem, given, core, own, *leaves)
    found = {"out": out}
    if mode.needs_grad:
        dout = made.dout[sequence : sequence + 1].to(dtype)
        found |= zip(GRADIENTS, torch.autograd.grad(out, leaves, dout, materialize_grads=True), strict=True)
    return {name: tensor.detach()[0].double() for name, tensor in found.items()}


def differentiable(problem: Problem, exact: bool, sequence: int) -> Callable[..., Tensor]:
    """The reference of one sequence of the batch as a function that autograd can walk through; else the yardstick.

    Tensors hold that sequence alone, [1, heads, seq, width]; masks may differ from sequence to sequence.
    """
    import torch

    every = [(sequence, head) for head in range(problem.kv_heads)]

    def attend(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if exact:
            return reference.attend_group(problem, q, k, v, group).out
        return reference.yardstick_group(problem, q, k, v, group)[0].out

    def differentiate(group: Group, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Gradients:
        if exact:
            return reference.gradients_group(problem, q, k, v, dout, group)
        return reference.yardstick_gradients_group(problem, q, k, v, dout, group)[0]

    def placed(*tensors: Tensor) -> list[Tensor]:
        """Found under the number of the sequence, without a copy."""
        return [tensor.expand(problem.batch, *tensor.shape[1:]) for tensor in tensors]

    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            ctx.save_for_backward(q, k, v)
            return torch.cat([attend(group, *placed(q, k, v)) for group in every])[None].to(q.dtype)

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> Any:
            found = [differentiate(group, *placed(*ctx.saved_tensors, dout)) for group in every]
            return tuple(torch.cat(parts)[None].to(dout.dtype) for parts in zip(*found, strict=True))

    applied: Callable[..., Tensor] = Reference.apply
    return applied


def _walk(problem: Problem) -> float:
    """How far rounding carries a sum of head_dim terms, in units of eps: as a random walk, two sums apart."""
    return max(1.0, math.sqrt(problem.head_dim) / 2)


class _Tally:
    """Writes one output group by group, and sums up what its tolerance follows from."""

    def __init__(self, dtype: Dtype, directory: Path, name: str, count: int) -> None:
        self.dtype, self.name, self.count = dtype, name, count
        self.path, self.arrays = directory, dict[str, NDArray[np.floating]]()
        self.numbers, self.worst, self.total, self.rounding = 0, 0.0, 0.0, 0.0
        self.largest, self.loose = 1.0, 0.0
        self.squares = np.zeros(4)  # of the reference, the error of the yardstick, the mass, what is loose

    def add(self, place: int, output: Output) -> None:
        """One output of the group at `place`."""
        truth, mass = output.truth, output.mass
        seen = truth.isfinite()
        known = truth.where(seen, 0.0)
        # A plain formula may overflow, in fp16; such elements say nothing about normal errors.
        error = (output.plain.double() - known).where(seen, 0.0).nan_to_num(0.0, 0.0, 0.0)
        mass = mass.double().nan_to_num(0.0, 0.0, 0.0)
        loose = mass.new_zeros(mass.shape) if output.loose is None else output.loose
        self.loose = max(self.loose, LOOSE_PEAK * float(loose.max()))
        self.numbers += int(seen.sum())
        self.worst = max(self.worst, float(error.abs().max()))
        self.total += float(error.abs().sum())
        self.largest = max(self.largest, float(known.abs().max()), float(mass.max()))
        # Rounded first: unrounded, adding and taking away 0.3 in float64 would show no rounding at all.
        stored = known.to(torch_dtype(Dtype.FP32 if self.name == "lse" else self.dtype.out))
        self.rounding = max(self.rounding, float((stored + 0.3 - 0.3 - stored).abs().max()))
        self.squares += [float(t.square().mean(-1).sum()) * truth.shape[-1] for t in (known, error, mass, loose)]
        size = tile_rms(known).maximum(tile_rms(mass))
        self._write(place, self.name, truth, exact=self.dtype.bytes == 4 or self.name == "lse")
        limit = (size * self._half_cap).maximum(tile_rms(error)) * TILE_SLACK + tile_rms(loose)
        self._write(place, f"{self.name}.tiles", limit, exact=True)

    def keep_mass(self, place: int, output: Output) -> None:
        """Write the mass of every row: dropout makes errors of its size."""
        self._write(place, f"{self.name}.mass", output.mass, exact=True)

    def tolerance(self, logits: float = 0.0) -> Tolerance:
        """Of the whole output. A fused backward makes its weights again as exp(logit - lse).

        Both are float32 sums that may be off by eps(fp32) times `logits`, each in its own way; the plain formula, which
        keeps the weights, has no such error.
        """
        numbers = max(1, self.numbers)
        rms, error, mass, loose = (float(x) for x in np.sqrt(self.squares / numbers))
        eps = 2.0**-23 if self.name == "lse" else PRECISION[self.dtype].eps
        return Tolerance(
            yardstick_max=self.worst,
            yardstick_mean=self.total / numbers,
            yardstick_rms=error,
            rounding=2 * self.rounding + (8 * eps + 2.0**-23 * logits) * self.largest,
            rms=rms,
            rms_error=max(error, self._half_cap * max(rms, mass)) + loose,
            loose=self.loose,
        )

    @property
    def _half_cap(self) -> float:
        return PRECISION[self.dtype].cap / FACTOR

    def _write(self, place: int, name: str, values: Tensor, exact: bool) -> None:
        if name not in self.arrays:
            kind, shape = np.float64 if exact else np.float32, (self.count, *values.shape)
            self.arrays[name] = np.lib.format.open_memmap(self.path / f"{name}.npy", "w+", kind, shape)
        self.arrays[name][place] = values.numpy()


def tile_rms(numbers: Tensor) -> Tensor:
    """Root mean square of every tile: [heads, rows, width] -> [heads, tiles]."""
    import torch

    rows = numbers.square().mean(-1)
    spare = -rows.shape[1] % TILE
    filled = torch.nn.functional.pad(torch.stack([rows, torch.ones_like(rows)]), (0, spare))
    sums, counts = filled.unflatten(-1, (-1, TILE)).sum(-1)
    return (sums / counts).sqrt()  # type: ignore[no-any-return]


def select(problem: Problem, mode: Mode, seed: int, budget_s: float) -> Selection:
    """Everything, if it fits the budget; else whole groups drawn by seed; else, if only forward, rows of one group."""
    every = groups(problem)
    if problem.scope != "core":
        return _whole_sequences(problem, mode, seed, budget_s)
    seconds = _predictor(problem, mode)
    whole = [seconds(b, None) for b in range(problem.batch)]
    if sum(whole) * problem.kv_heads <= budget_s:
        return Selection(groups=tuple(every))
    drawn, spent = [], 0.0
    for group in random.Random(seed).sample(every, len(every)):
        if spent + whole[group[0]] <= budget_s:
            drawn.append(group)
            spent += whole[group[0]]
    if drawn:
        return Selection(groups=tuple(sorted(drawn)), share=len(drawn) / len(every))
    group = random.Random(seed).choice(every)
    if mode.needs_grad:
        return Selection(groups=(group,), share=1 / len(every))
    spans = _runs(problem.seq_q, seed, budget_s, lambda span: seconds(group[0], [span]))
    rows = sum(stop - first for first, stop in spans)
    return Selection(groups=(group,), spans=spans, share=rows / problem.seq_q / len(every))


def _whole_sequences(problem: Problem, mode: Mode, seed: int, budget_s: float) -> Selection:
    """Every group of sequences drawn by seed, one at least: a projection mixes all heads of a sequence."""
    seconds = _predictor(replace(problem, scope="core", autocast="none"), mode)
    layers = max(1, problem.scoped[1])
    one = layers * problem.kv_heads * seconds(0, None)
    count = max(1, min(problem.batch, int(budget_s / one)))
    drawn = sorted(random.Random(seed).sample(range(problem.batch), count))
    chosen = tuple((b, head) for b in drawn for head in range(problem.kv_heads))
    return Selection(groups=chosen, share=count / problem.batch)


def _runs(seq_q: int, seed: int, budget_s: float, seconds: Callable[[Span], float]) -> tuple[Span, ...]:
    """Runs of rows: the first, the last, one drawn by seed, and more of those as long as the budget holds."""
    runs = [(first, min(first + RUN, seq_q)) for first in range(0, seq_q, RUN)]
    ends = list(dict.fromkeys([runs[0], runs[-1]]))
    inner = [run for run in runs if run not in ends]
    chosen, spent = ends, sum(map(seconds, ends))
    for place, run in enumerate(random.Random(seed).sample(inner, len(inner))):
        spent += seconds(run)
        if place and spent > budget_s:
            break
        chosen.append(run)
    return tuple(sorted(chosen))


def _predictor(problem: Problem, mode: Mode) -> Callable[[int, list[Span] | None], float]:
    """Seconds of one group of a sequence, from the speed of a small problem of the same kind on this machine."""
    sharing = problem.heads // problem.kv_heads
    rows = min(problem.seq_q, 128)
    keys = min(problem.seq_kv, 2**16 // rows)

    def probe(seq_q: int, seq_kv: int) -> float:
        shape = {"batch": 1, "heads": min(sharing, 4), "kv_heads": 1, "seq_q": seq_q, "seq_kv": seq_kv}
        small = replace(problem, **shape, mask="none", lengths=())
        made = inputs.make(small, 0)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in _computed(small, mode, made, (0, 0), None):
                pass
            times.append(time.perf_counter() - start)
        return min(times)

    fixed = probe(1, 1)
    per_logit = probe(rows, keys) / (rows * keys * min(sharing, 4))

    def seconds(sequence: int, spans: list[Span] | None) -> float:
        return fixed + sharing * per_logit * touched(problem, sequence, spans)

    return seconds
