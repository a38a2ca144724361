"""The times of one run over those of another: a row for each problem, a marker for each arm."""

from collections.abc import Sequence

from attnbench.analysis.comparison import Pair
from attnbench.analysis.rows import Row
from attnbench.report.charts import axes, forest, lines, panels
from attnbench.report.charts.figure import Figure
from attnbench.report.charts.forest import Forest, ForestRow, Item

MAX_ROWS = 40


def figure(pairs: Sequence[Pair], rows: Sequence[Row], old: str, new: str, name: str = "ratios") -> Figure | None:
    """New over old with intervals; of many problems those with the largest effects. `rows` are those of a run."""
    by_case = {(pair.case_id, pair.arm): pair for pair in pairs if pair.ratio}
    paired = [(row, pair) for row in rows if (pair := by_case.get((row.case_id, f"{row.arm_name}@{row.device}")))]
    if not paired:
        return None
    layout = panels.layout([row for row, _ in paired])
    pair_of = {(row.case_id, row.arm): pair for row, pair in paired}
    problems = [
        [(row, pair_of[row.case_id, row.arm]) for row in at]
        for group in layout.panels([row for row, _ in paired]).values()
        for at in panels.along(group, layout.axis)
    ]
    shown = problems
    if len(problems) > MAX_ROWS:
        largest = sorted((max(pair.effect for _, pair in each) for each in problems), reverse=True)[MAX_ROWS - 1]
        shown = [each for each in problems if max(pair.effect for _, pair in each) >= largest][:MAX_ROWS]
    left_out = f"the {len(shown)} problems with the largest effects of {len(problems)}" if shown != problems else ""
    table = [
        ForestRow(group=group, label=label, items=tuple(_item(row, pair) for row, pair in each))
        for each, (group, label) in ((each, layout.place(each[0][0])) for each in shown)
    ]
    about = Forest(title="new over old", sides=("faster", "slower"), shade=False)
    intervals = any(item.ends for row in table for item in row.items)
    caption = "bars: 95 % interval of the ratio of times; ~ the interval contains 1×" if intervals else ""
    return forest.figure(name, table, about, f"Time of {new} over {old}", caption, left_out)


def _item(row: Row, pair: Pair) -> Item:
    assert pair.ratio
    ratio = pair.ratio
    low, high = ratio.low, ratio.high
    ends = (low, high) if low and high and lines.drawable(low) and lines.drawable(high) else None
    unsure = ends is None or ends[0] <= 1 <= ends[1]
    text = f"{ratio.value:.2f}×" if ratio.value < 10 else axes.shown(ratio.value, "x")
    tip = f"{row.arm_name}, {row.problem}: {text} the time, {pair.change.value}"
    return Item(
        arm=row.arm_name, value=ratio.value, ends=ends, text=text + (" ~" if unsure else ""), unsure=unsure, tip=tip
    )
