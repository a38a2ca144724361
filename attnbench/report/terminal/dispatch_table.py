"""The fastest backend of each shape, and what one backend for all shapes would cost."""

from collections.abc import Iterator, Sequence

from attnbench import units
from attnbench.report.terminal.text_layout import aligned, shared_words, wrap
from attnbench.studies.dispatch_table import Choice, Dispatch, Regret
from attnbench.studies.engine_advice import EngineAdvice

HEADINGS = ("backend", "time", "speed-up", "over")
WORTH_NAMING = 1.05  # a regret whose problem is named
REGRETS = ("mean", "worst", "runs")


def lines(dispatch: Dispatch, width: int) -> Iterator[str]:
    """Each shape with its backend, then each backend with its time over the fastest if it were used for all."""
    for device in dict.fromkeys(choice.device for choice in dispatch.choices):
        yield from _choices(device, [choice for choice in dispatch.choices if choice.device == device], width)
    for device, regrets in dispatch.by_device.items():
        if len(regrets) > 1:
            yield ""
            yield from _regrets(device, regrets, width)
    if dispatch.preferences:
        yield ""
    for preference in dispatch.preferences:
        yield from wrap(preference.text, width, indent=2)
    if not dispatch.choices:
        yield "nothing was measured in this run"


def advice_lines(advice: Sequence[EngineAdvice], width: int) -> Iterator[str]:
    """What to set in an engine on each device, and why."""
    for each in advice:
        yield from wrap(f"{each.engine} {each.version} on {each.device}:", width)
        yield from wrap(each.setting or "no setting picks any backend of this run", width, indent=2)
        for text in (*(standing.text for standing in each.ground), *each.notes):
            yield from wrap(text, width, indent=2)
    if not advice:
        yield "nothing was measured in this run"


def _choices(device: str, choices: Sequence[Choice], width: int) -> Iterator[str]:
    common, labels = shared_words([choice.problem for choice in choices])
    yield from wrap(f"{common} {device}".strip(), width)
    yield ""
    rows = [
        (label, (choice.backend, units.seconds(choice.time_s), units.factor(choice.gain or 0.0), choice.second))
        if choice.gain
        else (label, (choice.backend, units.seconds(choice.time_s), "", ""))
        for label, choice in zip(labels, choices, strict=True)
    ]
    columns = len(HEADINGS) if any(choice.gain for choice in choices) else HEADINGS.index("speed-up")
    shown = [(label, cells[:columns]) for label, cells in rows]
    head, *table = aligned("problem", HEADINGS[:columns], shown, width)
    yield from head
    for choice, row in zip(choices, table, strict=True):
        yield from row
        yield from (f"    {line}" for line in wrap(f"as good: {', '.join(choice.tied)}", width - 4) if choice.tied)
    if columns == len(HEADINGS):
        yield ""
        yield from wrap("speed-up over the next slower backend that is not tied, paired by round", width, indent=2)


def _regrets(device: str, regrets: Sequence[Regret], width: int) -> Iterator[str]:
    heading = f"one backend for everything on {device}: its time over the fastest, geometric mean and worst"
    yield from wrap(heading, width, indent=2)
    yield ""
    rows = [
        (regret.backend, (units.factor(regret.mean), units.factor(regret.worst), f"{regret.runs} of {regret.of}"))
        for regret in regrets
    ]
    head, *table = aligned("backend", REGRETS, rows, width)
    yield from head
    for regret, row in zip(regrets, table, strict=True):
        yield from row
        if regret.worst > WORTH_NAMING:
            yield from (f"    {line}" for line in wrap(f"worst at {regret.worst_at}", width - 4, indent=2))
