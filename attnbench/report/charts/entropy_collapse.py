"""The entropy of attention weights with and without the scale 1 / sqrt(head_dim)."""

from collections.abc import Sequence

import numpy as np

from attnbench.report.charts.drawing import Chart, titled
from attnbench.studies.weights import COLLAPSE_KEYS, Collapse


def chart(collapses: Sequence[Collapse]) -> Chart:
    """Entropy over head_dim, one line with the scale and one without."""
    import altair as alt

    points = [
        {"head_dim": collapse.head_dim, "entropy": round(value, 4), "scores": name}
        for collapse in collapses
        for name, value in (("scaled by 1 / sqrt(head_dim)", collapse.scaled), ("not scaled", collapse.unscaled))
    ]
    x = alt.X("head_dim:Q", title="head_dim", scale=alt.Scale(type="log", base=2))
    y = alt.Y("entropy:Q", title="entropy (nats)", scale=alt.Scale(domain=[0, float(np.log(COLLAPSE_KEYS))]))
    whole = alt.Chart(alt.InlineData(values=points), width=420, height=260)
    drawn = whole.mark_line(point=True).encode(x=x, y=y, color=alt.Color("scores:N", title=None))
    below = f"mean over rows of {COLLAPSE_KEYS} keys, normal inputs; the top of the axis is equal weight on all keys"
    return titled(drawn, "Why scores are scaled: without it, one key takes all the weight", below)
