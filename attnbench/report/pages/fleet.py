"""The section of machines: which node of a hardware model is slow, by how much, and why."""

from collections.abc import Iterator, Sequence

from attnbench import units
from attnbench.report.charts import node_effects
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, blocks, without_empty_columns
from attnbench.report.quantities import listed, sentence
from attnbench.studies.fleet import HardwareModel, NodeReport, relative_to


def page(data: ReportData) -> Page:
    """The nodes of each hardware model that has several; nothing without one."""
    models = [model for model in data.fleet if model.nodes]
    if not models:
        return Page()
    return Page(
        finding=finding(models),
        text=tuple(_text(models)),
        blocks=blocks(node_effects.figure(models, relative_to(models)), _table(models)),
    )


def finding(models: Sequence[HardwareModel]) -> str:
    """`b is slow: +10.5 % (SM clock 10.1 % lower)`, or how far the nodes are apart."""
    nodes = [node for model in models for node in model.nodes]
    differing = [node for node in nodes if node.verdict]
    if len(differing) == 1:
        (node,) = differing
        cause = f" ({node.causes[0]})" if node.causes else ""
        return f"{node.node} is {node.verdict}: {units.change(node.change)}{cause}"
    if differing:
        return f"{len(differing)} of {len(nodes)} machines differ: {listed([node.node for node in differing])}"
    if all(node.low is None for node in nodes):
        return f"Too few common cases to compare {units.counted(len(nodes), 'machine')}"
    spreads = [units.margin(model.spread) for model in models]
    return f"No machine of {len(nodes)} is slow: spread {listed(spreads)}"


def _text(models: Sequence[HardwareModel]) -> Iterator[str]:
    """What is unusual about the nodes, and those that cannot be compared."""
    for model in models:
        for node in model.nodes:
            yield from (f"{sentence(text) if place else text}." for place, text in enumerate(node.sentences))
        if model.alone:
            yield f"{model.model}: no case in common with another node: {', '.join(model.alone)}."


def _table(models: Sequence[HardwareModel]) -> PageTable:
    several = len(models) > 1
    rows = [(model.model if several else "", *_cells(node)) for model in models for node in model.nodes]
    head = ("hardware", "node", "time", "cases", "restarts", "verdict", "why")
    numbers = (False, False, True, True, True, False, False)
    return without_empty_columns(PageTable(heading="Nodes", head=head, numbers=numbers, rows=rows))


def _cells(node: NodeReport) -> tuple[str | PageCell, ...]:
    change, interval = units.change_and_interval(node.change, node.low, node.high)
    time = PageCell(text=change, detail=interval, bold=bool(node.verdict))
    return node.node, time, str(node.cases), str(node.restarts), node.verdict, "; ".join(node.causes)
