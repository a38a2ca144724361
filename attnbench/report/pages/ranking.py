"""Which backend to use: for each problem, for all of them, or for each side where the problems split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from attnbench.analysis.rows import Row, Value, failing, ranked, tied_first
from attnbench.report import missing
from attnbench.report.charts import panels
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.quantities import listed
from attnbench.units import counted

SPLITS = (panels.PHASE, "dtype", "mode", "mask", "device", "run")  # tried in this order
MAX_SIDES = 6  # values of a column that may split the answer
MAX_STEPS = 64  # values of the axis among which a limit is sought


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """One problem on one device in one run: every row, those that were ranked, and the best or those tied with it."""

    rows: tuple[Row, ...]
    ranked: tuple[Row, ...]
    leaders: tuple[Row, ...]  # the fastest first; those that failed elsewhere last

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def contested(self) -> bool:
        """Whether several backends were compared."""
        return len(self.ranked) > 1

    @property
    def winner(self) -> Row | None:
        """The only leader of several."""
        return self.leaders[0] if self.contested and len(self.leaders) == 1 else None


class AnswerKind(StrEnum):
    """What a run says about which backend to use."""

    USE = "use"  # one backend leads everywhere
    TIED = "tied"  # several lead everywhere
    MIXED = "mixed"  # none does
    ALONE = "alone"  # nothing was compared
    NOTHING = "nothing"  # nothing was measured


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """The backends that lead, with their wins; of a mixed verdict those that won."""

    kind: AnswerKind
    arms: tuple[str, ...] = ()
    wins: dict[str, int] = {}
    contested: int = 0  # comparisons: each run compares the backends of a problem once
    problems: int = 0  # that were compared
    ties: int = 0
    fails: int = 0  # problems in which the first of `arms` failed or was refused
    part: str = ""  # `the 3 of 9 problems measured`; empty where every problem was
    left: str = ""  # `6 of 12 cases were not measured`, of a run that was stopped


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the problems that has one winner."""

    phrase: str  # `for decode`, `below 1k`
    arm: str
    contests: tuple[Contest, ...]


def contests(rows: Iterable[Row], layout: PanelLayout | None = None) -> list[Contest]:
    """The problems in order of appearance, or in the order of the panels and of the axis."""
    rows = list(rows)
    failed = failing(rows)
    if layout:
        panels_in_order = layout.panels(rows).values()
        rows = [row for group in panels_in_order for row in sorted(group, key=lambda row: row.number(layout.axis) or 0)]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.run, row.device, row.problem), []).append(row)
    return [_contest(group, failed) for group in groups.values()]


def _contest(rows: Sequence[Row], failed: Container[str]) -> Contest:
    compared = ranked([row for row in rows if row.place])
    leaders = sorted(tied_first(compared), key=lambda row: row.arm_name in failed)
    return Contest(rows=tuple(rows), ranked=tuple(compared), leaders=tuple(leaders))


def verdict(problems: Sequence[Contest], left: str = "") -> Recommendation:
    """A backend is to be used if it leads every problem that was compared and fails in none."""
    contested = [contest for contest in problems if contest.contested]
    if not contested:
        arms = dict.fromkeys(row.arm_name for contest in problems for row in contest.rows if row.place)
        kind = AnswerKind.ALONE if arms else AnswerKind.NOTHING
        return Recommendation(kind=kind, arms=tuple(arms), part=part(problems, left), left=left)
    wins = Counter(contest.winner.arm_name for contest in contested if contest.winner)
    leads = Counter(row.arm_name for contest in contested for row in contest.leaders)
    everywhere = [arm for arm, count in leads.most_common() if count == len(contested)]
    ties = sum(not contest.winner for contest in contested)
    different = len({(contest.first.problem, contest.first.device) for contest in contested})
    common = Recommendation(
        kind=AnswerKind.MIXED, wins=dict(wins.most_common()), contested=len(contested), problems=different, ties=ties,
        part=part(problems, left), left=left,
    )  # fmt: skip
    failures = {arm: _fails(problems, arm) for arm in everywhere}
    sound = [arm for arm in everywhere if not failures[arm]]
    if len(sound) > 1:
        return replace(common, kind=AnswerKind.TIED, arms=tuple(sound))
    if sound:
        return replace(common, kind=AnswerKind.USE, arms=tuple(sound))
    first = everywhere or list(common.wins) or [arm for arm, _ in leads.most_common()]
    return replace(common, arms=tuple(first), fails=_fails(problems, first[0]) if everywhere else 0)


def part(problems: Sequence[Contest], left: str = "", noun: str = "problem") -> str:
    """`the 3 of 9 problems measured`: what an answer is about where some problems have no time; else empty.

    `the 3 problems measured so far` of a run that was stopped: which problems have no result is not known.
    """
    untimed = [contest for contest in problems if not any(row.place for row in contest.rows)]
    if not (untimed or left):
        return ""
    timed = len(problems) - len(untimed)
    compared = sum(contest.contested for contest in problems) or timed
    failures = any(row.status.failed for contest in untimed for row in contest.rows)
    word = "compared" if compared < timed else "timed" if failures else "measured"
    different = len({(contest.first.problem, contest.first.device) for contest in problems})
    noun = noun if different == len(problems) else "comparison"
    if left:
        return f"the {counted(compared, noun)} {word} so far"
    return f"the {compared:,} of {counted(len(problems), noun)} {word}"


def split(problems: Sequence[Contest], layout: PanelLayout) -> list[Side]:
    """The sides of the first column that splits the problems into sides with one winner each; empty if none does."""
    for name in SPLITS:
        by_value: dict[object, list[Contest]] = {}
        for contest in problems:
            by_value.setdefault(panels.column_value(contest.first, name), []).append(contest)
        if 1 < len(by_value) <= MAX_SIDES and (sides := _sides(by_value.values(), name)):
            return sides
    return [] if "requests" in layout.columns else _below_and_above(problems, layout.axis)


def covered(problems: Sequence[Contest]) -> str:
    """`for decode`, where the problems that were compared are all those of decode, and others were not compared."""
    for name in SPLITS:
        every = {panels.column_value(contest.first, name): contest.first for contest in problems}
        compared = {panels.column_value(contest.first, name) for contest in problems if contest.contested}
        inside = [contest for contest in problems if panels.column_value(contest.first, name) in compared]
        if compared and len(compared) < len(every) <= MAX_SIDES and not part(inside):
            words = [panels.words(name, value) for value in every if value in compared]
            return f"for {listed(words, limit=MAX_SIDES)}"
    return ""


def _sides(groups: Iterable[list[Contest]], name: str) -> list[Side]:
    """The groups by winner; empty unless each has one, and not all the same."""
    by_arm: dict[str, list[list[Contest]]] = {}
    for group in groups:
        of_group = verdict(group)
        if of_group.kind is not AnswerKind.USE:
            return []
        by_arm.setdefault(of_group.arms[0], []).append(group)
    if len(by_arm) < 2:
        return []

    def side(arm: str, groups_of_arm: list[list[Contest]]) -> Side:
        values = [panels.words(name, panels.column_value(group[0].first, name)) for group in groups_of_arm]
        together = tuple(contest for group in groups_of_arm for contest in group)
        return Side(phrase=f"for {listed(values, limit=MAX_SIDES)}", arm=arm, contests=together)

    return [side(arm, groups_of_arm) for arm, groups_of_arm in by_arm.items()]


def _below_and_above(problems: Sequence[Contest], axis: str) -> list[Side]:
    """Two sides of a limit on the axis; empty if there is none."""
    by_value: dict[float, list[Contest]] = {}
    for contest in problems:
        by_value.setdefault(contest.first.number(axis) or 0.0, []).append(contest)
    values = sorted(by_value)
    if not 1 < len(values) <= MAX_STEPS:
        return []
    for limit in values[1:]:
        low = [contest for value in values if value < limit for contest in by_value[value]]
        below = verdict(low)
        if below.kind is AnswerKind.MIXED:  # it stays so with more problems
            return []
        high = [contest for value in values if value >= limit for contest in by_value[value]]
        above = verdict(high)
        if below.kind is above.kind is AnswerKind.USE and below.arms != above.arms:
            text = axis_words(axis, limit)
            return [
                Side(phrase=f"below {text}", arm=below.arms[0], contests=tuple(low)),
                Side(phrase=f"from {text} on", arm=above.arms[0], contests=tuple(high)),
            ]
    return []


def axis_words(axis: str, value: Value) -> str:
    """A value of the axis in a sentence: `1k` for a length, `batch 4` for another number."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if axis in ("seq_q", "seq_kv"):
        return panels.axis_value(axis, whole)
    return panels.words(axis, whole)


def _fails(problems: Iterable[Contest], arm: str) -> int:
    """The problems in which the backend failed, was refused or has an impossible time; what the budget cut is none."""
    return sum(any(row.arm_name == arm and failed(row) for row in contest.rows) for contest in problems)


def failed(row: Row) -> bool:
    """Whether a case has no usable time for another reason than the budget."""
    return not row.place and not missing.cut(row)
