"""The nodes of each hardware model: how they differ, and what explains a slow one."""

from collections.abc import Iterator, Sequence

import msgspec

from attnbench import units
from attnbench.report.terminal.text_layout import aligned, wrap
from attnbench.studies.fleet import HardwareModel, NodeReport, relative_to

HEADINGS = ("time", "interval", "cases", "restarts", "verdict")


def lines(models: Sequence[HardwareModel], width: int) -> Iterator[str]:
    """A table for each hardware model, and a paragraph for each node that differs."""
    for model in models:
        yield from wrap(_headline(model), width, indent=2)
        if model.nodes:
            yield ""
            head, *rows = aligned("node", HEADINGS, [(node.node, _cells(node)) for node in model.nodes], width)
            for row in (head, *rows):
                yield from row
            if any(node.sentences for node in model.nodes):
                yield ""
        for node in model.nodes:
            headline, *rest = node.sentences or [""]
            yield from wrap(headline, width, indent=2) if headline else ()
            yield from (f"  {line}" for text in rest for line in wrap(text, width - 2, indent=2))
        if model.alone:
            yield from wrap(f"no case in common with another node: {', '.join(model.alone)}", width, indent=2)
        if model.alike:
            yield from wrap(_alike(model), width, indent=2)
        yield ""
    if any(model.nodes for model in models):
        yield from wrap(
            f"time: relative to {relative_to(models)}; the 95 % interval holds for all nodes at once", width, indent=2
        )
        if all(node.restarts == 1 for model in models for node in model.nodes):
            yield from wrap(
                "one restart: the interval leaves out how far restarts differ (--restarts 3)", width, indent=2
            )
    else:
        yield from wrap(f"no two nodes of one hardware model share a case: {_remedy(models)}", width, indent=2)


def _alike(model: HardwareModel) -> str:
    return (
        f"{model.alike} of these nodes are runs without the tag node, with one fingerprint: equal machines, or one "
        "machine that counts several times; run --tag node=NAME tells them apart"
    )


def _remedy(models: Sequence[HardwareModel]) -> str:
    classes = sorted({f"hardware={name}" for model in models for name in model.classes})
    if len(classes) > 1:
        listed = f"{', '.join(classes[:-1])} and {classes[-1]}"
        return f"they were measured as {listed}; only nodes of one class share cases"
    return "measure the same suite on each, on a cluster with --restarts 3"


def records(models: Sequence[HardwareModel]) -> Iterator[dict[str, object]]:
    """One line of `--json` for each node."""
    for model in models:
        shared: dict[str, object] = {"type": "node", "hardware": model.model, "spread": model.spread}
        yield from ({**shared, **msgspec.to_builtins(node)} for node in model.nodes)
        yield from ({**shared, "node": name, "cases": 0} for name in model.alone)


def _headline(model: HardwareModel) -> str:
    counts = units.counted(len(model.nodes) + len(model.alone), "node")
    return f"{model.model}, {counts}" + (f", spread {units.margin(model.spread)}" if model.spread is not None else "")


def _cells(node: NodeReport) -> tuple[str, ...]:
    change, interval = units.change_and_interval(node.change, node.low, node.high)
    return change, interval or "too few cases", str(node.cases), str(node.restarts), node.verdict
