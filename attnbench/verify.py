"""Is an output right? Expected values, computed once for a problem and shared by files, and the rule that judges them.

The rule follows flash-attention's tests: an output may be twice as far from the float64 reference as a plain formula
in the same dtype is, plus what rounding alone explains. Such a bound is loose where a few large numbers set it, so the
root mean square is bounded as well, over everything and over every tile of 16 rows: one wrong tile is no small error.
https://github.com/Dao-AILab/flash-attention/blob/main/tests/cute/test_flash_attn.py
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from attnbench.attention import inputs, reference
from attnbench.attention.inputs import Inputs, torch_dtype
from attnbench.attention.problem import Dtype, Mode, Problem
from attnbench.attention.reference import Group, Span, query_heads
from attnbench.errors import StoreError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FACTOR = 2.0  # times the error of the plain formula
TILE = 16  # rows that are judged together: fewer than a kernel computes at once, enough for a steady mean
TILE_SLACK = 2.0  # a tile may be off by this much more than the whole
RUN = 64  # rows of a sample, where one group is too dear
FACTS = "expected.json"


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
    rounding: float  # what rounding of the output and cancelling terms explain, at any element
    rms: float  # of the reference
    rms_error: float  # of the plain formula, or what half the cap of the dtype allows, whichever is more


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


class Error(Record, frozen=True, kw_only=True):
    """How far one output is from the reference. None: not finite, or a reference that is zero throughout."""

    max_abs: float | None = None
    mean_abs: float | None = None
    rel: float | None = None  # in the root mean square
    budget: float | None = None  # of max_abs


class Judgement(Record, frozen=True, kw_only=True):
    """Whether all outputs are right; if not, the first reason, for whoever wrote the kernel."""

    ok: bool
    reason: str = ""
    errors: dict[str, Error] = {}


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
        for name, truth, plain, mass in _computed(problem, mode, made, group, selection.span_list):
            if name not in tallies:
                tallies[name] = _Tally(problem.dtype, directory, name, len(selection.groups))
            tallies[name].add(place, truth, plain, mass)
    expected = Expected(
        problem=problem,
        mode=mode,
        seed=seed,
        distribution=distribution,
        digest=inputs.digest(made),
        selection=selection,
        tolerances={name: tally.tolerance() for name, tally in tallies.items()},
        seconds=time.perf_counter() - start,
    )
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


def _computed(
    problem: Problem, mode: Mode, made: Inputs, group: Group, spans: list[Span] | None
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Of every output of a group: name, reference, yardstick, mass."""
    qkv = made.q, made.k, made.v
    truth = reference.attend_group(problem, *qkv, group, spans)
    plain, mass = reference.yardstick_group(problem, *qkv, group, spans)
    yield "out", truth.out, plain.out, mass
    yield "lse", truth.lse[..., None], plain.lse[..., None], mass.new_zeros(mass.shape)
    if mode.needs_grad:
        true_gradients = reference.gradients_group(problem, *qkv, made.dout, group)
        gradients, masses = reference.yardstick_gradients_group(problem, *qkv, made.dout, group)
        yield from zip(("dq", "dk", "dv"), true_gradients, gradients, masses, strict=True)


class _Tally:
    """Writes one output group by group, and sums up what its tolerance follows from."""

    def __init__(self, dtype: Dtype, directory: Path, name: str, count: int) -> None:
        self.dtype, self.name, self.count = dtype, name, count
        self.path, self.arrays = directory, dict[str, NDArray[np.floating]]()
        self.numbers, self.worst, self.total, self.rounding = 0, 0.0, 0.0, 0.0
        self.largest = 1.0
        self.squares = np.zeros(3)  # of the reference, the error of the yardstick, the mass

    def add(self, place: int, truth: Tensor, plain: Tensor, mass: Tensor) -> None:
        """[heads, rows, width] of the group at `place`."""
        seen = truth.isfinite()
        known = truth.where(seen, 0.0)
        # A plain formula may overflow, in fp16; such elements say nothing about normal errors.
        error = (plain.double() - known).where(seen, 0.0).nan_to_num(0.0, 0.0, 0.0)
        mass = mass.double().nan_to_num(0.0, 0.0, 0.0)
        self.numbers += int(seen.sum())
        self.worst = max(self.worst, float(error.abs().max()))
        self.total += float(error.abs().sum())
        self.largest = max(self.largest, float(known.abs().max()), float(mass.max()))
        # Rounded first: unrounded, adding and taking away 0.3 in float64 would show no rounding at all.
        stored = known.to(torch_dtype(Dtype.FP32 if self.name == "lse" else self.dtype.out))
        self.rounding = max(self.rounding, float((stored + 0.3 - 0.3 - stored).abs().max()))
        self.squares += [float(t.square().mean(-1).sum()) * truth.shape[-1] for t in (known, error, mass)]
        size = _tile_rms(known).maximum(_tile_rms(mass))
        self._write(place, self.name, truth, exact=self.dtype.bytes == 4 or self.name == "lse")
        limit = (size * self._half_cap).maximum(_tile_rms(error)) * TILE_SLACK
        self._write(place, f"{self.name}.tiles", limit, exact=True)

    def tolerance(self) -> Tolerance:
        """Of the whole output."""
        numbers = max(1, self.numbers)
        rms, error, mass = (float(x) for x in np.sqrt(self.squares / numbers))
        eps = 2.0**-23 if self.name == "lse" else PRECISION[self.dtype].eps
        return Tolerance(
            yardstick_max=self.worst,
            yardstick_mean=self.total / numbers,
            rounding=2 * self.rounding + 8 * eps * self.largest,
            rms=rms,
            rms_error=max(error, self._half_cap * max(rms, mass)),
        )

    @property
    def _half_cap(self) -> float:
        return PRECISION[self.dtype].cap / FACTOR

    def _write(self, place: int, name: str, values: Tensor, exact: bool) -> None:
        if name not in self.arrays:
            kind, shape = np.float64 if exact else np.float32, (self.count, *values.shape)
            self.arrays[name] = np.lib.format.open_memmap(self.path / f"{name}.npy", "w+", kind, shape)
        self.arrays[name][place] = values.numpy()


def _tile_rms(numbers: Tensor) -> Tensor:
    """Root mean square of every tile: [heads, rows, width] -> [heads, tiles]."""
    import torch

    rows = numbers.square().mean(-1)
    spare = -rows.shape[1] % TILE
    filled = torch.nn.functional.pad(torch.stack([rows, torch.ones_like(rows)]), (0, spare))
    sums, counts = filled.unflatten(-1, (-1, TILE)).sum(-1)
    return (sums / counts).sqrt()  # type: ignore[no-any-return]


def select(problem: Problem, mode: Mode, seed: int, budget_s: float) -> Selection:
    """Everything, if it fits the budget; else whole groups drawn by seed; else, if only forward, rows of one group."""
    every = reference.groups(problem)
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
        return fixed + sharing * per_logit * reference.touched(problem, sequence, spans)

    return seconds


def judge(expected: Expected, outputs: Mapping[str, Tensor], sign: int = 1, factor: float = FACTOR) -> Judgement:
    """Judge `out`, `lse`, `dq`, `dk`, `dv`, or those of them that there are; [batch, heads, seq, width] on any device.

    `sign=-1` expects the outputs of negated inputs: q, k, v and dout negated together negate everything but the lse.
    """
    errors: dict[str, Error] = {}
    reasons = []
    for name, output in outputs.items():
        errors[name], reason = _judge_one(expected, name, output, sign, factor)
        reasons += [f"{name}: {reason}"] if reason else []
    if not outputs:
        reasons = ["no output to judge"]
    return Judgement(ok=not reasons, reason=reasons[0] if reasons else "", errors=errors)


def _judge_one(expected: Expected, name: str, output: Tensor, sign: int, factor: float) -> tuple[Error, str]:
    import torch

    shape, dtype = _form(expected.problem, name)
    if tuple(output.shape) != shape or output.dtype != dtype:
        return Error(), (f"is {_spell(output.dtype)} {list(output.shape)} and should be {_spell(dtype)} {list(shape)}")
    output = output.detach()
    bad = output.isnan() | output.isposinf() if name == "lse" else ~output.isfinite()
    if bad.any():
        where = bad.nonzero()[0].tolist()
        value = float(output[tuple(where)])
        return Error(), f"{value} at {_at(name, where)}, not finite in {int(bad.sum())} of {bad.numel()} numbers"
    tolerance = expected.tolerances[name]
    found = _Errors(expected, name, tolerance, factor)
    for place, group in enumerate(expected.selection.groups):
        part = _part(expected, name, output, group).to("cpu", torch.float64)
        found.add(place, group, part if name == "lse" else part * sign)
    return found.error, found.reason


class _Errors:
    """Compares one output group by group, and keeps what is worst."""

    def __init__(self, expected: Expected, name: str, tolerance: Tolerance, factor: float) -> None:
        self.expected, self.name, self.tolerance, self.factor = expected, name, tolerance, factor
        self.truth = expected.array(name)
        self.tiles = expected.array(f"{name}.tiles")
        self.numbers, self.total, self.squares = 0, 0.0, 0.0
        self.worst, self.worst_at = 0.0, ""
        self.odd = ""  # the first element or tile that breaks a rule of its own

    @property
    def budget(self) -> float:
        """Of the largest error."""
        return self.factor * self.tolerance.yardstick_max + self.tolerance.rounding

    def add(self, place: int, group: Group, part: Tensor) -> None:
        """[heads, rows, width] of the group at `place`, as float64."""
        import torch

        truth = torch.from_numpy(np.array(self.truth[place], dtype=np.float64))
        seen = truth.isfinite()
        error = (part - truth).where(seen, 0.0).abs()
        self.numbers += int(seen.sum())
        self.total += float(error.sum())
        self.squares += float(error.square().sum())
        if float(error.max()) > self.worst:
            self.worst = float(error.max())
            self.worst_at = self._at(group, (error == error.max()).nonzero()[0].tolist())
        if not self.odd:
            self.odd = self._odd_lse(group, part, truth) if self.name == "lse" else self._odd_tile(place, group, error)

    def _odd_lse(self, group: Group, part: Tensor, truth: Tensor) -> str:
        """-inf just where the reference has it, elsewhere within the precision of float32 sums."""
        blind = truth.isinf()
        if (differs := part.isinf() != blind).any():
            where = differs.nonzero()[0].tolist()
            found, wanted = float(part[tuple(where)]), float(truth[tuple(where)])
            return f"{found} at {self._at(group, where)}, the reference has {wanted}"
        limit = PRECISION[self.expected.problem.dtype].lse * truth.abs().clamp_min(1.0)
        if (over := ~blind & ((part - truth).abs() > limit)).any():
            where = over.nonzero()[0].tolist()
            error, most = float((part - truth)[tuple(where)]), float(limit[tuple(where)])
            return f"off by {error:.3g} at {self._at(group, where)}, allowed {most:.3g}"
        return ""

    def _odd_tile(self, place: int, group: Group, error: Tensor) -> str:
        import torch

        # Rounding alone may be all there is, where the reference is nearly zero.
        limit = self.factor * torch.from_numpy(np.array(self.tiles[place], dtype=np.float64)) + self.tolerance.rounding
        found = _tile_rms(error)
        if not (over := found > limit).any():
            return ""
        head, tile = over.nonzero()[0].tolist()
        where = self._at(group, [head, tile * TILE])
        rms, most = float(found[head, tile]), float(limit[head, tile])
        return f"root mean square error of {TILE} rows from {where} is {rms:.3g}, over {most:.3g}"

    def _at(self, group: Group, where: list[int]) -> str:
        """`[b0 h3 q17 d5]`, from indices into the part of a group."""
        head, row, *width = where
        if self.name in ("dk", "dv"):
            return _at(self.name, [*group, row, *width])
        first = query_heads(self.expected.problem, group).start
        rows = [n for start, stop in self.expected.selection.spans for n in range(start, stop)]
        return _at(
            self.name, [group[0], first + head, rows[row] if rows else row, *(width if self.name != "lse" else ())]
        )

    @property
    def error(self) -> Error:
        """The figures."""
        numbers = max(1, self.numbers)
        size = self.tolerance.rms
        rel = (self.squares / numbers) ** 0.5 / size if size else None
        return Error(max_abs=self.worst, mean_abs=self.total / numbers, rel=rel, budget=self.budget)

    @property
    def reason(self) -> str:
        """The first rule that is broken, or nothing."""
        if self.name == "lse":
            return self.odd
        numbers = max(1, self.numbers)
        rms, allowed = (self.squares / numbers) ** 0.5, self.factor * self.tolerance.rms_error
        mean = self.factor * self.tolerance.yardstick_mean + self.tolerance.rounding
        rule = f"{self.factor:g} x the error of the plain formula and rounding"
        if not self.worst <= self.budget:
            return f"max |error| {self.worst:.3g} at {self.worst_at} is over {self.budget:.3g}, {rule}"
        if not self.total / numbers <= mean:
            return f"mean |error| {self.total / numbers:.3g} is over {mean:.3g}, {rule}"
        if not rms <= allowed + (0.0 if self.tolerance.rms else self.tolerance.rounding):
            return f"root mean square error {rms:.3g} is over {allowed:.3g}, the reference has {self.tolerance.rms:.3g}"
        return self.odd


def _form(problem: Problem, name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype that an output must have."""
    queries, keys = (problem.batch, problem.heads, problem.seq_q), (problem.batch, problem.kv_heads, problem.seq_kv)
    shapes = {
        "out": (*queries, problem.head_dim_v),
        "lse": queries,
        "dq": (*queries, problem.head_dim),
        "dk": (*keys, problem.head_dim),
        "dv": (*keys, problem.head_dim_v),
    }
    return shapes[name], torch_dtype(Dtype.FP32 if name == "lse" else problem.dtype.out)


def _part(expected: Expected, name: str, output: Tensor, group: Group) -> Tensor:
    """[heads, rows, width]: what was selected of one group."""
    import torch

    b, kv_head = group
    if name in ("dk", "dv"):
        return output[b, kv_head : kv_head + 1]
    part = output[b, query_heads(expected.problem, group)]
    if spans := expected.selection.spans:
        part = torch.cat([part[:, start:stop] for start, stop in spans], dim=1)
    return part[..., None] if name == "lse" else part


def _at(name: str, where: list[int]) -> str:
    letters = "bhkd" if name in ("dk", "dv") else "bhqd"
    return "[" + " ".join(f"{letter}{number}" for letter, number in zip(letters, where, strict=False)) + "]"


def _spell(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
