"""Heat maps of matrices with queries downwards and keys to the right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from attnbench.report.charts.drawing import Chart

if TYPE_CHECKING:
    import altair as alt

COLUMNS = 4  # of panels
MIN_SIDE = 40  # pixels of the shorter side


def heat_maps(
    rasters: Mapping[str, NDArray[np.float64]],
    lengths: tuple[int, int],
    side: int,
    title: str,
    number_format: str,
    color_scale: alt.Scale,
) -> Chart:
    """One panel for each raster of shape [rows, columns], under its name; all cover `lengths` = (seq_q, seq_kv) tokens.

    `side` is in pixels, along the longer of queries and keys.
    """
    import altair as alt

    seq_q, seq_kv = lengths
    width, height = (max(MIN_SIDE, min(side, round(side * ratio))) for ratio in (seq_kv / seq_q, seq_q / seq_kv))
    bare = alt.Axis(grid=False)
    keys = alt.X("j:Q", title="key", scale=alt.Scale(domain=[0, seq_kv], nice=False, zero=False), axis=bare)
    queries = alt.Y("i:Q", title="query", scale=alt.Scale(domain=[seq_q, 0], nice=False, zero=False), axis=bare)
    color = alt.Color("share:Q", title=title, scale=color_scale, legend=alt.Legend(format=number_format))
    whole = alt.Chart(alt.InlineData(values=_cells(rasters, seq_q, seq_kv)), width=width, height=height)
    drawn: alt.Chart = whole.mark_rect().encode(
        x=keys, y=queries, x2="j2:Q", y2="i2:Q", color=color, tooltip=["i:Q", "j:Q", "share:Q"]
    )
    if len(rasters) == 1:
        return drawn
    panel = alt.Facet("panel:N", title=None, sort=list(rasters), header=alt.Header(labelFontWeight="bold"))
    panels: Chart = drawn.facet(facet=panel, columns=COLUMNS)
    return panels


def _cells(rasters: Mapping[str, NDArray[np.float64]], seq_q: int, seq_kv: int) -> list[dict[str, object]]:
    return [
        {
            "panel": name, "i": row * seq_q / raster.shape[0], "i2": (row + 1) * seq_q / raster.shape[0],
            "j": column * seq_kv / raster.shape[1], "j2": (column + 1) * seq_kv / raster.shape[1],
            "share": float(f"{raster[row, column]:.4g}"),
        }
        for name, raster in rasters.items()
        for row, column in zip(*np.nonzero(raster), strict=True)
    ]  # fmt: skip
