"""Pages of what a run says about itself and beside others: scaling, support, profile, data quality, history."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attnbench import comparison, stats, units
from attnbench.errors import NotComparableError
from attnbench.gate.history import Point, changes
from attnbench.report import diagrams, pivot
from attnbench.report.material import DETAILS_MOST, DRIFT_MOST, Material, Page, Table
from attnbench.report.pages.pieces import drawn, filled, metrics
from attnbench.result import Status
from attnbench.studies import scaling as study


def scaling(found: Material) -> Page:
    """Exponents of time and memory, and what they say of the claims."""
    laws = list(study.laws(found.rows))
    lines = [
        (
            law.quantity, law.arm, law.problem, law.axis, f"{law.predicted:g}", study.interval(law.measured),
            " ".join(f"{slope:.2f}" for slope in law.slopes), law.verdict.value + (f": {law.why}" if law.why else ""),
        )
        for law in laws
    ]  # fmt: skip
    claims = (
        [(one.id, one.says, one.predicts, one.measured, one.verdict.value) for one in study.claims(laws)]
        if laws
        else []
    )
    return Page(
        name="scaling",
        title="Scaling",
        charts=drawn(slopes=diagrams.slopes(laws, found.caption)),
        tables=(
            Table(
                heading="Exponents",
                head=("quantity", "backend", "at", "axis", "predicted", "measured (95 %)", "local slopes", "verdict"),
                rows=lines,
                numbers=(False, False, False, False, True, True, False, False),
            ),
            Table(heading="Claims", head=("id", "claim", "predicts", "measured", "verdict"), rows=claims),
        ),
        fill="attnbench scaling measures exponents",
    )


def support(found: Material) -> Page:
    """Which cases ran, which did not, and why."""
    seen: dict[str, dict[str, Counter[str]]] = {}
    reasons: dict[tuple[str, str], int] = {}
    for row in found.rows:
        about = f"{row['dtype']} {row['mode']}"
        seen.setdefault(row["arm_name"], {}).setdefault(about, Counter())[row["status"]] += 1
        if row["status"] != Status.OK:
            key = (row["arm_name"], pivot.why(row))
            reasons[key] = reasons.get(key, 0) + 1
    columns = list(dict.fromkeys(about for by in seen.values() for about in by))
    grid = [(arm, *(_statuses(by.get(about)) for about in columns)) for arm, by in seen.items()]
    lines = [(arm, str(count), reason) for (arm, reason), count in reasons.items()]
    return Page(
        name="support",
        title="Support",
        tables=(
            Table(heading="Cases by outcome", head=("backend", *columns), rows=grid),
            Table(heading="Reasons", head=("backend", "cases", "reason"), rows=lines, numbers=(False, True, False)),
        ),
    )


def _statuses(counts: Counter[str] | None) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.most_common()) if counts else ""


def profile(found: Material) -> Page:
    """Where the time of each case goes, if it was profiled, and what it cost once."""
    lines = [
        (one.label, row["name"], str(row["calls"]), units.seconds(row["self_s"]), f"{row['share']:.1%}")
        for one in found.details
        for row in one.kernels
    ]
    head = ("case", "kernel or operator", "calls", "time", "share")
    shares = Table(heading="Where the time goes", head=head, rows=lines, numbers=(False, False, True, True, True))
    traces = Table(
        heading="Traces", head=("case", "file"), rows=[(one.label, one.trace) for one in found.details if one.trace]
    )
    once = metrics("Once", found.rows, ("import_s", "first_call_s", "compile_s", "mask_build_s"))
    return Page(
        name="profile",
        title="Profile",
        tables=(shares, traces, once) if lines else (),
        fill="attnbench run --profile looks at each case",
    )


def quality(found: Material) -> Page:
    """How restless the machine was: blocks over the rounds, widths of intervals, clocks."""
    lines = [
        (
            one.label, str(one.rounds or ""), str(one.launches), units.percent(one.half_width),
            units.percent(one.noise.relative_iqr), "-" if one.noise.trend is None else f"{one.noise.trend:+.2f}",
            "-" if one.noise.position_effect is None else f"{one.noise.position_effect:+.1%}",
            "noisy" if one.noisy else "", one.clocks,
            ", ".join(f"{tag} {units.percent(share)}" for tag, share in one.noise.tagged.items()),
        )
        for one in found.details
        if one.rounds
    ]  # fmt: skip
    head = ("case", "rounds", "launches", "half-width", "IQR", "drift", "order", "noisy", "clocks", "tags")
    numbers = (False, True, True, True, True, True, True, False, False, False)
    note = (
        "half-width of the 95 % interval; IQR of block medians; drift: Spearman's rho over rounds; order: last against "
        "first place in a round; tags: of blocks"
    )
    seen = [one for one in found.details if one.blocks]
    more = sum(bool(one.rounds) for one in found.details) > len(seen) == DRIFT_MOST
    chart = diagrams.noise(
        [block for one in seen for block in one.blocks], found.caption, f"the first {len(seen)} cases" if more else ""
    )
    return Page(
        name="quality",
        title="Data quality",
        charts=drawn(noise=chart),
        words=(f"Of the first {DETAILS_MOST} results; data.csv has `noisy` of all.",)
        if len(found.rows) > DETAILS_MOST
        else (),
        tables=(filled(Table(heading="Noise", head=head, rows=lines, numbers=numbers, note=note)),),
    )


def history(found: Material) -> Page:
    """The first run against each later one, across machines too, which the words then say."""
    tables, words = [], []
    charts: list[tuple[str, Any]] = []
    means: list[tuple[str, Mapping[str, stats.Estimate]]] = []
    first = found.runs[0]
    sides = [comparison.sides_of(rows) for rows in found.by_run]
    for later, own in zip(found.runs[1:], sides[1:], strict=True):
        try:
            one = comparison.compare(first, later, cross_machine=True, sides=(sides[0], own))
        except NotComparableError as why:
            words.append(str(why))
            continue
        words += [f"{later.path.name}: two machines, nothing here is a regression"] if one.cross_machine else []
        if not one.cross_machine:
            means.append((later.path.name, one.geomeans))
        charts += drawn(ratios=diagrams.ratios(one.pairs, first.path.name, later.path.name))
        lines = [
            (
                pair.label, units.seconds(pair.old_s), units.seconds(pair.new_s),
                f"{pair.ratio.value:.3f}" if pair.ratio else "-", _ends(pair.ratio), pair.change.value, pair.reason,
            )
            for pair in one.pairs
        ]  # fmt: skip
        table = Table(
            heading=f"{later.path.name} against {first.path.name}",
            head=("case", "old", "new", "new / old", "95 %", "change", "reason"),
            rows=lines,
            numbers=(False, True, True, True, True, False, False),
        )
        tables.append(filled(table))
    named = [(f"{name}-{number}" if len(charts) > 1 else name, chart) for number, (name, chart) in enumerate(charts, 1)]
    if means:
        level = {arm: stats.Estimate(value=1.0) for _, seen in means for arm in seen}
        means.insert(0, (first.path.name, level))
    trend = drawn(trend=diagrams.trend(means) if len(means) > 2 else None, commits=diagrams.commits(found.trend))
    tables += [filled(_changes(found.trend))] if found.trend else []
    return Page(
        name="history", title="Comparison", words=tuple(words), charts=(*trend, *named), tables=tuple(tables),
        fill="attnbench report OLD NEW sets runs side by side; attnbench history --add RUN begins a trend",
    )  # fmt: skip


def _changes(trend: Mapping[str, Sequence[tuple[Point, float]]]) -> Table:
    """Where levels changed, the largest first."""
    every = [one for case, values in trend.items() for one in changes(case, values)]
    lines = [
        (one.case, one.at.name, one.at.measured_at, units.seconds(one.before_s), units.seconds(one.after_s),
         units.change(one.ratio - 1))
        for one in sorted(every, key=lambda one: -abs(math.log(one.ratio)))
    ]  # fmt: skip
    commits = len({point.name for values in trend.values() for point, _ in values})
    return Table(
        heading="Changes of level over the history",
        head=("case", "first of the new level", "measured", "before", "after", "change"),
        rows=lines,
        numbers=(False, False, False, True, True, True),
        note=f"{commits} commits of this machine, {len(trend)} cases. {'' if lines else 'No level changed.'}".strip(),
    )


def _ends(ratio: stats.Estimate | None) -> str:
    return f"{ratio.low:.3f} .. {ratio.high:.3f}" if ratio and ratio.low is not None and ratio.high is not None else "-"
