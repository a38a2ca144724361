"""The best backend of each problem as a grid of tiles."""

import math
from collections.abc import Sequence

from attnbench.analysis.rows import Place, Row
from attnbench.report.charts import drawing
from attnbench.report.charts.style import in_order, look

MAX_LINES = 40  # of the grid
TIED, TIED_COLOR = "tied", "#c8c8c8"


def chart(rows: Sequence[Row], caption: str) -> drawing.Chart | None:
    """Each problem in the colour of its fastest backend, with the speed-up; grey where backends are tied."""
    first = [row for row in rows if row.place in (Place.FASTEST, Place.TIED)]
    if not first:
        return None
    import altair as alt

    x = drawing.axis_of(rows)
    tiles = _tiles(first, x, drawing.varying(rows, x))
    lines = list(dict.fromkeys(tile["y"] for tile in tiles))
    shown = lines[:MAX_LINES]
    tiles = [tile for tile in tiles if tile["y"] in shown]
    tiles = tiles[:: math.ceil(len(tiles) / drawing.MAX_POINTS)]
    arms = in_order({tile["best"] for tile in tiles} - {TIED})
    colors = alt.Scale(domain=[*arms, TIED], range=[*(look(arm).color for arm in arms), TIED_COLOR])
    axis = alt.Axis(labelAngle=0, grid=False, labelExpr=drawing.LENGTH_LABELS)
    whole = alt.Chart(alt.InlineData(values=tiles)).encode(
        x=alt.X("x:O", title=drawing.axis_title(x), axis=axis),
        y=alt.Y("y:N", title=None, sort=shown, axis=alt.Axis(labelLimit=300)),
    )
    colored = whole.mark_rect(stroke=drawing.FAINT).encode(
        color=alt.Color("best:N", scale=colors, title=None), tooltip=["label:N", "best:N", "names:N", "text:N"]
    )
    # Black text: white cannot be read on the lighter colours, which were chosen for lines.
    speedups = whole.mark_text(fontSize=11, color="black").encode(text="text:N")
    left_out = f"{len(shown)} of {len(lines)} rows; the table has all" if len(shown) < len(lines) else ""
    grid = alt.layer(colored, speedups).properties(width=alt.Step(54), height=alt.Step(26), title=alt.TitleParams(""))
    return drawing.titled(grid, "Best backend, and its speed-up over the reference; ~ tied", caption, left_out)


def _tiles(first: Sequence[Row], x: str, columns: Sequence[str]) -> list[drawing.Point]:
    """One tile for each problem, from the rows that are fastest or tied with it."""
    groups: dict[tuple[str, object], list[Row]] = {}
    for row in first:
        groups.setdefault((drawing.panel_of(row, columns) or "all", row.value(x)), []).append(row)
    return [
        {
            "kind": "cell", "x": value, "y": line, "names": ", ".join(row.arm_name for row in group),
            "best": group[0].arm_name if len(group) == 1 and group[0].place is Place.FASTEST else TIED,
            "text": f"{group[0].speedup or 1.0:.2g}x" if len(group) == 1 else "~", "label": group[0].problem,
        }
        for (line, value), group in groups.items()
    ]  # fmt: skip
