"""Predicted times and memory with their intervals and grounds, and the errors of hidden cases."""

from collections.abc import Iterator, Sequence

from attnbench import units
from attnbench.report.terminal.text_layout import aligned, shared_words, wrap
from attnbench.studies.predict import PredictedValue, Prediction, Source
from attnbench.studies.prediction_check import HeldOut

HEADINGS = ("backend", "time", "interval", "memory", "from")
SHORT = {Source.ROOFLINE: "roofline", Source.UNCHECKED: "unchecked"}  # longer names break the table
OF_MEMORY = {
    Source.FORMULA: "formula: that of the backend, exact in every measured case",
    Source.UNCHECKED: "unchecked: the formula of the backend, with too few measured cases to check it",
}
CHECKED = ("median error", "in the interval", "half-width", "hidden")


def lines(predictions: Sequence[Prediction], width: int) -> Iterator[str]:
    """One table for each device; below each row the most similar measured case, or why nothing is predicted."""
    for device in dict.fromkeys(each.device for each in predictions):
        of_device = [each for each in predictions if each.device == device]
        common, labels = shared_words([each.problem for each in of_device])
        yield from wrap(f"{common} {device}".strip(), width)
        yield ""
        rows = [(label, _cells(each)) for label, each in zip(labels, of_device, strict=True)]
        head, *table = aligned("problem", HEADINGS, rows, width)
        yield from head
        for each, following, row in zip(of_device, [*of_device[1:], None], table, strict=True):
            yield from row
            if not (following and _refused_alike(each, following)):
                yield from (f"    {line}" for line in _below(each, width - 4))
        yield ""
    if legend := _legend(predictions):
        yield from wrap(legend, width, indent=2)


def _refused_alike(first: Prediction, other: Prediction) -> bool:
    """Whether one reason and one command stand for both."""
    same = (first.problem, first.reason, first.measure) == (other.problem, other.reason, other.measure)
    return same and bool(first.reason)


def _cells(each: Prediction) -> tuple[str, ...]:
    if each.time is None:
        return each.arm, *"----"
    memory = units.size(each.memory.value) if each.memory else "-"
    between = units.between(units.seconds(each.time.low), units.seconds(each.time.high))
    sources = dict.fromkeys(_from(value) for value in (each.time, each.memory) if value)
    return each.arm, units.seconds(each.time.value), between, memory, ", ".join(sources)


def _from(predicted: PredictedValue) -> str:
    source = predicted.source
    return f"{source.value} of {predicted.cases}" if source is Source.LAW else SHORT.get(source, source.value)


def _below(each: Prediction, width: int) -> Iterator[str]:
    if each.reason:
        yield from wrap(each.reason, width, indent=2)
        if each.measure:
            yield from wrap(f"measure it: {each.measure}", width, indent=2)
    elif each.time and each.time.source is not Source.MEASURED:
        yield from wrap(f"nearest: {each.nearest[0]}", width, indent=2)
        if each.octaves_outside:
            yield from wrap(f"{each.octaves_outside:.1f} octaves outside the measured range", width, indent=2)


def _legend(predictions: Sequence[Prediction]) -> str:
    """What the intervals claim, by what was predicted."""
    times = [each.time for each in predictions if each.time]
    texts = []
    if confidences := {time.confidence for time in times if time.source is Source.LAW and time.confidence}:
        texts.append(
            f"intervals of laws: {units.whole_percent(min(confidences))}, from the errors of hidden measured cases"
        )
    if any(time.source is Source.MEASURED for time in times):
        texts.append("measured: its own interval of 95 %")
    if any(time.source is Source.LAW and not time.confidence for time in times):
        texts.append("outside the measured range intervals widen with the distance and claim no share")
    if any(time.source is Source.ROOFLINE for time in times):
        texts.append("from the roofline alone: at the share of the roofline that similar cases reach on the measured "
                     "device; the interval goes from the bound to the least of these shares")  # fmt: skip
    if sources := {each.memory.source for each in predictions if each.memory}:
        texts.append("memory of a call beyond its inputs, with its outputs; from: the source of the time, and that of "
                     "the memory where it is another")  # fmt: skip
    texts += [text for source, text in OF_MEMORY.items() if source in sources]
    return "; ".join(texts)


def checked(entries: Sequence[HeldOut], width: int) -> Iterator[str]:
    """One row for each law, and all of them last."""
    rows = [(f"{each.arm} {each.device} {each.what}".strip(), _checked_cells(each)) for each in entries]
    for row in aligned("law", CHECKED, rows, width):
        yield from row
    edge, few = units.counted(entries[-1].outside, "case"), units.counted(entries[-1].unpredicted, "case")
    yield ""
    method = "each measured shape was hidden once and predicted from nine tenths of the others"
    yield from wrap(f"{method}; not counted: {edge} at the edge of the range, {few} with too few others", width, 2)


def _checked_cells(each: HeldOut) -> tuple[str, ...]:
    shares = (units.percent(each.median_error), units.whole_percent(each.coverage), units.whole_percent(each.interval))
    return (*shares, f"{each.cases:,}")
