"""What a device can do at most, as measured there by `attnbench calibrate`: the roof over every case.

Ceilings are kept in the user's cache, by machine, device and torch version, and go into the manifest of each run.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from attnbench.attention import cost
from attnbench.attention.problem import Mode, Problem
from attnbench.errors import StoreError
from attnbench.result import Record

VERSION = 1
CLOCK_MOST = 1.5  # times a compute ceiling: what clocks and better products can explain
BEATEN = 1.05  # times a measured ceiling: beyond, a row is explained


class Rate(Record, frozen=True, kw_only=True):
    """Matrix products in FLOP/s. `burst`: the fastest of short blocks after a rest; `sustained`: one second on end."""

    burst: float
    sustained: float
    size: int  # n of the n x n x n product


class Point(Record, frozen=True, kw_only=True):
    """Traffic over a working set."""

    bytes: int
    rate: float  # B/s


class Ceilings(Record, frozen=True, kw_only=True):
    """Everything that `calibrate` measures of one device."""

    version: int  # never left out
    device: str  # as `--device` says it
    name: str  # of the CPU or GPU
    measured_at: str  # UTC, ISO 8601
    seconds: float  # that it took
    torch: str
    facts: dict[str, Any] = {}  # threads, instruction set, clock, caches
    matmul: dict[str, Rate] = {}  # by dtype
    refused: dict[str, str] = {}  # what could not be measured, and why
    bandwidth: dict[str, tuple[Point, ...]] = {}  # copy, read, triad; rising working sets
    exp_per_s: float | None = None
    exp_derived: bool = False  # from the data sheet's rate and the clock
    launch_s: float | None = None  # of the smallest operation
    timer_s: float | None = None

    @property
    def memory(self) -> float | None:
        """B/s of main memory: the best kind of traffic over the largest working set."""
        return max((points[-1].rate for points in self.bandwidth.values() if points), default=None)

    def within(self, working_set: int) -> float | None:
        """B/s over a working set that stays in a cache: the best kind over the smallest measured set that holds it."""
        rates = [
            next((point.rate for point in points if point.bytes >= working_set), points[-1].rate)
            for points in self.bandwidth.values()
            if points
        ]
        return max(rates, default=None)


class Bound(StrEnum):
    """What a case cannot be faster than."""

    COMPUTE = "compute"
    MEMORY = "memory"
    EXP = "exp"


class Roof(NamedTuple):
    """The least time of a case by the ceilings, and which of them binds."""

    seconds: float
    bound: Bound


def roof(ceilings: Ceilings, problem: Problem, mode: Mode) -> Roof | None:
    """Of exact FLOPs, compulsory bytes and one exp a visible pair and pass; None where no ceiling is known.

    The roofline of Williams, Waterman and Patterson (https://doi.org/10.1145/1498765.1498785) with a third roof: the
    softmax, which no matrix unit computes (FlashAttention-3, https://arxiv.org/abs/2407.08608, section 3.1).
    """
    limits: list[tuple[float, Bound]] = []
    if rate := ceilings.matmul.get(problem.dtype.value):
        limits.append((cost.flops(problem, mode) / rate.burst, Bound.COMPUTE))
    if ceilings.memory:
        limits.append((cost.traffic_bytes(problem, mode) / ceilings.memory, Bound.MEMORY))
    if ceilings.exp_per_s:
        limits.append((cost.exponentials(problem, mode) / ceilings.exp_per_s, Bound.EXP))
    return Roof(*max(limits)) if limits else None


def beaten(ceilings: Ceilings, problem: Problem, mode: Mode, seconds: float) -> str:
    """Why a case is more than 5 % faster than its roof allows, in words; empty if it is not."""
    limit = roof(ceilings, problem, mode)
    if limit is None or limit.seconds <= BEATEN * seconds:
        return ""
    times = f"{limit.seconds / seconds:.2f}x the measured {limit.bound} ceiling"
    if limit.bound is Bound.MEMORY:
        traffic = cost.traffic_bytes(problem, mode)
        if (cached := ceilings.within(traffic)) and traffic / cached <= BEATEN * seconds:
            return f"{times}: the working set stays in a cache"
        return f"{times}: served from a cache, or the bytes are counted wrong"
    if limit.bound is Bound.EXP:
        return f"{times}: a faster exponential than the one that was measured"
    if limit.seconds / seconds < CLOCK_MOST:
        return f"{times}: a higher clock than when it was calibrated, or products faster than the library's"
    return f"{times}: the FLOPs or the time are wrong"


# -- storage -----------------------------------------------------------------------------------------------------------


def folder(fingerprint: str) -> Path:
    """Where the calibration of a machine lies."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("attnbench")) / "calibration" / fingerprint


def _file(fingerprint: str, device: str, torch: str) -> Path:
    return folder(fingerprint) / (re.sub(r"[^\w.=+-]", "_", f"{device}-torch{torch}") + ".json")


def save(fingerprint: str, ceilings: Ceilings) -> Path:
    """Keep them, in place of older ones of the same device and torch."""
    path = _file(fingerprint, ceilings.device, ceilings.torch)
    draft = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(ceilings), indent=2))
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror}") from error
    return path


def load(fingerprint: str, device: str, torch: str) -> Ceilings | None:
    """Those of a device as it is now; None if it was not calibrated, or by another version of this format."""
    try:
        return msgspec.json.decode(_file(fingerprint, device, torch).read_bytes(), type=Ceilings)
    except (OSError, msgspec.MsgspecError):
        return None
