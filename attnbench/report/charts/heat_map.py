"""Heat maps of matrices with queries downwards and keys to the right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from attnbench import units
from attnbench.report.charts.figure import Box, ChartAxis, Edges, Panel, Tick
from attnbench.report.charts.svg import FONT

MIN_SIDE = 40  # pixels of the shorter side
STEPS = 32  # of the scale of colours
PALE, STRONG = (219, 233, 244), (0, 114, 178)  # red, green, blue of the ends of the scale


def panels(
    rasters: Mapping[str, NDArray[np.float64]],
    lengths: tuple[int, int],
    side: float,
    most: float,
    show: Callable[[float], str],
) -> tuple[Panel, ...]:
    """One panel for each raster of shape [rows, columns], under its name; all cover `lengths` = (seq_q, seq_kv) tokens.

    `side` is in pixels, along the longer of queries and keys. A cell of 0 is left white; `most` has the full colour.
    """
    seq_q, seq_kv = lengths
    width, height = (max(MIN_SIDE, min(side, side * ratio)) for ratio in (seq_kv / seq_q, seq_q / seq_kv))
    margins = Edges(left=44, right=14, top=8, bottom=FONT + 12)
    return tuple(
        Panel(
            heading=name, width=width + margins.left + margins.right, height=height + margins.top + margins.bottom,
            margins=margins, x=_axis(seq_kv, "key", down=False), y=_axis(seq_q, "query", down=True),
            marks=tuple(_cells(raster, seq_q, seq_kv, most, show)),
        )
        for name, raster in rasters.items()
    )  # fmt: skip


def scale(most: float, show: Callable[[float], str]) -> str:
    """What the colours mean, for a caption."""
    return f"white: 0; full colour: {show(most)}"


def _axis(tokens: int, title: str, down: bool) -> ChartAxis:
    ticks = tuple(Tick(value, units.short(value)) for value in (0, tokens // 2, tokens)) if tokens > 1 else ()
    return ChartAxis(low=0, high=tokens, title=title, down=down, ticks=ticks)


def _cells(
    raster: NDArray[np.float64], seq_q: int, seq_kv: int, most: float, show: Callable[[float], str]
) -> Iterator[Box]:
    """Neighbours of one colour in a row are one box."""
    height, width = seq_q / raster.shape[0], seq_kv / raster.shape[1]
    shares = np.clip(raster / most if most else raster, 0, 1)
    colors = np.where(raster > 0, 1 + np.round(np.sqrt(shares) * (STEPS - 1)), 0).astype(int)
    for row, line in enumerate(colors):
        starts = [0, *(np.flatnonzero(np.diff(line)) + 1)]
        for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
            if line[start]:
                value = show(float(raster[row, start:end].mean()))
                yield Box(
                    x=(start * width, end * width), y=(row * height, (row + 1) * height),
                    color=_color((line[start] - 1) / (STEPS - 1)),
                    tip=f"queries from {row * height:.0f}, keys from {start * width:.0f}: {value}",
                )  # fmt: skip


def _color(share: float) -> str:
    return "#" + "".join(
        f"{round(pale + (strong - pale) * share):02x}" for pale, strong in zip(PALE, STRONG, strict=True)
    )
