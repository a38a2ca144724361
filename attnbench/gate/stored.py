"""A stored run against a stored baseline: weaker than side by side, since all that changed between them looks alike.

Comparable are runs of one machine, one procedure, and one set of package versions but for what is named as under test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime

import numpy as np

from attnbench import frame, stats, store, suite
from attnbench.errors import NotComparableError, StoreError, UsageError
from attnbench.gate import baselines, evidence, rule, settings
from attnbench.gate.evidence import Pairing
from attnbench.gate.judgement import Judged, in_order
from attnbench.gate.rule import Interval
from attnbench.gate.settings import Settings
from attnbench.joined import Joined
from attnbench.result import Outcome, Status, Verdict
from attnbench.store import Run

ASSUMED = 0.10  # between runs on different days, where nothing tells it
QUANTILE = 0.99
SAME = ("timing", "cache", "power", "inputs", "allocator", "wait_policy")


def base_of(name: str, fingerprint: str) -> Run:
    """A run, or the baseline of that name for this machine."""
    try:
        place = store.resolve(name, store.results_root())
    except StoreError:  # no run, so a name
        return baselines.find(name, fingerprint)
    return store.read(place)


def against(head: Run, base: Run) -> Judged:
    """As `judge`, with `[gate]` of the suites that head was measured with, as they stand, and with what is kept."""
    others = [store.read(path) for path, _ in baselines.every()]
    return judge(head, base, _settings(head), datetime.now(UTC).date(), others)


def _settings(head: Run) -> Settings:
    found = settings.DEFAULT
    for name in head.manifest.request.get("suites", ()):
        try:
            one = suite.load(name)
        except UsageError:  # it is gone: its run is not
            continue
        found = settings.read(one.gate, one.name) if one.gate else found
    return found


def judge(head: Run, base: Run, minded: Settings, today: date, others: Iterable[Run] = ()) -> Judged:
    """Every verdict. `others` are further runs, from which the noise between days is learnt where two share a commit.

    NotComparableError where machine, procedure or packages differ, and where no case is common.
    """
    _comparable(head, base)
    pairs = _pairs(head, base, minded.alias)
    if not any(pair.base and pair.head for pair in pairs):
        raise NotComparableError(f"{head.path.name} and {base.path.name} have no case in common")
    between, said = _between([base, *others])
    both = [pair for pair in pairs if _measured(pair)]
    margins = [math.log1p(max(minded.of(pair.any.case.label, today), rule.FLOOR_FACTOR * between)) for pair in both]
    slower = rule.holm(
        {str(n): _exceeds(pair, margin, 1) for n, (pair, margin) in enumerate(zip(both, margins, strict=True))}
    )
    faster = rule.holm(
        {str(n): _exceeds(pair, margin, -1) for n, (pair, margin) in enumerate(zip(both, margins, strict=True))}
    )
    verdicts = [
        _verdict(pair, margin, slower[str(n)], faster[str(n)])
        for n, (pair, margin) in enumerate(zip(both, margins, strict=True))
    ]
    refused = 0
    for pair in pairs:
        if found := evidence.support(pair):
            verdicts.append(found)
        elif _measured(pair):
            verdicts += evidence.memory(pair)
        else:
            refused += 1
    effects: dict[str, list[float]] = {}
    for pair in both:
        effects.setdefault(pair.any.case.backend, []).append(welch(*_logs(pair))[0].value)
    return Judged(
        base=f"{base.path.name} of {base.manifest.created_at}",
        head=f"{head.path.name} of {head.manifest.created_at}",
        verdicts=in_order(verdicts),
        geomeans={name: (*rule.geometric_mean(values), len(values)) for name, values in effects.items()},
        floor=f"stored baseline, weaker than side by side: {said}",
        notes=tuple(minded.expired(today)),
        refused=refused,
    )


def welch(above: Sequence[float], below: Sequence[float]) -> tuple[Interval, float, float]:
    """Difference of means of logarithms with its 95 % interval, its standard error, and Welch's degrees."""
    from scipy.special import stdtrit

    one, other = (np.asarray(values, dtype=np.float64) for values in (above, below))
    value = float(one.mean() - other.mean())
    if len(one) < 2 or len(other) < 2:
        return Interval(value=value), math.nan, 0.0
    parts = [float(values.var(ddof=1)) / len(values) for values in (one, other)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Interval(value=value, low=value, high=value, sd=0.0), 0.0, float(len(one) + len(other) - 2)
    free = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True))
    half = float(stdtrit(free, (1 + rule.CONFIDENCE) / 2)) * error
    return Interval(value=value, low=value - half, high=value + half, sd=error), error, free


def _exceeds(pair: Pairing, margin: float, sign: int) -> float:
    from scipy.special import stdtr

    seen, error, free = welch(*_logs(pair))
    if not free:
        return 1.0
    if error == 0:
        return 0.0 if sign * seen.value > margin else 1.0
    return float(stdtr(free, -(sign * seen.value - margin) / error))


def _verdict(pair: Pairing, margin: float, slower: float, faster: float) -> Verdict:
    seen, _, free = welch(*_logs(pair))
    assert pair.base
    assert pair.head
    assert pair.base.time
    assert pair.head.time
    reason = ""
    if slower < rule.CONFIRM_ALPHA:
        outcome = Outcome.REGRESSED
    elif faster < rule.CONFIRM_ALPHA:
        outcome = Outcome.IMPROVED
    elif seen.high < margin:
        outcome = Outcome.SAME
    else:
        outcome = Outcome.INCONCLUSIVE
        one = "one launch says nothing about the next: measure with --launches 6"
        reason = "its interval reaches the margin: gate side by side with --base-ref" if free else one
    one_case = pair.head
    return Verdict(
        case_id=one_case.case.id, label=one_case.case.label, device=one_case.arm.device, backend=one_case.case.backend,
        metric="time_s", outcome=outcome, base=pair.base.time.value, head=pair.head.time.value,
        change=math.expm1(seen.value),
        interval=(math.expm1(seen.low), math.expm1(seen.high)) if free else None,
        margin=math.expm1(margin), launches=min(pair.base.launches, pair.head.launches), p=min(slower, faster),
        reason=reason,
    )  # fmt: skip


def _logs(pair: Pairing) -> tuple[list[float], list[float]]:
    assert pair.head
    assert pair.base
    return _launches(pair.head), _launches(pair.base)


def _launches(side: Joined) -> list[float]:
    """The logarithm of what every launch says."""
    found = (stats.location(stats.block_medians(sample)) for sample in side.times)
    return [math.log(value) for value in found if value]


def _measured(pair: Pairing) -> bool:
    return bool(
        pair.base and pair.head and pair.base.status is pair.head.status is Status.OK
        and _launches(pair.base) and _launches(pair.head)
    )  # fmt: skip


def _pairs(head: Run, base: Run, alias: dict[str, str]) -> list[Pairing]:
    """By label, arm and device; a case that was renamed is found by what it was called then."""
    before = {_key(one): one for one in frame.join(base.results)}
    found = []
    for one in frame.join(head.results):
        label, name, device = _key(one)
        old = before.pop((alias.get(label, label), name, device), None)
        found.append(Pairing(base=old, head=one))
    return [*found, *(Pairing(base=old) for old in before.values())]


def _key(one: Joined) -> tuple[str, str, str]:
    return one.case.label, one.arm.name, one.arm.device


def _comparable(head: Run, base: Run) -> None:
    one, other = head.manifest, base.manifest
    names = f"{head.path.name} and {base.path.name}"
    if one.fingerprint != other.fingerprint:
        raise NotComparableError(f"{names} are of two machines ({one.fingerprint}, {other.fingerprint})")
    for kind, procedure in one.procedures.items():
        before = other.procedures.get(kind)
        for name in SAME if before else ():
            then, now = getattr(before, name), getattr(procedure, name)
            if then != now:
                raise NotComparableError(f"{names} were measured otherwise: {name} {then} then, {now} now")


def _between(runs: Sequence[Run]) -> tuple[float, str]:
    """The 99th percentile of how far runs of one commit on different days lie apart, case by case; a share."""
    apart: list[float] = []
    for place, one in enumerate(runs):
        for other in runs[:place]:
            if _same_code(one, other):
                apart += [abs(welch(*_logs(pair))[0].value) for pair in _pairs(one, other, {}) if _measured(pair)]
    if not apart:
        return ASSUMED, f"no two runs of one commit tell the noise between days, {100 * ASSUMED:.0f} % is assumed"
    value = math.expm1(float(np.quantile(apart, QUANTILE)))
    return value, f"runs of one commit on different days differ by up to {100 * value:.1f} % ({len(apart)} cases)"


def _same_code(one: Run, other: Run) -> bool:
    first, second = one.manifest, other.manifest
    return bool(
        first.commit and second.commit and first.commit.get("commit") == second.commit.get("commit")
        and not first.commit.get("dirty") and not second.commit.get("dirty")
        and first.fingerprint == second.fingerprint and first.created_at[:10] != second.created_at[:10]
    )  # fmt: skip
