"""The roofline bound: the least time that the measured ceilings of a device allow, and why a case beats it.

The roofline model of Williams, Waterman and Patterson (https://doi.org/10.1145/1498765.1498785) with a third ceiling:
the exponentials of the softmax, which no matrix unit computes (FlashAttention-3, https://arxiv.org/abs/2407.08608,
section 3.1).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records import ceilings as stored_ceilings
from attnbench.records.ceilings import Ceilings
from attnbench.records.run_directory import Manifest

CeilingsByDevice = Mapping[str, Ceilings]
NO_CEILINGS: CeilingsByDevice = {}

MAX_CLOCK_GAIN = 1.5  # times a compute ceiling: what a higher clock and better products can explain
TOLERANCE = 1.05  # a case that is faster than its bound by more than this factor gets an explanation


class Bound(StrEnum):
    """The resource that limits a case."""

    COMPUTE = "compute"
    MEMORY = "memory"
    EXP = "exp"


class RooflineBound(NamedTuple):
    """The least time of a case, and the resource that limits it."""

    seconds: float
    bound: Bound


def roofline_bound(ceilings: Ceilings, problem: Problem, mode: Mode) -> RooflineBound | None:
    """From exact FLOPs, compulsory bytes, and one exponential per visible pair and pass.

    None where no ceiling of these was measured.
    """
    limits: list[tuple[float, Bound]] = []
    if rate := ceilings.matmul.get(problem.dtype.value):
        limits.append((cost.flops(problem, mode) / rate.burst, Bound.COMPUTE))
    if ceilings.memory:
        limits.append((cost.traffic_bytes(problem, mode) / ceilings.memory, Bound.MEMORY))
    if ceilings.exp_per_s:
        limits.append((cost.exponentials(problem, mode) / ceilings.exp_per_s, Bound.EXP))
    return RooflineBound(*max(limits)) if limits else None


def above_ceiling(ceilings: Ceilings, problem: Problem, mode: Mode, seconds: float) -> bool:
    """Whether the rate of products, or that of the memory or cache which holds the tensors, is above its ceiling."""
    rate, traffic = ceilings.matmul.get(problem.dtype.value), cost.traffic_bytes(problem, mode)
    bandwidth = ceilings.within(traffic)
    least = max(cost.flops(problem, mode) / rate.burst if rate else 0.0, traffic / bandwidth if bandwidth else 0.0)
    return least > TOLERANCE * seconds


def explain_faster(ceilings: Ceilings, problem: Problem, mode: Mode, seconds: float) -> str:
    """The likely reason why a case is more than 5 % faster than its roofline bound; empty if it is not.

    Also empty where the ceilings were disturbed: then they are the likely reason, and the row says so.
    """
    limit = roofline_bound(ceilings, problem, mode)
    if limit is None or ceilings.disturbed or limit.seconds <= TOLERANCE * seconds:
        return ""
    times = f"{limit.seconds / seconds:.2f}x the measured {limit.bound} ceiling"
    if limit.bound is Bound.MEMORY:
        traffic = cost.traffic_bytes(problem, mode)
        if (cached := ceilings.within(traffic)) and traffic / cached <= TOLERANCE * seconds:
            return f"{times}: the working set stays in a cache"
        return f"{times}: served from a cache, or the bytes are counted wrong"
    if limit.bound is Bound.EXP:
        return f"{times}: a faster exponential than the one that was measured"
    if limit.seconds / seconds < MAX_CLOCK_GAIN:
        return f"{times}: a higher clock than when it was calibrated, or products faster than the library's"
    return f"{times}: the FLOPs or the time are wrong"


def disturbances(ceilings: CeilingsByDevice) -> list[str]:
    """A sentence for each device whose ceilings were disturbed while they were measured."""
    return [f"Ceilings of {device}: {known.disturbance}." for device, known in ceilings.items() if known.disturbed]


def ceilings_by_device(manifest: Manifest) -> CeilingsByDevice:
    """The ceilings of a run's devices: those that its manifest holds, else those that were calibrated since."""
    ceilings: dict[str, Ceilings] = dict(manifest.ceilings)
    for arm in manifest.arms:
        environment = manifest.environments.get(arm.id)
        if arm.device not in ceilings and environment:
            torch = environment.packages.get("torch", "")
            if calibrated := stored_ceilings.load(manifest.fingerprint, arm.device, torch):
                ceilings[arm.device] = calibrated
    return ceilings
