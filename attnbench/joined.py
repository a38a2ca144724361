"""All launches of one (case, arm), joined: what every derived number is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from attnbench import ceilings as roofs
from attnbench import stats
from attnbench.ceilings import Ceilings, Roof
from attnbench.result import Result, Sample, Status
from attnbench.stats import Estimate

# The worst first: what a case says of itself when its launches ended differently.
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


class Joined:
    """All launches of one (case, arm), and those of the arm that its speed-up is against.

    Times are None unless every launch that was tried is ok; counts of the problem and error figures are always there.
    """

    def __init__(
        self, results: Sequence[Result], partner: Sequence[Result] = (), ceilings: Ceilings | None = None
    ) -> None:
        self.results = tuple(sorted(results, key=lambda result: result.launch))
        self.partner = tuple(sorted(partner, key=lambda result: result.launch))
        self.case, self.arm = self.results[0].case, self.results[0].arm
        self.ceilings = ceilings  # of its device, where they were measured

    @cached_property
    def worst(self) -> Result:
        """The launch that gives status and reason. One that was skipped does not undo those that were measured."""
        return min(self.results, key=lambda result: WORST_FIRST.index(result.status))

    @property
    def status(self) -> Status:
        """ok if every launch that was tried is, else the worst."""
        return self.worst.status

    @property
    def launches(self) -> int:
        """How many of them were measured."""
        return len(self.times)

    @cached_property
    def times(self) -> list[Sample]:
        """One Sample a launch; empty unless all went well."""
        if self.status is not Status.OK:
            return []
        return [result.samples["time"] for result in self.results if "time" in result.samples]

    @cached_property
    def time(self) -> Estimate | None:
        """Seconds a call."""
        return stats.estimate(self.times)

    @property
    def noisy(self) -> bool:
        """Whether any launch was."""
        return any(stats.is_noisy(sample) for sample in self.times)

    @cached_property
    def speedup(self) -> Estimate | None:
        """The partner's time over this one's, paired by round where both were in the same rounds."""
        if not self.times:
            return None
        by_launch = {result.launch: result for result in self.partner}
        pairs = [pair for own in self.results if (pair := _paired(by_launch.get(own.launch), own))]
        if len(pairs) == len(self.times):
            return stats.ratio(pairs)
        reference = Joined(self.partner).time if self.partner else None
        return stats.unpaired_ratio(reference, self.time) if reference and self.time else None

    @cached_property
    def roof(self) -> Roof | None:
        """The least time that the measured ceilings of the device allow."""
        return roofs.roof(self.ceilings, self.case.problem, self.case.mode) if self.ceilings else None

    @cached_property
    def beyond_roof(self) -> str:
        """Why it is faster than that, if it is by more than 5 %."""
        if self.ceilings is None or self.time is None or self.time.value <= 0:
            return ""
        return roofs.beaten(self.ceilings, self.case.problem, self.case.mode, self.time.value)

    @property
    def reference(self) -> str | None:
        """The id of the arm that `speedup` is against."""
        if self.partner:
            return self.partner[0].arm.id
        return next((str(r.facts["reference"]) for r in self.results if "reference" in r.facts), None)

    def ratio_to(self, other: Joined) -> Estimate | None:
        """As `speedup`, against any arm that measured the same problem."""
        return Joined(self.results, other.results).speedup


def _paired(reference: Result | None, own: Result) -> stats.Pair | None:
    """The two Samples of one launch that share rounds: taken side by side, or beside a borrowed reference arm."""
    if "time" not in own.samples:
        return None
    if reference is not None and own.group and reference.group == own.group and "time" in reference.samples:
        return reference.samples["time"], own.samples["time"]
    borrowed = own.samples.get("reference_time")
    if borrowed is None or (reference is not None and own.facts.get("reference") != reference.arm.id):
        return None
    return borrowed, own.samples["time"]
