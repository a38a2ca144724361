"""The rule that judges the outputs of a kernel against expected values.

It follows flash-attention's tests: an output may be twice as far from the float64 reference as a plain formula in the
same dtype, plus what rounding alone explains. A few large numbers can make such a bound loose, so the root mean square
is bounded as well, over the whole output and over every tile of 16 rows, which shows one wrong tile.
https://github.com/Dao-AILab/flash-attention/blob/main/tests/cute/test_flash_attn.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from attnbench.attention.blocks import Group, query_heads
from attnbench.attention.choices import Dtype
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Problem
from attnbench.attention.transformations import Transformation
from attnbench.records.result import Record
from attnbench.units import figure
from attnbench.worker.expected_values import DROPPED, ExpectedValues
from attnbench.worker.tolerances import FACTOR, PRECISION, TILE, OutputTolerance, tile_rms

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class OutputError(Record, frozen=True, kw_only=True):
    """How far one output is from the reference. None: not finite, or relative to a reference of zeros."""

    max_abs: float | None = None
    mean_abs: float | None = None
    rms: float | None = None
    rel: float | None = None  # rms over that of the reference
    budget: float | None = None  # of max_abs
    plain_max: float | None = None  # errors of the plain formula in the same dtype
    plain_mean: float | None = None
    plain_rms: float | None = None
    nan: int = 0  # how many numbers are NaN
    inf: int = 0  # how many are infinite and should be finite


class OutputVerdict(Record, frozen=True, kw_only=True):
    """Whether all outputs are correct; if not, the first reason, for the author of the kernel."""

    ok: bool
    reason: str = ""
    errors: dict[str, OutputError] = {}


def judge(
    expected: ExpectedValues, outputs: Mapping[str, Tensor], undo: Transformation | None = None, factor: float = FACTOR
) -> OutputVerdict:
    """Judge `out`, `lse`, `dq`, `dk`, `dv`, as far as present: [batch, heads, seq, width] on any device.

    `undo`: of the transformation of the inputs. Places in a reason are then those of the outputs without it.
    """
    errors: dict[str, OutputError] = {}
    reasons = []
    for name, output in outputs.items():
        errors[name], reason = _judge_output(expected, name, output, undo, factor)
        reasons += [f"{name}: {reason}"] if reason else []
    if not outputs:
        reasons = ["no output to judge"]
    return OutputVerdict(ok=not reasons, reason=reasons[0] if reasons else "", errors=errors)


def _judge_output(
    expected: ExpectedValues, name: str, output: Tensor, undo: Transformation | None, factor: float
) -> tuple[OutputError, str]:
    import torch

    shape, dtype = _shape_and_dtype(expected.problem, name)
    if tuple(output.shape) != shape or output.dtype != dtype:
        wrong = f"is {output.dtype} {list(output.shape)} and should be {dtype} {list(shape)}"
        return OutputError(), wrong.replace("torch.", "")
    output = output.detach()
    bad = output.isnan() | output.isposinf() if name == "lse" else ~output.isfinite()
    if bad.any():
        index = bad.nonzero()[0].tolist()
        value, where = float(output[tuple(index)]), _spell_index(name, _unpacked(expected.problem, name, index))
        error = OutputError(nan=int(output.isnan().sum()), inf=int((bad & ~output.isnan()).sum()))
        return error, f"{value} at {where}, not finite in {int(bad.sum())} of {bad.numel()} numbers"
    output = undo.applied(name, output) if undo else output
    if expected.problem.dropout and name != "lse":
        return OutputError(), _judge_dropped(expected, name, output) if name in DROPPED else ""
    comparison = _Comparison(expected, name, expected.tolerances[name], factor)
    for place, group in enumerate(expected.selection.groups):
        comparison.add(place, group, _selected_part(expected, name, output, group).to("cpu", torch.float64))
    return comparison.result()


def _judge_dropped(expected: ExpectedValues, name: str, output: Tensor) -> str:
    import torch

    parts = [_selected_part(expected, name, output, group) for group in expected.selection.groups]
    outputs = torch.cat([part.to("cpu", torch.float64).flatten(0, 1) for part in parts])
    reference, mass = (
        torch.cat([_first_rows(array, place, part.shape[1]).flatten(0, 1) for place, part in enumerate(parts)])
        for array in (expected.array(name), expected.array(f"{name}.mass"))
    )
    problem = expected.problem
    return _dropout_objection(problem.dropout, PRECISION[problem.dtype].cap, outputs, reference, mass.flatten())


def _dropout_objection(rate: float, cap: float, outputs: Tensor, reference: Tensor, mass: Tensor) -> str:
    """Why the outputs cannot come from dropout at that rate; empty if they can.

    Outputs with dropout differ from call to call; their mean is the output without it. Each weight is multiplied by an
    independent factor of mean 1 and variance r / (1 - r). So the mean square error of a row is that variance times its
    squared mass, and the outputs follow the reference with slope 1. Bounds are six standard errors wide.

    outputs, reference: [rows, width]; mass: [rows]; all float64. `cap` is the relative error that the dtype allows.
    """
    variance = rate / (1 - rate)
    expected = mass.square() * variance
    error = (outputs - reference).square().mean(-1)
    rounding = (cap * reference.square().mean(-1).sqrt()).square()
    if (outliers := error > (40 + 4 / variance) * expected + 4 * rounding).any():
        return f"a row is off by {figure(float(error[outliers].max().sqrt()))}, more than dropout {rate:g} explains"
    # Fourth moment of a factor over its squared variance; for a sum of many factors it tends to 3.
    kurtosis = max(3.0, (rate + rate**4 / (1 - rate) ** 3) / variance**2)
    total = float(expected.sum()) or 1.0
    ratio, deviation = float(error.sum()) / total, math.sqrt((kurtosis - 1) * float(expected.square().sum())) / total
    allowed = 6 * deviation + 0.02 + float(rounding.sum()) / total
    if abs(ratio - 1) > allowed:
        spread = f"the variance over rows is {figure(ratio)} times that of dropout {rate:g}"
        return f"{spread}, allowed are {figure(allowed)} from 1"
    size, width = float(reference.square().sum()), reference.shape[-1]
    slope = float((outputs * reference).sum()) / size if size else 1.0
    deviation = math.sqrt(float((expected * width * reference.square().sum(-1)).sum())) / size if size else 0.0
    allowed = 6 * deviation + 0.01
    if abs(slope - 1) > allowed:
        return f"the mean is {figure(slope)} times that without dropout, allowed are {figure(allowed)} from 1"
    return ""


class _Comparison:
    """Compares one output with the reference group by group, and keeps the largest error."""

    def __init__(self, expected: ExpectedValues, name: str, tolerance: OutputTolerance, factor: float) -> None:
        self.expected, self.name, self.tolerance, self.factor = expected, name, tolerance, factor
        self.reference = expected.array(name)
        self.tiles = expected.array(f"{name}.tiles")
        self.numbers, self.total, self.squares = 0, 0.0, 0.0
        self.worst, self.worst_at = 0.0, ""
        self.local = ""  # why the first wrong element or tile is wrong
        self.budget = factor * (tolerance.plain_max + tolerance.loose) + tolerance.rounding  # of the largest error

    def add(self, place: int, group: Group, part: Tensor) -> None:
        """Add [heads, rows, width] of the group at `place`, as float64."""
        reference = _first_rows(self.reference, place, part.shape[1])
        finite = reference.isfinite()
        error = (part - reference).where(finite, 0.0).abs()
        self.numbers += int(finite.sum())
        self.total += float(error.sum())
        self.squares += float(error.square().sum())
        if float(error.max()) > self.worst:
            self.worst = float(error.max())
            self.worst_at = self._at(group, (error == error.max()).nonzero()[0].tolist())
        if not self.local:
            is_lse = self.name == "lse"
            self.local = self._wrong_lse(group, part, reference) if is_lse else self._wrong_tile(place, group, error)

    def _wrong_lse(self, group: Group, part: Tensor, reference: Tensor) -> str:
        """Why an element is wrong: -inf must be exactly where the reference has it; else a float32 sum's precision."""
        blind = reference.isinf()
        if (differs := part.isinf() != blind).any():
            index = differs.nonzero()[0].tolist()
            value, right = float(part[tuple(index)]), float(reference[tuple(index)])
            return f"{value} at {self._at(group, index)}, the reference has {right}"
        limit = PRECISION[self.expected.problem.dtype].lse * reference.abs().clamp_min(1.0)
        if (over := ~blind & ((part - reference).abs() > limit)).any():
            index = over.nonzero()[0].tolist()
            error, allowed = float((part - reference)[tuple(index)]), float(limit[tuple(index)])
            return f"off by {figure(error)} at {self._at(group, index)}, allowed {figure(allowed)}"
        return ""

    def _wrong_tile(self, place: int, group: Group, error: Tensor) -> str:
        # Rounding may be the whole error where the reference is nearly zero.
        rms = tile_rms(error)
        limit = self.factor * _first_rows(self.tiles, place, rms.shape[1]) + self.tolerance.rounding
        if not (over := rms > limit).any():
            return ""
        head, tile = over.nonzero()[0].tolist()
        start = self._at(group, [head, tile * TILE])
        error_rms, allowed = float(rms[head, tile]), float(limit[head, tile])
        return f"root mean square error of {TILE} rows from {start} is {figure(error_rms)}, over {figure(allowed)}"

    def _at(self, group: Group, index: list[int]) -> str:
        """`[b0 h3 q17 d5]`, from indices into the part of a group."""
        head, row, *width = index
        if self.name in ("dk", "dv"):
            return _spell_index(self.name, [*group, row, *width])
        first = query_heads(self.expected.problem, group).start
        rows = [n for start, stop in self.expected.selection.spans for n in range(start, stop)]
        width = [] if self.name == "lse" else width
        return _spell_index(self.name, [group[0], first + head, rows[row] if rows else row, *width])

    def result(self) -> tuple[OutputError, str]:
        """The figures, and the first rule that is broken; empty if none is."""
        numbers, tolerance = max(1, self.numbers), self.tolerance
        mean, rms = self.total / numbers, (self.squares / numbers) ** 0.5
        error = OutputError(
            max_abs=self.worst,
            mean_abs=mean,
            rms=rms,
            rel=rms / tolerance.rms if tolerance.rms else None,
            budget=self.budget,
            plain_max=tolerance.plain_max,
            plain_mean=tolerance.plain_mean,
            plain_rms=tolerance.plain_rms,
        )
        return error, self.local if self.name == "lse" else self._broken_rule(mean, rms) or self.local

    def _broken_rule(self, mean: float, rms: float) -> str:
        tolerance, allowed = self.tolerance, self.factor * self.tolerance.rms_error
        allowed_mean = self.factor * tolerance.plain_mean + tolerance.rounding + (allowed if tolerance.loose else 0.0)
        rule = f"{self.factor:g} x the error of the plain formula and rounding"
        if not self.worst <= self.budget:
            return f"max |error| {figure(self.worst)} at {self.worst_at} is over {figure(self.budget)}, {rule}"
        if not mean <= allowed_mean:
            return f"mean |error| {figure(mean)} is over {figure(allowed_mean)}, {rule}"
        if not rms <= allowed + (0.0 if tolerance.rms else tolerance.rounding):
            limit = f"{figure(allowed)}, the reference has {figure(tolerance.rms)}"
            return f"root mean square error {figure(rms)} is over {limit}"
        return ""


def _shape_and_dtype(problem: Problem, name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype that an output must have."""
    queries, keys = problem.shape_q, problem.shape_kv
    shapes = {
        "out": (*queries, problem.head_dim_v),
        "lse": queries,
        "weights": (*queries, problem.seq_kv),
        "dq": (*queries, problem.head_dim),
        "dk": (*keys, problem.head_dim),
        "dv": (*keys, problem.head_dim_v),
    }
    return shapes[name], torch_dtype(Dtype.FP32 if name == "lse" else problem.dtype.out)


def _selected_part(expected: ExpectedValues, name: str, output: Tensor, group: Group) -> Tensor:
    """[heads, rows, width]: the selected part of one group."""
    import torch

    problem, (b, kv_head) = expected.problem, group
    if problem.requests:  # packed
        queries, keys = problem.spans[b]
        output, b = output[:, :, keys if name in ("dk", "dv") else queries], 0
    if name in ("dk", "dv"):
        return output[b, kv_head : kv_head + 1]
    part = output[b, query_heads(problem, group)]
    if spans := expected.selection.spans:
        part = torch.cat([part[:, start:stop] for start, stop in spans], dim=1)
    return part[..., None] if name == "lse" else part


def _first_rows(array: NDArray[np.floating], place: int, rows: int) -> Tensor:
    """[heads, rows, ...] of the group at `place`, as float64: its rows are the first of those that the array has."""
    import torch

    return torch.from_numpy(np.array(array[place][:, :rows], dtype=np.float64))


def _unpacked(problem: Problem, name: str, index: list[int]) -> list[int]:
    """The index into a packed output as request, head, row of the request, and the rest."""
    if not problem.requests:
        return index
    of_keys = name in ("dk", "dv")
    spans = [keys if of_keys else queries for queries, keys in problem.spans]
    request = next(number for number, span in enumerate(spans) if index[2] < span.stop)
    return [request, index[1], index[2] - spans[request].start, *index[3:]]


def _spell_index(name: str, index: list[int]) -> str:
    letters = "bhkd" if name in ("dk", "dv") else "bhqd"
    return "[" + " ".join(f"{letter}{number}" for letter, number in zip(letters, index, strict=False)) + "]"
