"""What the traffic of a trace costs by policy and backend, its mix, and what to set, in a terminal."""

from collections.abc import Callable, Iterator, Sequence

from attnbench import units
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic_mix import Mix, MixPart
from attnbench.analysis.traffic_totals import PolicyName
from attnbench.report import quantities
from attnbench.report.quantities import Unit
from attnbench.report.reasons import kinds
from attnbench.report.terminal.text_layout import aligned, wrap
from attnbench.studies.traffic_answer import TrafficAnswer

DIGITS = 4  # of attention time
PER_HOUR = "attention of all layers in an hour of traffic"
REGRET = "how much longer than the best backend of each step"
SHARES = "of steps: share of all steps; predicted: share of the attention time of all steps, by the rates of the device"
MEASURED = "; drawn: steps that are measured; measured: share of attention time, estimated from these"


def lines(answer: TrafficAnswer, width: int) -> Iterator[str]:
    """The headline, then policies, backends, the mix, settings, and backends that cannot run every step."""
    yield from wrap(answer.headline, width, indent=2)
    for caution in answer.cautions:
        yield from wrap(f"note: {caution}", width, indent=2)
    yield ""
    per_hour = quantities.per_hour_unit(answer.totals)
    unit = per_hour.name.replace("µ", "u")
    yield from _table("policy", (unit, "95 %", "regret", "95 %"), _policies(answer, per_hour), width)
    regret = f"; regret: {REGRET}" if any(policy.regret for policy in answer.totals.policies) else ""
    yield from wrap(f"{unit}: {PER_HOUR}{regret}", width, indent=2)
    for policy in answer.totals.policies:
        if policy.words:
            scored = f"; {policy.scored}" if policy.scored else ""
            yield from wrap(f"  {policy.name.value}: {policy.words}{scored}", width, indent=4)
    if answer.totals.totals:
        yield ""
    yield from _table("backend", (unit, "95 %", "over fastest", "95 %"), _totals(answer, per_hour), width)
    if plans := [
        f"{total.backend} {units.seconds(total.plan_layer_s)} ({units.percent(total.planning, 1)} of its time)"
        for total in answer.totals.totals
        if total.planning
    ]:
        yield from wrap(f"planning a step, for each layer: {', '.join(plans)}", width, indent=2)
    yield ""
    yield from mix(answer.mix, width)
    parts = (*answer.mix.by_kind, *answer.mix.by_context)
    yield from wrap(SHARES + MEASURED * any(part.measured_s for part in parts), width, indent=2)
    if answer.settings:
        yield ""
    for each in answer.settings:
        yield from wrap(f"{each.engine}: {each.setting}", width, indent=2) if each.setting else ()
        yield from wrap(each.note, width, indent=2) if each.note else ()
    for text in _left_out(answer):
        yield from wrap(text, width, indent=2)


def _left_out(answer: TrafficAnswer) -> Iterator[str]:
    """The backends that did not run every drawn step, those with the same reasons together."""
    together: dict[tuple[int, int, str], list[str]] = {}
    for left_out in answer.totals.policy(PolicyName.SINGLE).excluded:  # those of a phase are among them
        key = (left_out.steps, left_out.of, "; ".join(kinds(left_out.reasons)))
        together.setdefault(key, []).append(left_out.backend)
    for (steps, of, reasons), names in together.items():
        verb = "has" if len(names) == 1 else "have"
        yield f"{quantities.listed(names)} {verb} no time for {steps} of {units.counted(of, 'drawn step')}: {reasons}"


def mix(mix: Mix, width: int, predicted: str = "predicted") -> Iterator[str]:
    """Steps and time by kind and by context length; measured time only where there is some."""
    head = ("steps", "of steps", predicted, "drawn", "measured", "95 %")
    for heading, parts in (("kind", mix.by_kind), ("keys per request", mix.by_context)):
        columns = 6 if any(part.measured_s for part in parts) else 3
        rows = [(name, cells[:columns]) for name, cells in _parts(parts)]
        yield from _table(heading, head[:columns], rows, width)


def _table(heading: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], width: int) -> Iterator[str]:
    """The table without columns that are empty in every row: intervals that nothing gives."""
    columns = [place for place in range(len(head)) if any(cells[place] for _, cells in rows)]
    shown = [(label, [cells[place] for place in columns]) for label, cells in rows]
    for row in aligned(heading, [head[place] for place in columns], shown, width) if rows else ():
        yield from row


def _ends(estimate: Estimate | None, show: Callable[[float], str]) -> tuple[str, str]:
    """The value and its interval, `12.1` and `11.5..12.8`."""
    if estimate is None:
        return "-", ""
    ends = [show(end) for end in (estimate.low, estimate.high) if end is not None]
    return show(estimate.value), units.between(*ends) if len(ends) == 2 else ""


def _regret(answer: TrafficAnswer) -> Callable[[float], str]:
    """How regrets are shown: all in percent, or all as ratios."""
    regrets = [policy.regret for policy in answer.totals.policies if policy.regret]
    show = units.changes_format(max((each.high or each.value for each in regrets), default=0.0))
    return lambda regret: show(regret).lstrip("+")


def _per_hour(answer: TrafficAnswer, seconds: Estimate | None, per_hour: Unit) -> tuple[str, str]:
    scaled = seconds and answer.totals.per_hour(seconds)
    return _ends(scaled, lambda value: quantities.number(value / per_hour.scale, DIGITS))


def _policies(answer: TrafficAnswer, per_hour: Unit) -> list[tuple[str, Sequence[str]]]:
    show = _regret(answer)
    return [
        (policy.name.value, (*_per_hour(answer, policy.seconds, per_hour), *_ends(policy.regret, show)))
        for policy in answer.totals.policies
    ]


def _totals(answer: TrafficAnswer, per_hour: Unit) -> list[tuple[str, Sequence[str]]]:
    def times(ratio: float) -> str:
        return f"{quantities.number(ratio)}x"

    return [
        (total.backend, (*_per_hour(answer, total.seconds, per_hour), *_ends(total.over_fastest, times)))
        for total in answer.totals.totals
    ]


def _parts(parts: Sequence[MixPart]) -> Iterator[tuple[str, Sequence[str]]]:
    steps, predicted = sum(part.steps for part in parts), sum(part.predicted_s for part in parts)
    for part in parts:
        yield part.name, (
            f"{part.steps:,}", units.whole_percent(part.steps / steps),
            units.whole_percent(part.predicted_s / predicted), f"{part.drawn:,}",
            *_ends(part.share, units.whole_percent),
        )  # fmt: skip
