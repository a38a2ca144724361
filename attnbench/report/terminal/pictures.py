"""Pictures of shades: a mask, and the weights of attention with figures of every head."""

from collections.abc import Iterator, Sequence

import numpy as np

from attnbench import units
from attnbench.attention.masks import Mask
from attnbench.attention.terms import Grid
from attnbench.report.charts import mask as mask_chart
from attnbench.report.charts.attention_weights import title
from attnbench.studies.weights import COLLAPSE_KEYS, TOP, Collapse, Seen

SHADES = " ░▒▓█"
MASK_CELLS, WEIGHT_CELLS = 48, 32  # along a side
FIGURES = ("entropy", "of", "largest", f"top {TOP}", "key 0", "distance")


def mask_picture(mask: Mask, grids: Sequence[Grid], block: int) -> Iterator[str]:
    """A picture of shades, two columns to a cell, rows being queries; then the facts of the mask."""
    for row in mask_chart.shares(mask, grids, MASK_CELLS):
        yield "".join(2 * SHADES[shade(share)] for share in row).rstrip()
    yield from mask_chart.facts(mask, grids, block)


def shade(share: float) -> int:
    """Return an index into SHADES: the darker, the more is visible.

    Only an empty cell is blank, and only a full one is solid.
    """
    last = len(SHADES) - 1
    if share in (0.0, 1.0):
        return int(share) * last
    return 1 + min(last - 2, int(share * (last - 1)))


def weights_picture(seen: Seen, heads: Sequence[int]) -> Iterator[str]:
    """Draw each of these heads, darkest where its mean weight is largest; then the figures of all heads."""
    for number in heads:
        shares = seen.pooled(number, WEIGHT_CELLS)
        yield f"head {number}"
        for row in shares / (shares.max() or 1.0):
            yield "".join(2 * SHADES[shade(float(share))] for share in np.sqrt(np.clip(row, 0, 1))).rstrip()
    yield f"weights of {title(seen)}; shade: root of the mean weight"
    yield f"{'head':<6}" + "".join(name.rjust(10) for name in FIGURES)
    for head in seen.heads():
        weights = "".join(units.percent(share, 1).rjust(10) for share in (head.first, head.top, head.sink))
        yield f"{head.head:<6}{head.entropy:10.2f}{head.most:10.2f}{weights}{head.distance:10.1f}"
    yield f"means over rows: entropy and its maximum, in nats; weight of the largest key, of {TOP}, of key 0; distance"


def collapsed(collapses: Sequence[Collapse]) -> Iterator[str]:
    """One line for each head_dim."""
    yield f"mean entropy of a row over {COLLAPSE_KEYS} keys, normal inputs; at most {np.log(COLLAPSE_KEYS):.3f} nats"
    yield "head_dim  unscaled    scaled"
    for collapse in collapses:
        yield f"{collapse.head_dim:<10}{collapse.unscaled:8.2f}  {collapse.scaled:8.2f}"
