"""A stored gate -> verdicts, without a device and with the same result each time."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from attnbench import units
from attnbench.analysis import noise_floor
from attnbench.errors import NotComparableError
from attnbench.gate import evidence, record, rule, significance, steadiness
from attnbench.gate.evidence import Pairing
from attnbench.gate.record import GateRecord
from attnbench.gate.rule import Evidence
from attnbench.records.result import Outcome, Verdict
from attnbench.records.run_directory import Run


class GateVerdicts(msgspec.Struct, frozen=True, kw_only=True):
    """The verdicts of a gate, and what a reader must know about them."""

    base: str  # names for people
    head: str
    verdicts: tuple[Verdict, ...]  # the worst first
    geomeans: dict[str, tuple[float, float, float, int]]  # by backend: ratio, its interval, cases
    margin_source: str
    doubt: str = ""  # why no case of the run, or of a node, can be judged
    notes: tuple[str, ...] = ()
    refused: int = 0  # cases that neither base nor head can run
    unchanged: int = 0  # cases that the change cannot touch, which were not measured

    @property
    def sides(self) -> str:
        """`the working tree against HEAD~1`."""
        return sides(self.base, self.head)


def sides(base: str, head: str) -> str:
    """`the working tree against HEAD~1`, from the names of both."""
    return f"{head} against {'itself (A/A)' if base == head else base}"


def judge(run: Run) -> GateVerdicts:
    """The verdicts of a stored gate.

    Raises UsageError for a run that is not a gate, NotComparableError where base fails in every case that head can run.
    """
    gate = record.of(run)
    pairs = evidence.pairings(run.results, run.manifest.ceilings)
    if reason := evidence.base_fails(pairs):
        raise NotComparableError(f"{gate.base.name} runs none of the cases, so nothing can be compared: {reason}")
    cases = cases_of(pairs, gate)
    few_cores = steadiness.too_few_cores(run.manifest.machine, {case.device for case in cases})
    doubts = rule.doubts(evidence.controls(pairs), gate.margins)
    if few_cores:
        doubts = dict.fromkeys({case.node for case in cases}, few_cores)
    verdicts = rule.verdicts(cases, gate.margins, doubts)
    timed = {(case.case_id, case.device) for case in cases}
    for pair in pairs:
        verdicts += _untested(pair, gate, timed=pair.key in timed)
    return GateVerdicts(
        base=gate.base.name,
        head=gate.head.name,
        verdicts=in_order(verdicts),
        geomeans=geomeans((case.backend, significance.interval(case.effects).value) for case in cases),
        margin_source=_margin_source(cases, gate),
        doubt="; ".join(dict.fromkeys(doubts.values())),
        notes=(
            *gate.settings.expired(gate.today),
            *_user_noise(cases, gate),
            *filter(None, [gate.changed.measured]),
            *_hidden(cases, verdicts, gate),
        ),
        refused=sum(not evidence.support(pair) and not pair.timed for pair in pairs),
        unchanged=len(gate.changed.unchanged),
    )


def _untested(pair: Pairing, gate: GateRecord, *, timed: bool) -> list[Verdict]:
    """The verdicts that need no test: support, memory, errors; `timed`: whether the rule has judged the time."""
    if verdict := evidence.support(pair):
        return [verdict]
    if not pair.timed:
        return []
    error = evidence.accuracy(pair, gate.seeds.get("@".join(pair.key), ()))
    unreadable = "no restart has a finite time of both base and head"
    time = [] if timed else [evidence.verdict(pair, "time_s", Outcome.INCONCLUSIVE, unreadable)]
    return [*time, *evidence.memory(pair), *filter(None, [error])]


RED = (Outcome.BROKEN, Outcome.MISSING, Outcome.REGRESSED)
ORDER = (*RED, Outcome.INCONCLUSIVE, Outcome.IMPROVED, Outcome.NEW, Outcome.SAME)


def in_order(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The worst outcome first, then the largest change."""
    return tuple(sorted(verdicts, key=lambda verdict: (ORDER.index(verdict.outcome), -abs(verdict.change or 0.0))))


def cases_of(pairs: Sequence[Pairing], gate: GateRecord) -> list[Evidence]:
    """The evidence on time of every case that has it, with the tolerance of the case."""
    cases = (
        evidence.of_time(pair.base, pair.head, gate.tolerance(label), gate.largest_margin(label), pair.node)
        for label, pair in ((pair.either.case.label, pair) for pair in pairs)
    )
    return [case for case in cases if case]


def _margin_source(cases: Sequence[Evidence], gate: GateRecord) -> str:
    """Where the margins come from, for people; `_user_noise` has those of users' kernels."""
    of_users = {case.backend in gate.noise.user_backends for case in cases}
    if of_users == {True}:
        return "the tolerance and the noise of users' kernels on this machine"
    kernels = "the libraries' kernels on this machine" if True in of_users else "this machine"
    return f"the tolerance and {_noise(gate.noise.factor, gate.noise.runs, kernels)}"


def _noise(factor: float, runs: int, kernels: str) -> str:
    """The noise that `runs` A/A runs of these kernels show."""
    times = _times_normal(factor)
    if times > 1:
        return f"{times:.1f} times normal noise, the 99th percentile of {_aa_runs(runs)} of {kernels}"
    known = f", and {runs} A/A runs of {kernels} show no more"
    if not factor:
        known = f" ({_aa_runs(runs)} of {kernels}, {noise_floor.ENOUGH} are needed to know more)"
    return f"normal noise with the spread of the case{known}"


def _times_normal(factor: float) -> float:
    """How many times normal noise so many standard errors are."""
    return factor / noise_floor.normal_factor(noise_floor.COMMON_RESTARTS)


def _hidden(cases: Sequence[Evidence], verdicts: Sequence[Verdict], gate: GateRecord) -> list[str]:
    """A note on the largest slowdown that the cases may hide that neither regressed nor are plainly slower."""
    shown = {
        (verdict.case_id, verdict.device)
        for verdict in verdicts
        if verdict.outcome is Outcome.REGRESSED
        or (verdict.interval and verdict.interval[0] > gate.tolerance(verdict.label))
    }
    left = [case for case in cases if (case.case_id, case.device) not in shown]
    hidden = rule.hidden(left, gate.margins)
    if hidden is None:
        return []
    if not math.isfinite(hidden[0]):
        return [f"a slowdown of any size may be hidden: {hidden[1]} has a single restart"]
    if len(left) == 1:  # its interval says it: one case has one figure
        ends = {f"{each.case_id}@{each.device}": each.interval for each in verdicts if each.interval}
        largest = units.in_percent(max(ends[left[0].key][1], 0.0))
        return [f"the largest slowdown that may be hidden, the upper end of its 95 % interval: {largest} ({hidden[1]})"]
    largest = units.in_percent(max(hidden[0], 0.0))
    return [f"the largest slowdown that may be hidden, with 95 % confidence for all cases: {largest} ({hidden[1]})"]


def _user_noise(cases: Sequence[Evidence], gate: GateRecord) -> list[str]:
    """Notes on users' kernels by class of duration: runs behind its noise floor, and what is used without it."""
    of_class = {entry.shortest_s: entry for entry in gate.noise.user}
    measured = [case for case in cases if case.backend in gate.noise.user_backends]
    notes, few = [], {}
    for shortest in sorted({noise_floor.class_of(case.base_s) for case in measured}):
        entry, name = of_class.get(shortest), noise_floor.class_name(shortest)
        if entry and entry.factor:
            noise = _noise(entry.factor, entry.runs, "such kernels")
            notes.append(f"noise of users' kernels, calls {name}: {noise}")
        else:
            few[name] = entry.runs if entry else 0
    if few:
        times = _times_normal(gate.noise.factor)
        used = f"that of the libraries' kernels is used, {times:.1f} times" if times > 1 else "it is taken as"
        *others, last = few.values()
        known = "".join(f"{number}, " for number in others) + _aa_runs(last)
        needed = f"{known} of such kernels, {noise_floor.ENOUGH} are needed"
        notes.append(f"noise of users' kernels, calls {', '.join(few)}: {needed}; {used} normal")
    return notes


def _aa_runs(number: int) -> str:
    return units.counted(number, "A/A run")


def geomeans(changes: Iterable[tuple[str, float]]) -> dict[str, tuple[float, float, float, int]]:
    """The geometric mean of the ratios with its interval, and their number, by backend; `changes` are logarithms."""
    by_backend: dict[str, list[float]] = {}
    for backend, change in changes:
        by_backend.setdefault(backend, []).append(change)
    return {name: (*significance.geometric_mean(values), len(values)) for name, values in by_backend.items()}
