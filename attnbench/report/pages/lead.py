"""The headline of a report and the sentences below it: wins, ties, speed-up with its interval, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from attnbench.analysis import stats
from attnbench.analysis.rows import Row, failing, phase
from attnbench.analysis.stats import Estimate
from attnbench.records.result import Status
from attnbench.report import memory_method, missing, quantities, summary
from attnbench.report.charts import panels
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.pages import places, ranking
from attnbench.report.pages.ranking import AnswerKind, Contest, Recommendation, Side
from attnbench.report.quantities import listed, sentence, times, whole
from attnbench.report.reasons import literal
from attnbench.units import counted

MAX_MEANS = 4  # in one sentence
MIN_MEMORY = 1.05  # smaller factors are not worth a word


def headline(problems: Sequence[Contest], of_all: Recommendation, sides: Sequence[Side]) -> str:
    """What to use, in one sentence, and how many cases are left of a run that was stopped."""
    text = _headline(problems, of_all, sides)
    return f"{text.removesuffix('.')}; {of_all.left}." if of_all.left else text


def _headline(problems: Sequence[Contest], of_all: Recommendation, sides: Sequence[Side]) -> str:
    if sides:
        text = ", ".join(f"{side.arm} {side.phrase}" for side in sides)
        return f"{text}{_of_part(of_all)}."
    match of_all.kind:
        case AnswerKind.USE:
            measured = f"for {of_all.part}" if of_all.part else "here"
            covered = "" if of_all.left else ranking.covered(problems)
            return f"Use {of_all.arms[0]} {covered or measured}."
        case AnswerKind.TIED:
            return f"{listed(of_all.arms, 'or')}: no difference found{_in_part(of_all)}."
        case AnswerKind.MIXED:
            return _mixed(of_all)
        case AnswerKind.ALONE:
            return _alone(problems, of_all)
    return _nothing([row for contest in problems for row in contest.rows])


def lead(problems: Sequence[Contest], of_all: Recommendation, sides: Sequence[Side], layout: PanelLayout) -> str:
    """The sentences below the headline."""
    if sides:
        return " ".join(_of_side(side, of_all.left) for side in sides)
    match of_all.kind:
        case AnswerKind.USE:
            return " ".join(filter(None, (_wins(problems, of_all), _speed(problems, of_all, layout))))
        case AnswerKind.TIED:
            tied = f"The intervals do not distinguish them in {_any(of_all)}."
            return " ".join(filter(None, (tied, _speed(problems, of_all, layout))))
        case AnswerKind.MIXED:
            if of_all.fails:
                return " ".join(filter(None, (_wins(problems, of_all), _speed(problems, of_all, layout))))
            if of_all.ties == of_all.contested:
                return "No backend is among the fastest in all of them."
            tied = f" In {of_all.ties} of {of_all.contested} the fastest are tied." if of_all.ties else ""
            return f"No backend is fastest or tied in {all_problems(of_all)}.{tied}"
    return _tally(problems)


def by_phase(problems: Sequence[Contest]) -> str:
    """`For decode: vllm-cpu in bf16, ort:gqa or ggml in fp32. For prefill: sdpa:flash.`; empty for one of each."""
    groups: dict[tuple[str, str, str], dict[str, list[Contest]]] = {}
    for contest in problems:
        first = contest.first
        of_phase = groups.setdefault((first.run, first.device, phase(first)), {})
        of_phase.setdefault(str(first.dtype), []).append(contest)
    if len({(kind, dtype) for (*_, kind), dtypes in groups.items() for dtype in dtypes}) < 2:
        return ""
    several = [len(set(values)) > 1 for values in zip(*groups, strict=True)]
    texts = []
    for (run, device, kind), dtypes in groups.items():
        where = " ".join(filter(None, (kind, f"on {device}" * several[1], f"in {run}" * several[0])))
        texts.append(f"For {where}: {', '.join(_choices(dtypes))}.")
    return " ".join(texts)


def _choices(dtypes: Mapping[str, Sequence[Contest]]) -> Iterator[str]:
    """What to use for each dtype, those together that have one answer."""
    by_answer: dict[str, list[str]] = {}
    for dtype, contests in dtypes.items():
        by_answer.setdefault(_choice(contests), []).append(dtype)
    for answer, names in by_answer.items():
        yield f"{answer} in {listed(names)}" if len(dtypes) > 1 and len(by_answer) > 1 else answer


def _choice(problems: Sequence[Contest]) -> str:
    """`vllm-cpu`; `ort:gqa or ggml` of a tie; `ort:gqa (2 of 3)` where another one leads too; `none measured`."""
    of_group = ranking.verdict(problems)
    names = listed(of_group.arms, "or")
    match of_group.kind:
        case AnswerKind.USE | AnswerKind.TIED:
            return f"{names}{_of_part(of_group)}"
        case AnswerKind.ALONE:
            return f"only {names}"
        case AnswerKind.NOTHING:
            return "none measured"
    leads = Counter(row.arm_name for contest in problems if contest.contested for row in contest.leaders)
    most = max(leads.values())
    first = [arm for arm in leads if leads[arm] == most]
    ties = "fastest or tied in " if any(of_group.wins.get(arm) != most for arm in first) else ""
    return f"{listed(first, 'or')} ({ties}{most} of {of_group.contested})"


def _tally(problems: Sequence[Contest]) -> str:
    rows = [row for contest in problems for row in contest.rows]
    return literal(summary.tally(rows)) if any(row.status is not Status.OK for row in rows) else ""


def _any(of_all: Recommendation) -> str:
    return f"any of {problems_of(of_all)}" if of_all.part or of_all.contested > 1 else "the only problem"


def problems_of(of_all: Recommendation) -> str:
    """`8 problems`, or `8 comparisons of 4 problems` where several runs measured them, or `Recommendation.part`."""
    return of_all.part or _compared(of_all, counted)


def all_problems(of_all: Recommendation) -> str:
    """`all 8 problems`, or `all 8 comparisons of 4 problems`, or `Recommendation.part`."""
    return of_all.part or _compared(of_all, whole)


def _in_part(of_all: Recommendation) -> str:
    return f" in {of_all.part}" if of_all.part else ""


def _of_part(of_all: Recommendation) -> str:
    return f" ({of_all.part})" if of_all.part else ""


def _compared(of_all: Recommendation, number: Callable[[int, str], str]) -> str:
    if of_all.contested == of_all.problems:
        return number(of_all.contested, "problem")
    return f"{number(of_all.contested, 'comparison')} of {_problems(of_all.problems)}"


def _problems(count: int) -> str:
    return counted(count, "problem")


def _mixed(of_all: Recommendation) -> str:
    first = of_all.arms[0]
    if of_all.fails:
        where = f"wherever it runs{_in_part(of_all)}"
        return f"{first} is fastest or tied {where}, and has no time in {_problems(of_all.fails)}."
    if not of_all.wins:
        return f"No backend wins: the fastest are tied in {all_problems(of_all)}."
    others = [f"{arm} {count}" for arm, count in of_all.wins.items()][1:]
    rest = f", {listed(others)}" if others else ""
    return f"{first} wins {of_all.wins[first]} of {problems_of(of_all)}{rest}."


def range_of_times(problems: Sequence[Contest]) -> str:
    """`158 µs to 202 µs`, the least and the largest of what was measured."""
    measured = [row.seconds for contest in problems for row in contest.rows if row.place]
    return " to ".join(dict.fromkeys(map(quantities.seconds, (min(measured), max(measured)))))


def _alone(problems: Sequence[Contest], of_all: Recommendation) -> str:
    if len(of_all.arms) > 1:
        return f"{listed(of_all.arms)}: measured, but not in the same rounds, so not compared."
    if any(row.status.failed for contest in problems for row in contest.rows if row.arm_name not in of_all.arms):
        return f"Only {of_all.arms[0]} gives right outputs: {range_of_times(problems)}{_in_part(of_all)}."
    return f"{of_all.arms[0]} takes {range_of_times(problems)}{_in_part(of_all)}: there is nothing to compare it with."


def _nothing(rows: Sequence[Row]) -> str:
    if not rows:
        return "Nothing was measured."
    statuses = Counter(row.status for row in rows)
    wrong = [row.arm_name for row in rows if row.status is Status.INCORRECT]
    if len(wrong) == len(rows):
        return f"Use none of these: every output of {listed(list(dict.fromkeys(wrong)))} is wrong."
    failed = sum(count for status, count in statuses.items() if status.failed)
    if failed == len(rows):
        return f"Nothing to use: {whole(len(rows), 'case')} failed."
    if failed:
        return f"Nothing to use: {failed} of {counted(len(rows), 'case')} failed, the others were not run."
    if statuses[Status.OK]:
        return "No time is usable."
    cut = sum(map(missing.cut, rows))
    if cut == len(rows):
        return "Nothing was measured: the budget was spent."
    were = "was" if len(rows) == 1 else "were"
    return f"Nothing was measured: {whole(len(rows), 'case')} {were} refused{' or cut' if cut else ''}."


def _wins(problems: Sequence[Contest], of_all: Recommendation) -> str:
    """`Fastest in 5 of 7 problems, tied with naive in the other 2.`"""
    arm, count = of_all.arms[0], of_all.contested
    wins = of_all.wins.get(arm, 0)
    beside = Counter(
        row.arm_name
        for contest in problems
        if contest.contested and not contest.winner
        for row in contest.leaders
        if row.arm_name != arm
    )
    failed = failing(row for contest in problems for row in contest.rows)
    names = sorted((name for name, _ in beside.most_common()), key=lambda name: name in failed)
    others = listed(names, "or")
    alone = sum(not contest.contested and bool(contest.ranked) for contest in problems)
    rest = f" In {alone} more only one backend was measured." if alone else ""
    rest += _without_time([contest for contest in problems if not contest.ranked])
    number = f"{count - wins:,}" if count - wins > 1 else "one"
    every = counted if of_all.left else whole
    if wins == count:
        return f"Fastest in {_compared(of_all, every)}.{rest}"
    if not wins:
        return f"Tied with {others} in {_compared(of_all, every)}.{rest}"
    return f"Fastest in {wins} of {_compared(of_all, counted)}, tied with {others} in the other {number}.{rest}"


def _without_time(problems: Sequence[Contest]) -> str:
    """` 2 more were not measured.`; a wrong output was, and has no time."""
    if not problems:
        return ""
    single = len(problems) == 1
    if any(row.status.failed for contest in problems for row in contest.rows):
        return f" {len(problems)} more {'has' if single else 'have'} no time."
    return f" {len(problems)} more {'was' if single else 'were'} not measured."


def _of_side(side: Side, left: str) -> str:
    of_side = ranking.verdict(side.contests, left)
    wins = of_side.wins.get(side.arm, 0)
    how = "fastest" if wins == of_side.contested else "fastest or tied"
    text = f"{sentence(side.phrase)} {side.arm} is {how} in {all_problems(of_side)}"
    means = list(_means(side.contests, side.arm))
    if len(means) == 1:
        _, other, mean = means[0]
        return f"{text}, and {_as_fast(mean)} as {other}{_interval(mean)}."
    return f"{text}."


def _speed(problems: Sequence[Contest], of_all: Recommendation, layout: PanelLayout) -> str:
    """`Over all 7 it is 1.7× as fast as naive (95 % interval 1.4..2.1×) and takes 25× less memory at length 1k.`

    Of backends that are tied the first is named, and compared with a reference that is none of them.
    """
    arm, tied = of_all.arms[0], of_all.arms if of_all.kind is AnswerKind.TIED else ()
    means = [mean for mean in _means(problems, arm) if mean[1] not in tied]
    if tied and not means:
        return ""
    subject = arm if tied else "it"
    memory = _memory(problems, arm, layout)
    texts = []
    if len(means) == 1:
        _, other, mean = means[0]
        texts.append(f"{_over(mean, problems, subject, of_all.left)} is {_as_fast(mean)} as {other}{_interval(mean)}")
    elif 1 < len(means) <= MAX_MEANS:
        others = [f"{_as_fast(mean)} as {other} {where}{_interval(mean)}" for where, other, mean in means]
        texts.append(f"{'It' if subject == 'it' else subject} is {listed(others, limit=MAX_MEANS)}")
    if memory:
        texts.append(f"takes {memory}" if texts else f"It takes {memory}")
    return f"{' and '.join(texts)}." if texts else ""


def _over(mean: Estimate, problems: Sequence[Contest], subject: str, left: str) -> str:
    """`Over all 7 it`, the subject of a mean; of one problem the subject alone.

    Where other problems have no time or only one, their number stands before this one: `Over the 7 measured problems`.
    """
    contested = sum(contest.contested for contest in problems)
    if mean.count == 1:
        return "It" if subject == "it" else subject
    if mean.count < contested:
        return f"Over {mean.count} of them {subject}"
    if left or contested < len(problems):
        kind = "compared" if any(contest.ranked and not contest.contested for contest in problems) else "measured"
        return f"Over the {mean.count:,} {kind} problems {subject}"
    return f"Over {'both' if mean.count == 2 else f'all {mean.count:,}'} {subject}"


def _as_fast(mean: Estimate) -> str:
    return f"{times(mean.value)} as fast"


def _interval(mean: Estimate) -> str:
    """Over fewer than three problems the mean has no useful interval."""
    if mean.low is None or mean.high is None or (mean.count == 2 and mean.over is stats.Over.CASES):
        return ""
    if times(mean.low) == times(mean.high) == times(mean.value):
        return ""
    return f" (95 % interval {quantities.between(mean.low, mean.high)})"


def _means(problems: Sequence[Contest], arm: str) -> Iterator[tuple[str, str, Estimate]]:
    """Speed-ups of a backend over the reference, or of the reference over the next backend.

    One mean for each run, device and phase, since these have nothing in common. Each is paired by round.
    """
    groups: dict[tuple[str, str, str], list[Contest]] = {}
    for contest in problems:
        if contest.contested:
            first = contest.first
            groups.setdefault((phase(first), first.device, first.run), []).append(contest)
    for key, group in groups.items():
        spelled = (panels.words(name, value) for name, value in zip((panels.PHASE, "device", "run"), key, strict=True))
        differing = [text for place, text in enumerate(spelled) if len({other[place] for other in groups}) > 1]
        words = [f"for {text}" for text in differing]
        if mean := _mean(group, arm):
            yield " ".join(words), *mean


def _mean(group: Sequence[Contest], arm: str) -> tuple[str, Estimate] | None:
    """The other backend and the mean; None where no round is shared."""
    mine = [row for contest in group for row in contest.ranked if row.arm_name == arm and row.speedup]
    references = {row.reference for row in mine}
    if not mine or len(references) > 1:
        return None
    names: dict[str | None, str] = {row.arm: row.arm_name for contest in group for row in contest.rows}
    reference = names.get(references.pop(), "")
    if reference and reference != arm:
        return _pooled(reference, [_speedup(row) for row in mine])
    others: dict[str, list[Estimate]] = {}
    for contest in group:
        for row in contest.ranked:
            if row.arm_name != arm and row.speedup:
                others.setdefault(row.arm_name, []).append(_inverse(_speedup(row)))
    pooled = [_pooled(name, values) for name, values in others.items() if len(values) == len(mine)]
    return min((each for each in pooled if each), key=lambda each: each[1].value, default=None)


def _pooled(name: str, values: Sequence[Estimate]) -> tuple[str, Estimate] | None:
    if len(values) == 1:
        return name, values[0]
    mean = stats.geometric_mean([estimate.value for estimate in values])
    return (name, mean) if mean else None


def _speedup(row: Row) -> Estimate:
    return Estimate(value=row.speedup or 0.0, low=row.speedup_low, high=row.speedup_high)


def _inverse(ratio: Estimate) -> Estimate:
    return Estimate(
        value=1 / ratio.value, low=1 / ratio.high if ratio.high else None, high=1 / ratio.low if ratio.low else None
    )


def _memory(problems: Sequence[Contest], arm: str, layout: PanelLayout) -> str:
    """`25× less memory at length 1k`, against the reference in the largest problem that both ran."""
    pairs = []
    for contest in problems:
        by_arm = {row.arm: row for row in contest.rows if row.place and row.total_bytes}
        mine = next((row for row in by_arm.values() if row.arm_name == arm), None)
        reference = by_arm.get(str(mine.reference)) if mine else None
        alike = mine and reference and memory_method.of_process(mine) is memory_method.of_process(reference)
        if mine and reference and alike and reference.arm_name != arm:
            pairs.append((mine, reference))
    if not pairs:
        return ""
    mine, reference = max(pairs, key=lambda pair: pair[1].total_bytes or 0.0)
    factor = (reference.total_bytes or 0.0) / (mine.total_bytes or 1.0)
    if 1 / MIN_MEMORY < factor < MIN_MEMORY:
        return ""
    much = f"{times(factor)} less" if factor > 1 else f"{times(1 / factor)} more"
    place = f"({places.of(mine, layout)})" if layout.heading(mine) else places.at(mine, layout)
    return f"{much} memory than {reference.arm_name} {place}"
