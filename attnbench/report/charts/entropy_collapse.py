"""The entropy of attention weights with and without the scale 1 / sqrt(head_dim)."""

from collections.abc import Sequence

import numpy as np

from attnbench.report.charts import series
from attnbench.report.charts.figure import WIDE, Figure
from attnbench.studies.weights import COLLAPSE_KEYS, Collapse


def figure(collapses: Sequence[Collapse]) -> Figure:
    """Entropy over head_dim, one line with the scale and one without."""
    lines = [
        series.Series(
            arm=name,
            points=tuple(
                series.SeriesPoint(place=place, value=value, tip=f"{name}, head_dim {dim}: {value:.2f} nats")
                for place, (dim, value) in enumerate(values)
            ),
        )
        for name, values in (
            ("scaled", [(collapse.head_dim, collapse.scaled) for collapse in collapses]),
            ("not scaled", [(collapse.head_dim, collapse.unscaled) for collapse in collapses]),
        )
    ]
    most = float(np.log(COLLAPSE_KEYS))
    caption = (
        f"entropy in nats over head_dim, mean over rows of {COLLAPSE_KEYS} keys, normal inputs; scaled: by "
        "1 / sqrt(head_dim); dashed: equal weight on all keys"
    )
    return series.figure(
        "entropy", [series.SeriesPanel(series=tuple(lines), rules=(most,))], [str(each.head_dim) for each in collapses],
        ("entropy (nats)", ""), "Why scores are scaled: without it, one key takes all the weight", caption, log=False,
        width=WIDE,
    )  # fmt: skip
