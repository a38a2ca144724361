"""A stored gate -> verdicts: the same whenever it is asked, without a device."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import msgspec

from attnbench import floor
from attnbench.errors import NotComparableError, UsageError
from attnbench.gate import evidence, rule, settings
from attnbench.gate.evidence import Pairing
from attnbench.gate.rule import Evidence, Margins
from attnbench.result import Outcome, Verdict
from attnbench.store import Run


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A gate that ended: every verdict, and what to know about them."""

    base: str  # what people call the two
    head: str
    verdicts: tuple[Verdict, ...]  # the worst first
    geomeans: dict[str, tuple[float, float, float, int]]  # by backend: ratio, its interval, cases
    floor: str  # where the margins come from
    doubt: str = ""  # why nothing of the run may be believed
    notes: tuple[str, ...] = ()
    refused: int = 0  # cases that neither side can run


def judge(run: Run) -> Judged:
    """The verdicts of a stored gate: the same whenever they are asked for.

    UsageError for a run that is none; NotComparableError where base fails in every case that head can run.
    """
    record = run.manifest.gate
    if not record:
        raise UsageError(f"{run.path.name} is no run of a gate: attnbench gate makes one")
    pairs = evidence.pairings(run.results)
    if why := evidence.base_fails(pairs):
        raise NotComparableError(f"{record['base']['name']} runs none of the cases, so nothing can be compared: {why}")
    minded, today = settings.read(record["settings"], run.path.name), date.fromisoformat(record["today"])
    cases = cases_of(pairs, record)
    margins = margins_of(record)
    doubt = rule.restless(evidence.equal_arms(pairs, record["screen_launches"]), margins)
    verdicts = rule.verdicts(cases, margins, doubt)
    judged = {(one.case_id, one.device) for one in cases}
    refused = 0
    for pair in pairs:
        if found := evidence.support(pair):
            verdicts.append(found)
        elif pair.base and pair.head and pair.base.times and pair.head.times:
            verdicts += [] if pair.key in judged else [evidence.unreadable(pair)]
            verdicts += evidence.memory(pair)
            more = [tuple(both) for both in record["seeds"].get("@".join(pair.key), ())]
            error = evidence.accuracy(pair, more)
            verdicts += [error] if error else []
        else:
            refused += 1
    return Judged(
        base=record["base"]["name"],
        head=record["head"]["name"],
        verdicts=in_order(verdicts),
        geomeans=_geomeans(cases),
        floor=_said(record),
        doubt=doubt,
        notes=tuple(minded.expired(today)),
        refused=refused,
    )


ORDER = (
    Outcome.BROKEN, Outcome.MISSING, Outcome.REGRESSED, Outcome.INCONCLUSIVE, Outcome.IMPROVED, Outcome.NEW,
    Outcome.SAME,
)  # fmt: skip


def in_order(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The worst first."""
    return tuple(sorted(verdicts, key=_order))


def _order(one: Verdict) -> tuple[int, float]:
    """What must be looked at first, then the largest changes."""
    return ORDER.index(one.outcome), -abs(one.change or 0.0)


# -- margins -----------------------------------------------------------------------------------------------------------


def cases_of(pairs: Sequence[Pairing], record: dict[str, Any]) -> list[Evidence]:
    """What there is to judge of time, with the tolerance of each case."""
    minded, today = settings.read(record["settings"], "run"), date.fromisoformat(record["today"])
    found = []
    for pair in pairs:
        tolerance = minded.of(pair.any.case.label, today)
        one = evidence.evidence(pair, record["screen_launches"], tolerance)
        found += [one] if one else []
    return found


def margins_of(record: dict[str, Any]) -> Margins:
    """Of a gate's record."""
    return Margins(factor=record["floor"]["factor"], resolution_s=record["floor"]["resolution_s"])


def _said(record: dict[str, Any]) -> str:
    """Where the margins come from."""
    runs, factor = record["floor"]["runs"], record["floor"]["factor"]
    chance = rule.chance(record["screen_launches"])
    if factor > chance:
        return f"{factor:.1f} standard errors of the case, the 99th percentile of {runs} A/A runs of this machine"
    behind = (
        f", and {runs} A/A runs of this machine show no more"
        if factor
        else f" ({runs} A/A runs, {floor.ENOUGH} are needed)"
    )
    return f"{chance:.1f} standard errors of the case, as chance has it{behind}"


def _geomeans(cases: Sequence[Evidence]) -> dict[str, tuple[float, float, float, int]]:
    by_backend: dict[str, list[float]] = {}
    for one in cases:
        by_backend.setdefault(one.backend, []).append(rule.interval(one.both).value)
    return {name: (*rule.geometric_mean(values), len(values)) for name, values in by_backend.items()}
