"""The section of a replayed trace: attention time of its traffic by policy and backend, and where the time goes."""

from collections.abc import Iterator, Sequence

from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic_mix import MIN_STEPS, MixPart
from attnbench.analysis.traffic_totals import Policy
from attnbench.report import quantities
from attnbench.report.charts import context_shares
from attnbench.report.charts.figure import Figure
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, blocks
from attnbench.report.quantities import DASH, SECONDS, Unit, number, per_hour_unit, percent, times, unit
from attnbench.studies.traffic_answer import TrafficAnswer
from attnbench.units import between, counted


def page(data: ReportData) -> Page:
    """The answer of each run that replays a trace; nothing without one."""
    answers = [(name, answer) for name, answer in zip(data.names, data.traffic, strict=True) if answer]
    several = len(answers) > 1
    return Page(
        finding="; ".join(f"{name}: {answer.headline}" if several else answer.headline for name, answer in answers),
        text=tuple(line for _, answer in answers for line in _text(answer)),
        blocks=blocks(*(
            block for name, answer in answers for block in _blocks(answer, f"{name}: " if several else "")
        )),
    )  # fmt: skip


def _text(answer: TrafficAnswer) -> Iterator[str]:
    options = ", ".join(f"{name} {value}" for name, value in answer.options.items())
    source = " and ".join(filter(None, (answer.trace, answer.model)))
    measured = f"measured, and {answer.unmeasured} more drawn" if answer.partial else "drawn and measured"
    if answer.unsound:
        measured = f"drawn, and {answer.totals.drawn - answer.unmeasured} measured"
    yield (
        f"{source + ': ' if source else ''}{counted(answer.steps, 'step')} in {number(answer.totals.hours)} h of "
        f"traffic, of which {answer.totals.drawn} were {measured} (seed {answer.seed}). {options}".strip()
    )
    yield from (f"{caution[0].upper()}{caution[1:]}." for caution in answer.cautions)
    yield (
        "Intervals hold 95 % and contain the draw of steps and the noise of rounds. A policy is chosen on one half of "
        "the rounds and scored on the other; its regret is over the best backend of each step."
    )


def _blocks(answer: TrafficAnswer, prefix: str) -> Iterator[Figure | PageTable | None]:
    per_hour = per_hour_unit(answer.totals)
    yield _policies(answer, per_hour, f"{prefix}Policies")
    yield _totals(answer, per_hour, f"{prefix}One backend for all steps")
    yield _settings(answer, f"{prefix}What to set")
    yield _mix(answer.mix.by_kind, f"{prefix}Steps by kind", "kind")
    yield context_shares.figure(answer.mix, f"{prefix}Attention time by context length")
    yield _mix(answer.mix.by_context, f"{prefix}Steps by context length", "keys per request")
    yield _excluded(answer, f"{prefix}Backends that cannot run every step")


def _seconds(answer: TrafficAnswer, seconds: Estimate | None, per_hour: Unit) -> PageCell | str:
    if seconds is None:
        return DASH
    scaled = answer.totals.per_hour(seconds)
    ends = "" if scaled.low is None or scaled.high is None else between(*map(per_hour.show, (scaled.low, scaled.high)))
    return PageCell(text=per_hour.show(scaled.value), detail=ends)


def _share(share: Estimate | None) -> PageCell | str:
    """`12 % 9.1 % .. 15 %`: a relative change with its interval."""
    if share is None:
        return DASH
    ends = "" if share.low is None or share.high is None else between(_percent(share.low), _percent(share.high))
    return PageCell(text=_percent(share.value), detail=ends)


def _percent(value: float) -> str:
    """With a sign below zero; 0 % for what rounds to it."""
    rounded = percent(abs(value)) if abs(value) >= 0.0005 else "0 %"
    return f"-{rounded}" if value < 0 and rounded != "0 %" else rounded


def _policies(answer: TrafficAnswer, per_hour: Unit, heading: str) -> PageTable:
    return PageTable(
        heading=heading,
        head=("policy", "backend", per_hour.name, "regret", "both halves agree"),
        rows=[
            (
                policy.name.value, policy.words or "no backend ran every step",
                _seconds(answer, policy.seconds, per_hour), _share(policy.regret),
                percent(_agreed(policy)) if policy.choices else DASH,
            )
            for policy in answer.totals.policies
        ],
        numbers=(False, False, True, True, True),
        note="; ".join((
            "both halves agree: the share of the time for which both halves of the rounds choose the same backend",
            *(f"{policy.name.value}: {policy.scored}" for policy in answer.totals.policies if policy.scored),
        )),
    )  # fmt: skip


def _agreed(policy: Policy) -> float:
    return sum(choice.share * choice.agreed for choice in policy.choices)


def _totals(answer: TrafficAnswer, per_hour: Unit, heading: str) -> PageTable:
    def over(ratio: Estimate | None) -> PageCell | str:
        if ratio is None:
            return DASH
        ends = "" if ratio.low is None or ratio.high is None else quantities.between(ratio.low, ratio.high)
        return PageCell(text=times(ratio.value), detail=ends)

    plan = unit((total.plan_layer_s for total in answer.totals.totals if total.planning), SECONDS)
    return PageTable(
        heading=heading,
        head=("backend", per_hour.name, "over the fastest", f"plan a layer, {plan.name}", "of its time"),
        rows=[
            (
                PageCell(text=total.backend, arm=total.backend), _seconds(answer, total.seconds, per_hour),
                over(total.over_fastest), plan.show(total.plan_layer_s) if total.planning else DASH,
                percent(total.planning),
            )
            for total in answer.totals.totals
        ],
        numbers=(False, True, True, True, True),
        note="plan: what depends on the lengths of a batch is done once for all layers; the seconds contain it",
    )  # fmt: skip


def _settings(answer: TrafficAnswer, heading: str) -> PageTable:
    return PageTable(
        heading=heading,
        head=("library", "setting", "note"),
        rows=[(each.engine, each.setting or DASH, each.note) for each in answer.settings],
        note="vLLM and transformers take the best single backend, sglang the best of each phase",
    )


def _mix(parts: Sequence[MixPart], heading: str, head: str) -> PageTable:
    steps, predicted = sum(part.steps for part in parts), sum(part.predicted_s for part in parts)
    return PageTable(
        heading=heading,
        head=(head, "steps", "of steps", "predicted", "drawn", "measured"),
        rows=[
            (
                part.name, f"{part.steps:,}", percent(part.steps / steps), percent(part.predicted_s / predicted),
                f"{part.drawn:,}", _share(part.share),
            )
            for part in parts
        ],
        numbers=(False, True, True, True, True, True),
        note=f"predicted and measured: shares of attention time; an interval needs {MIN_STEPS} drawn steps",
    )  # fmt: skip


def _excluded(answer: TrafficAnswer, heading: str) -> PageTable:
    return PageTable(
        heading=heading,
        head=("policy", "steps", "backend", "without a time", "why"),
        rows=[
            (policy.name.value, each.scope, each.backend, f"{each.steps} of {each.of}", "; ".join(each.reasons))
            for policy in answer.totals.policies
            for each in policy.excluded
        ],
        numbers=(False, False, False, True, False),
    )
