"""The times of each node over those of the others of its hardware model, with intervals."""

from collections.abc import Sequence

from attnbench import units
from attnbench.report.charts import forest
from attnbench.report.charts.figure import Figure
from attnbench.report.charts.forest import Forest, ForestRow, Item
from attnbench.studies.fleet import HardwareModel, NodeReport

VALUE = "time"  # the heading of the numbers


def figure(models: Sequence[HardwareModel], relative_to: str) -> Figure | None:
    """A row for each node, the slowest of a model first."""
    rows = [
        ForestRow(label=node.node, items=(_item(node),), group=model.model if len(models) > 1 else "")
        for model in models
        for node in model.nodes
    ]
    about = Forest(title=f"time over that of {relative_to}", sides=("faster", "slower"), shade=False, percent=True)
    caption = f"time over that of {relative_to}; bars: 95 % intervals that hold for all nodes of a model at once"
    return forest.figure("nodes", rows, about, "Times of the nodes", caption)


def _item(node: NodeReport) -> Item:
    text, interval = units.change_and_interval(node.change, node.low, node.high)
    ends = None if node.low is None or node.high is None else (1 + node.low, 1 + node.high)
    known = f"95 % interval {interval}" if interval else "too few cases for an interval"
    tip = f"{node.node}: {text}, {known}, {units.counted(node.cases, 'case')}"
    return Item(arm=VALUE, value=1 + node.change, ends=ends, text=text, unsure=not node.verdict, tip=tip)
