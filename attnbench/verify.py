"""Is an output right? Expected values, computed once for a problem and shared by files, and the rule that judges them.

The rule follows flash-attention's tests: an output may be twice as far from the float64 reference as a plain formula
in the same dtype is, plus what rounding alone explains. Such a bound is loose where a few large numbers set it, so the
root mean square is bounded as well, over everything and over every tile of 16 rows: one wrong tile is no small error.
https://github.com/Dao-AILab/flash-attention/blob/main/tests/cute/test_flash_attn.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from attnbench.attention.blocks import Group, query_heads
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Dtype, Problem, Scope
from attnbench.expectation import (
    DROPPED,
    FACTOR,
    PRECISION,
    TILE,
    Expected,
    Record,
    Tolerance,
    expect,
    load,
    select,
    tile_rms,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Error", "Expected", "Judgement", "expect", "judge", "load", "select"]


class Error(Record, frozen=True, kw_only=True):
    """How far one output is from the reference. None: not finite, or a reference that is zero throughout."""

    max_abs: float | None = None
    mean_abs: float | None = None
    rms: float | None = None
    rel: float | None = None  # rms over that of the reference
    budget: float | None = None  # of max_abs
    plain_max: float | None = None  # errors of the plain formula in the same dtype
    plain_mean: float | None = None
    plain_rms: float | None = None
    nan: int = 0  # how many numbers are not finite, where they should be
    inf: int = 0


class Judgement(Record, frozen=True, kw_only=True):
    """Whether all outputs are right; if not, the first reason, for whoever wrote the kernel."""

    ok: bool
    reason: str = ""
    errors: dict[str, Error] = {}


def judge(expected: Expected, outputs: Mapping[str, Tensor], sign: int = 1, factor: float = FACTOR) -> Judgement:
    """Judge `out`, `lse`, `dq`, `dk`, `dv`, or those of them that there are; [batch, heads, seq, width] on any device.

    `sign=-1` expects the outputs of negated inputs: see `negates`.
    """
    errors: dict[str, Error] = {}
    reasons = []
    for name, output in outputs.items():
        errors[name], reason = _judge_one(expected, name, output, sign, factor)
        reasons += [f"{name}: {reason}"] if reason else []
    if not outputs:
        reasons = ["no output to judge"]
    return Judgement(ok=not reasons, reason=reasons[0] if reasons else "", errors=errors)


def negates(problem: Problem) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs that are negated together, and the outputs that then turn their sign, exactly.

    All of them, where the logits stay as they are; else v and dout, in which everything is linear. A layer is odd in
    nothing: its inputs stay.
    """
    if problem.scoped[0] is Scope.LAYER:
        return (), ()
    if problem.is_even:
        return ("q", "k", "v", "dout"), ("out", "dq", "dk", "dv")
    return ("v", "dout"), ("out", "dv")


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
        error = Error(nan=int(output.isnan().sum()), inf=int((bad & ~output.isnan()).sum()))
        return error, f"{value} at {_at(name, where)}, not finite in {int(bad.sum())} of {bad.numel()} numbers"
    if expected.problem.dropout and name != "lse":
        return Error(), _judge_dropped(expected, name, output, sign) if name in DROPPED else ""
    tolerance = expected.tolerances[name]
    found = _Errors(expected, name, tolerance, factor)
    for place, group in enumerate(expected.selection.groups):
        part = _part(expected, name, output, group).to("cpu", torch.float64)
        found.add(place, group, part * sign if name in negates(expected.problem)[1] else part)
    return found.error, found.reason


def _judge_dropped(expected: Expected, name: str, output: Tensor, sign: int) -> str:
    """What speaks against an output of which a call drops a share of the weights; empty: nothing.

    Without dropout the output would be the mean of all such calls. A dropped weight is a factor of mean 1 and variance
    r / (1 - r), drawn for each by itself: so a row is off by that times its mass, in the mean of squares, and the rows
    together follow the reference with the slope 1. Bounds are six standard errors wide.
    """
    import torch

    rate = expected.problem.dropout
    variance = rate / (1 - rate)
    # The fourth moment of a factor over the square of its variance; of a sum of many it tends to 3.
    kurtosis = max(3.0, (rate + rate**4 / (1 - rate) ** 3) / variance**2)
    truth, rows, spread = [], [], []
    for place, group in enumerate(expected.selection.groups):
        truth.append(torch.from_numpy(np.array(expected.array(name)[place], dtype=np.float64)).flatten(0, 1))
        rows.append(_part(expected, name, output, group).to("cpu", torch.float64).flatten(0, 1) * sign)
        mass = torch.from_numpy(np.array(expected.array(f"{name}.mass")[place], dtype=np.float64))
        spread.append(mass.flatten().square() * variance)
    wanted, found, due = torch.cat(truth), torch.cat(rows), torch.cat(spread)
    off = (found - wanted).square().mean(-1)
    rounding = (PRECISION[expected.problem.dtype].cap * wanted.square().mean(-1).sqrt()).square()
    if (wild := off > (40 + 4 / variance) * due + 4 * rounding).any():
        return f"a row is off by {float(off[wild].max().sqrt()):.3g}, more than dropout {rate:g} explains"
    total = float(due.sum()) or 1.0
    share, error = float(off.sum()) / total, math.sqrt((kurtosis - 1) * float(due.square().sum())) / total
    allowed = 6 * error + 0.02 + float(rounding.sum()) / total
    if not abs(share - 1) <= allowed:
        return f"the variance over rows is {share:.3g} times that of dropout {rate:g}, allowed are {allowed:.2g} from 1"
    size = float(wanted.square().sum())
    slope = float((found * wanted).sum()) / size if size else 1.0
    width = wanted.shape[-1]
    error = math.sqrt(float((due * width * wanted.square().sum(-1)).sum())) / size if size else 0.0
    allowed = 6 * error + 0.01
    if not abs(slope - 1) <= allowed:
        return f"the mean is {slope:.3g} times that without dropout, allowed are {allowed:.2g} from 1"
    return ""


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
        return self.factor * (self.tolerance.yardstick_max + self.tolerance.loose) + self.tolerance.rounding

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
        found = tile_rms(error)
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
        numbers, tolerance = max(1, self.numbers), self.tolerance
        rms = (self.squares / numbers) ** 0.5
        return Error(
            max_abs=self.worst,
            mean_abs=self.total / numbers,
            rms=rms,
            rel=rms / tolerance.rms if tolerance.rms else None,
            budget=self.budget,
            plain_max=tolerance.yardstick_max,
            plain_mean=tolerance.yardstick_mean,
            plain_rms=tolerance.yardstick_rms,
        )

    @property
    def reason(self) -> str:
        """The first rule that is broken, or nothing."""
        if self.name == "lse":
            return self.odd
        numbers = max(1, self.numbers)
        rms, allowed = (self.squares / numbers) ** 0.5, self.factor * self.tolerance.rms_error
        mean = self.factor * self.tolerance.yardstick_mean + self.tolerance.rounding
        mean += allowed if self.tolerance.loose else 0.0
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
        "weights": (*queries, problem.seq_kv),
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
