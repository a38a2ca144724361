"""All restarts of one (case, arm): what every derived number is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TypeVar

from attnbench.analysis import parallel, readings, stats
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice, RooflineBound, explain_faster, roofline_bound
from attnbench.analysis.stats import Estimate
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import UnknownNameError
from attnbench.records.arm import Arm, distinct_names
from attnbench.records.case import problem_label
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Result, Sample, Status
from attnbench.records.results_file import Lines

MIN_POOLED = 1000  # results of a file from which further processes pay off
# The status of a case whose restarts ended differently is the first of these.
WORST_FIRST = (
    Status.INCORRECT,
    Status.CRASHED,
    Status.ERROR,
    Status.TIMEOUT,
    Status.OOM,
    Status.UNAVAILABLE,
    Status.UNSUPPORTED,
    Status.OK,
    Status.SKIPPED,
)


class Restarts:
    """All restarts of one (case, arm), and those of the reference arm that its speed-up is relative to.

    Times are None unless every restart that was tried is ok. Counts that follow from the problem, and error figures,
    are available for every status.
    """

    def __init__(
        self, results: Sequence[Result], reference: Sequence[Result] = (), ceilings: Ceilings | None = None,
        name: str = "",
    ) -> None:  # fmt: skip
        self.results = tuple(sorted(results, key=lambda result: result.restart))
        self.reference_results = tuple(sorted(reference, key=lambda result: result.restart))
        self.case, self.arm = self.results[0].case, self.results[0].arm
        self.ceilings = ceilings  # of its device, where they were measured
        self.name = name or self.arm.name  # of the arm; distinct among the arms of its device

    @property
    def label(self) -> str:
        """The case with its arm and device, which no other case of the run has."""
        return f"{problem_label(self.case.problem, self.case.mode)} {self.name}@{self.arm.device}"

    @cached_property
    def worst(self) -> Result:
        """The restart that determines status and reason. A skipped restart does not override measured ones."""
        return min(self.results, key=lambda result: WORST_FIRST.index(result.status))

    @property
    def status(self) -> Status:
        """ok if every restart that was tried is ok, else the worst."""
        return self.worst.status

    @property
    def count(self) -> int:
        """How many restarts were measured."""
        return len(self.times)

    @cached_property
    def times(self) -> list[Sample]:
        """One Sample per restart; empty unless the status is ok."""
        if self.status is not Status.OK:
            return []
        return [result.samples["time"] for result in self.results if "time" in result.samples]

    @cached_property
    def time(self) -> Estimate | None:
        """Seconds per call."""
        return stats.estimate(self.times)

    @property
    def noisy(self) -> bool:
        """Whether any restart was noisy."""
        return any(readings.is_noisy(sample) for sample in self.times)

    @cached_property
    def speedup(self) -> Estimate | None:
        """The reference arm's time over this one's, paired by round; None where they share no rounds."""
        pairs = self._pairs
        return stats.ratio(pairs) if pairs else None

    @property
    def quotient_outside(self) -> bool:
        """Whether the times of the reference arm and of this one divide to a value outside the speed-up's interval."""
        if self.results == self.reference_results:
            return False
        reference = Restarts(self.reference_results).time if self.reference_results else None
        if not self.speedup or not self.time or not reference:
            return False
        return stats.quotient_outside(reference.value, self.time.value, self.speedup.low, self.speedup.high)

    @property
    def _pairs(self) -> list[stats.Pair]:
        """The Samples of the reference arm and of this one by restart; empty unless they share rounds in every one."""
        by_restart = {result.restart: result for result in self.reference_results}
        pairs = [pair for result in self.results if (pair := _paired(by_restart.get(result.restart), result))]
        return pairs if len(pairs) == len(self.times) else []

    @cached_property
    def roofline(self) -> RooflineBound | None:
        """The least time that the measured ceilings of the device allow."""
        return roofline_bound(self.ceilings, self.case.problem, self.case.mode) if self.ceilings else None

    @cached_property
    def faster_than_roofline(self) -> str:
        """The likely reason, where the time is more than 5 % below that bound; else empty."""
        if self.ceilings is None or self.time is None or self.time.value <= 0:
            return ""
        return explain_faster(self.ceilings, self.case.problem, self.case.mode, self.time.value)

    @property
    def reference(self) -> str | None:
        """The id of the arm that `speedup` is relative to."""
        if self.reference_results:
            return self.reference_results[0].arm.id
        return next((str(r.facts["reference"]) for r in self.results if "reference" in r.facts), None)

    def ratio_to(self, other: Restarts) -> Estimate | None:
        """The time of any other arm on the same problem over this one's, as in `speedup`."""
        if other.results == self.reference_results:
            return self.speedup
        return Restarts(self.results, other.results).speedup

    def comparable(self, other: Restarts) -> bool:
        """Whether both share rounds, directly or each with the reference arm."""
        return bool(Restarts(self.results, other.results)._pairs or (self._pairs and other._pairs))


def _paired(reference: Result | None, result: Result) -> stats.Pair | None:
    """The Samples of reference and arm that share rounds: of one group, or of a reference arm that joined it."""
    if "time" not in result.samples:
        return None
    borrowed = result.samples.get("reference_time")
    if borrowed is not None and (reference is None or result.facts.get("reference") == reference.arm.id):
        return borrowed, result.samples["time"]
    lent = reference.samples.get("reference_time") if reference else None
    if reference and lent is not None and reference.facts.get("reference") == result.arm.id:
        return reference.samples["time"], lent  # the result is that of the reference arm that joined the other one
    if reference is not None and result.group and reference.group == result.group and "time" in reference.samples:
        return reference.samples["time"], result.samples["time"]
    return None


T = TypeVar("T")
Compute = Callable[[list[Restarts]], Iterable[T]]  # one value per arm
Group = dict[int, list[int]]  # of one problem on one device: each arm's position in the output -> indices of results


def join(
    results: Sequence[Result], reference: str | None = None, ceilings: CeilingsByDevice = NO_CEILINGS,
    arms: Iterable[Arm] = (),
) -> list[Restarts]:  # fmt: skip
    """The restarts of each (case, arm), in order of appearance. Of several results with one key the last counts."""
    return map_problems(results, lambda restarts: restarts, reference, ceilings, arms)


def map_problems(
    results: Sequence[Result],
    compute: Compute[T],
    reference: str | None = None,
    ceilings: CeilingsByDevice = NO_CEILINGS,
    arms: Iterable[Arm] = (),
) -> list[T]:
    """Apply `compute` to the arms of each problem on each device; return its values in order of appearance.

    `compute` returns one value per arm. `reference` names the arm that speed-ups are relative to, in place of the arm
    that the results name. `arms` are those of the whole sweep, so that names do not depend on how much of it has run.
    Results that are not in memory are read one problem at a time, and many of them on all cores.
    """
    heads = results.heads if isinstance(results, Lines) else results
    groups = _groups(heads)
    references = {head.arm.device: str(head.facts["reference"]) for head in heads if "reference" in head.facts}

    names = distinct_names((*arms, *{head.arm.id: head.arm for head in heads}.values()))

    def is_reference(arm: Arm) -> bool:
        return reference in (names[arm.id], arm.name) if reference else arm.id == references.get(arm.device)

    if reference and heads and not any(is_reference(head.arm) for head in heads):
        known = dict.fromkeys(names[head.arm.id] for head in heads)
        raise UnknownNameError("arm", reference, known, where="--reference")

    def values_of(group: Group) -> list[T]:
        of_group = [[results[index] for index in indices] for indices in group.values()]
        relative_to = next((restarts for restarts in reversed(of_group) if is_reference(restarts[0].arm)), ())
        of_device = ceilings.get(of_group[0][0].arm.device)
        joined = [Restarts(restarts, relative_to, of_device, names[restarts[0].arm.id]) for restarts in of_group]
        return list(compute(joined))

    pooled = isinstance(results, Lines) and len(results) >= MIN_POOLED
    values = parallel.share(values_of, groups, pooled=pooled)
    by_position: dict[int, T] = {}
    for group, group_values in zip(groups, values, strict=True):
        by_position |= zip(group, group_values, strict=True)
    return [by_position[position] for position in range(len(by_position))]


def _groups(heads: Sequence[Result]) -> list[Group]:
    """The results of each problem on each device. Of several with one key the last counts."""
    problems: dict[tuple[Problem, Mode, str], Group] = {}
    positions: dict[tuple[Problem, Mode, str], int] = {}
    for index in {(head.case, head.arm.id, head.restart): index for index, head in enumerate(heads)}.values():
        case, arm = heads[index].case, heads[index].arm
        group = problems.setdefault((case.problem, case.mode, arm.device), {})
        position = positions.setdefault((case.problem, case.mode, arm.id), len(positions))
        group.setdefault(position, []).append(index)
    return list(problems.values())
