"""Blocks in the order of measurement: the noise and drift of the machine."""

from collections.abc import Sequence

from attnbench.report.charts.drawing import HEIGHT, WIDTH, Chart, Point, arm_looks, titled


def chart(blocks: Sequence[Point], caption: str, left_out: str) -> Chart | None:
    """Every block over the median of its case, by round."""
    if not blocks:
        return None
    import altair as alt

    color, shape, _ = arm_looks(block["arm"] for block in blocks)
    cloud = alt.Chart(alt.InlineData(values=list(blocks))).mark_point(size=18, opacity=0.8, filled=True).encode(
        x=alt.X("x:Q", title="round", axis=alt.Axis(grid=False, tickMinStep=1)),
        y=alt.Y("y:Q", title="block over median of its case", scale=alt.Scale(zero=False)),
        color=color, shape=shape, tooltip=["label:N", "y:Q", "x:Q", "position:Q", "load:Q", "tags:N"],
    )  # fmt: skip
    heading = "Blocks over the rounds: a flat cloud around 1 means little noise and no drift"
    return titled(cloud.properties(width=2 * WIDTH, height=HEIGHT), heading, caption, left_out)
