"""A stored run against a stored baseline: a weaker test than side by side, since every change between them looks alike.

Two runs are comparable if machine and procedure are the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np

from attnbench import suite, units
from attnbench.analysis import readings
from attnbench.analysis.noise_floor import BETWEEN_RUNS
from attnbench.analysis.restarts import Restarts, join
from attnbench.analysis.stats import t_quantile
from attnbench.errors import NotComparableError, StoreError, UsageError
from attnbench.gate import baselines, evidence, record, rule, significance
from attnbench.gate.evidence import Pairing
from attnbench.gate.judgement import GateVerdicts, geomeans, in_order
from attnbench.gate.record import Settings
from attnbench.gate.significance import Interval
from attnbench.records import run_directory
from attnbench.records.result import Outcome, Verdict, procedure_differences
from attnbench.records.run_directory import Run

QUANTILE = 0.99
NOISE_FACTOR = 1.25  # the margin over the noise between days


def base_of(name: str, fingerprint: str) -> Run:
    """The run of that name or path, else the baseline of that name for this machine."""
    try:
        path = run_directory.resolve(name, run_directory.results_root())
    except StoreError:
        return baselines.find(name, fingerprint)
    return run_directory.read(path)


def against(head: Run, base: Run) -> GateVerdicts:
    """The verdicts by the current `[gate]` tables of head's suites, with the noise that the stored baselines show."""
    others = []
    for path, _ in baselines.every():
        with contextlib.suppress(StoreError):  # a baseline of another format only tells nothing of the noise
            others.append(run_directory.read(path))
    return judge(head, base, _settings(head), datetime.now(UTC).date(), others)


def _settings(head: Run) -> Settings:
    tables = [record.DEFAULT_SETTINGS]
    for name in head.manifest.request.get("suites", ()):
        try:
            file = suite.load(name)
        except UsageError:  # the suite may have been deleted since
            continue
        tables += [record.read_settings(file.gate, file.gate_file)] if file.gate else []
    return tables[-1]


class TimedCase(NamedTuple):
    """One case that both runs measured, with Welch's test of its times."""

    pair: Pairing
    margin: float  # in logarithms
    largest: float  # the widest margin with which it may be called the same, in logarithms
    difference: Difference


class Difference(NamedTuple):
    """The difference of two means of logarithms."""

    interval: Interval  # 95 %
    error: float  # standard error
    freedom: float  # Welch's degrees of freedom; 0 where one side has a single restart

    def p_above(self, margin: float) -> float:
        """The p-value of H0: the difference is at most the margin."""
        return self._p(self.interval.value - margin)

    def p_below(self, margin: float) -> float:
        """The p-value of H0: the difference is at least minus the margin."""
        return self._p(-self.interval.value - margin)

    def _p(self, beyond: float) -> float:
        from scipy.special import stdtr

        if not self.freedom:
            return 1.0
        if self.error == 0:
            return 0.0 if beyond > 0 else 1.0
        return float(stdtr(self.freedom, -beyond / self.error))


def judge(head: Run, base: Run, gate: Settings, today: date, others: Iterable[Run] = ()) -> GateVerdicts:
    """Every verdict. `others`: further runs; two of one commit on different days show the noise between days.

    Raises NotComparableError where machine or procedure differ, and where the runs have no case in common.
    """
    _check_comparable(head, base)
    pairs = _pairs(head, base, gate.alias)
    if not any(pair.base and pair.head for pair in pairs):
        raise NotComparableError(f"{head.path.name} and {base.path.name} have no case in common")
    between, source = _between_days([base, *others])
    cases = []
    for pair in filter(_timed, pairs):
        label = pair.either.case.label
        tolerance = max(gate.tolerance_of(label, today), NOISE_FACTOR * between)
        share = gate.largest_margin(label, today)
        largest = math.inf if share is None else math.log1p(share)
        cases.append(TimedCase(pair, math.log1p(tolerance), largest, _difference(pair)))
    verdicts = _verdicts(cases)
    for pair in pairs:
        if support := evidence.support(pair):
            verdicts.append(support)
        elif _timed(pair):
            verdicts += evidence.memory(pair)
    return GateVerdicts(
        base=f"{base.path.name} of {base.manifest.created_at}",
        head=f"{head.path.name} of {head.manifest.created_at}",
        verdicts=in_order(verdicts),
        geomeans=geomeans((case.pair.either.case.backend, case.difference.interval.value) for case in cases),
        margin_source=f"stored baseline, weaker than side by side: {source}",
        notes=tuple(gate.expired(today)),
        refused=sum(not evidence.support(pair) and not _timed(pair) for pair in pairs),
    )


def _difference(pair: Pairing) -> Difference:
    assert pair.head
    assert pair.base
    return welch(_logs(pair.head), _logs(pair.base))


def welch(above: Sequence[float], below: Sequence[float]) -> Difference:
    """The difference of the means of two samples of logarithms, by Welch's t (1947)."""
    sides = [np.asarray(values, dtype=np.float64) for values in (above, below)]
    value = float(sides[0].mean() - sides[1].mean())
    if min(map(len, sides)) < 2:
        return Difference(Interval(value=value), math.nan, 0.0)
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    error = math.sqrt(sum(parts))
    squares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = sum(parts) ** 2 / squares if error else float(sum(map(len, sides)) - 2)
    half = t_quantile(freedom) * error
    return Difference(Interval(value=value, low=value - half, high=value + half, sd=error), error, freedom)


def _verdicts(cases: Sequence[TimedCase]) -> list[Verdict]:
    slower = significance.holm(dict(enumerate(case.difference.p_above(case.margin) for case in cases)))
    faster = significance.holm(dict(enumerate(case.difference.p_below(case.margin) for case in cases)))
    return [_verdict(case, slower[index], faster[index]) for index, case in enumerate(cases)]


def _verdict(case: TimedCase, p_slower: float, p_faster: float) -> Verdict:
    base, head, change = case.pair.base, case.pair.head, case.difference.interval
    assert base
    assert head
    assert base.time
    assert head.time
    outcome, reason = _outcome(case, p_slower, p_faster)
    if impossible := evidence.impossible_time(base, head):
        outcome, reason = Outcome.INCONCLUSIVE, impossible
    return Verdict(
        case_id=head.case.id, label=head.case.label, device=head.arm.device, backend=head.case.backend,
        metric="time_s", outcome=outcome, base=base.time.value, head=head.time.value,
        change=math.expm1(change.value), interval=change.relative if case.difference.freedom else None,
        margin=math.expm1(case.margin), restarts=min(base.count, head.count), p=min(p_slower, p_faster),
        reason=reason,
    )  # fmt: skip


def _outcome(case: TimedCase, p_slower: float, p_faster: float) -> tuple[Outcome, str]:
    """The outcome, and why it is open where it is."""
    if p_slower < rule.ALPHA:
        return Outcome.REGRESSED, ""
    if p_faster < rule.ALPHA:
        return Outcome.IMPROVED, ""
    if case.difference.interval.high < case.margin:
        if case.margin <= case.largest:
            return Outcome.SAME, ""
        return Outcome.INCONCLUSIVE, "its margin is above max_margin: gate side by side with --base-ref"
    if case.difference.freedom:
        return Outcome.INCONCLUSIVE, "its interval reaches the margin: gate side by side with --base-ref"
    reason = "the spread between restarts is not known from one restart: measure with --restarts 6"
    return Outcome.INCONCLUSIVE, reason


def _logs(restarts: Restarts) -> list[float]:
    times = (readings.location(readings.block_medians(sample)) for sample in restarts.times)
    return [math.log(time) for time in times if time]


def _timed(pair: Pairing) -> bool:
    return bool(pair.base and pair.head and _logs(pair.base) and _logs(pair.head))


def _pairs(head: Run, base: Run, alias: Mapping[str, str]) -> list[Pairing]:
    """Cases by label, arm and device; a renamed case is paired with the one that had its earlier label."""
    before = {_key(restarts): restarts for restarts in join(base.results, ceilings=base.manifest.ceilings)}
    pairs = []
    for restarts in join(head.results, ceilings=head.manifest.ceilings):
        label, name, device = _key(restarts)
        pairs.append(Pairing(base=before.pop((alias.get(label, label), name, device), None), head=restarts))
    return [*pairs, *(Pairing(base=restarts) for restarts in before.values())]


def _key(restarts: Restarts) -> tuple[str, str, str]:
    return restarts.case.label, restarts.arm.name, restarts.arm.device


def _check_comparable(head: Run, base: Run) -> None:
    now, then = head.manifest, base.manifest
    names = f"{head.path.name} and {base.path.name}"
    if not now.same_machine(then):
        raise NotComparableError(f"{names} are of two machines ({now.machine_id}, {then.machine_id})")
    if differences := procedure_differences(then.procedures, now.procedures):
        raise NotComparableError(f"{names} were measured differently ({'; '.join(differences)})")


def _between_days(runs: Sequence[Run]) -> tuple[float, str]:
    """The 99th percentile of the differences between runs of one commit on different days, a share; and its source."""
    apart: list[float] = []
    for index, run in enumerate(runs):
        for other in runs[:index]:
            if _same_code(run, other):
                apart += [abs(_difference(pair).interval.value) for pair in _pairs(run, other, {}) if _timed(pair)]
    if not apart:
        assumed = f"no two runs of one commit show the noise between days, {100 * BETWEEN_RUNS:.0f} % is assumed"
        return BETWEEN_RUNS, assumed
    value = math.expm1(float(np.quantile(apart, QUANTILE)))
    cases = units.counted(len(apart), "case")
    return value, f"runs of one commit on different days differ by up to {units.margin(value)} ({cases})"


def _same_code(run: Run, other: Run) -> bool:
    first, second = run.manifest, other.manifest
    return bool(
        first.commit and second.commit and first.commit.get("commit") == second.commit.get("commit")
        and not first.commit.get("dirty") and not second.commit.get("dirty")
        and first.same_machine(second) and first.created_at[:10] != second.created_at[:10]
    )  # fmt: skip
