"""Weights of attention for people: shades and figures of every head, heat maps, and the collapse without a scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from attnbench.attention.problem import Mode
from attnbench.case import problem_label
from attnbench.report import drawing, heat
from attnbench.report.drawing import Chart
from attnbench.report.style import BLUE
from attnbench.studies.weights import COLLAPSE_KEYS, TOP, Collapse, Head, Seen

CELLS = 32  # of a picture in a terminal, to a side
DRAWN = 64  # of a heat map
SIDE = 200
HEADS_MOST = 8  # that are drawn; all of them are counted
FIGURES = ("entropy", "of", "largest", f"top {TOP}", "key 0", "distance")


def text(seen: Seen, heads: Sequence[int]) -> Iterator[str]:
    """Shades of each of these heads, the darkest its largest mean, then the figures of all."""
    for number in heads:
        shares = seen.pooled(number, CELLS)
        most = shares.max() or 1.0
        yield f"head {number}"
        for row in shares / most:
            yield "".join(2 * heat.SHADES[heat.shade(float(share))] for share in np.sqrt(np.clip(row, 0, 1))).rstrip()
    yield from table(seen)


def table(seen: Seen) -> Iterator[str]:
    """One line a head: means over its rows."""
    yield f"weights of {title(seen)}; shade: root of the mean weight"
    yield f"{'head':<6}" + "".join(name.rjust(10) for name in FIGURES)
    for head in seen.heads():
        yield f"{head.head:<6}" + "".join(cell.rjust(10) for cell in _cells(head))
    yield f"means over rows: entropy and the most possible, in nats; mass of the largest, of {TOP}, of key 0; distance"


def title(seen: Seen) -> str:
    """The problem without what all have in common, and its inputs."""
    return f"{problem_label(seen.problem, Mode.FWD).replace(' returns=weights', '')}, {seen.inputs} inputs"


def chart(seen: Seen) -> Chart:
    """A heat map for each of the first heads, on one scale of colors."""
    figures = seen.heads()[:HEADS_MOST]
    pooled = {_heading(head): seen.pooled(head.head, DRAWN) for head in figures}
    most = float(max(one.max() for one in pooled.values()))
    colors = {"type": "sqrt", "domain": [0, most], "range": ["#ffffff", BLUE], "interpolate": "rgb"}
    drawn = heat.tiles(pooled, (seen.problem.seq_q, seen.problem.seq_kv), SIDE, "weight", ".2g", colors)
    more = [f"the first {len(figures)} of {len(seen.weights)} heads"] if len(figures) < len(seen.weights) else []
    return drawing.titled(drawn, "Weights by head", title(seen), *more)


def collapsed(found: Sequence[Collapse]) -> Iterator[str]:
    """A line for each width."""
    yield f"mean entropy of a row over {COLLAPSE_KEYS} keys, normal inputs; at most {np.log(COLLAPSE_KEYS):.3f} nats"
    yield "head_dim  unscaled    scaled"
    for one in found:
        yield f"{one.head_dim:<10}{one.unscaled:8.2f}  {one.scaled:8.2f}"


def collapse_chart(found: Sequence[Collapse]) -> Chart:
    """Entropy over the width of a head, with the scale and without."""
    import altair as alt

    points = [
        {"head_dim": one.head_dim, "entropy": round(value, 4), "scores": name}
        for one in found
        for name, value in (("scaled by 1 / sqrt(head_dim)", one.scaled), ("not scaled", one.unscaled))
    ]
    drawn = (
        alt.Chart(alt.InlineData(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("head_dim:Q", title="head_dim", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("entropy:Q", title="entropy (nats)", scale=alt.Scale(domain=[0, float(np.log(COLLAPSE_KEYS))])),
            color=alt.Color("scores:N", title=None),
        )
        .properties(width=420, height=260)
    )
    below = f"mean over rows of {COLLAPSE_KEYS} keys, normal inputs; the top of the axis is equal weight on all keys"
    return drawing.titled(drawn, "Why scores are scaled: without it, one key takes all the weight", below)


def _heading(head: Head) -> str:
    return f"head {head.head}: entropy {head.entropy:.2f} of {head.most:.2f}"


def _cells(head: Head) -> tuple[str, ...]:
    return (
        f"{head.entropy:.2f}", f"{head.most:.2f}", f"{head.first:.1%}", f"{head.top:.1%}", f"{head.sink:.1%}",
        f"{head.distance:.1f}",
    )  # fmt: skip
