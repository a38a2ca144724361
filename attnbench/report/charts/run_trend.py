"""Geometric means over the first run, run by run."""

from collections.abc import Mapping, Sequence

from attnbench.analysis.stats import Estimate
from attnbench.report.charts import series
from attnbench.report.charts.figure import WIDE, Figure
from attnbench.report.charts.lines import drawable


def figure(geomeans: Sequence[tuple[str, Mapping[str, Estimate]]]) -> Figure | None:
    """A line for each arm over the runs of one machine; None for less than two runs."""
    by_arm: dict[str, list[series.SeriesPoint]] = {}
    for place, (run, means) in enumerate(geomeans):
        for arm, mean in means.items():
            tip = f"{arm}, {run}: {mean.value:.3g}× the time of the first run"
            by_arm.setdefault(arm, []).append(
                series.SeriesPoint(place=place, value=mean.value, ends=_ends(mean), tip=tip)
            )
    if len(geomeans) < 2 or not by_arm:
        return None
    lines = tuple(series.Series(arm=arm.rpartition("@")[0], points=tuple(points)) for arm, points in by_arm.items())
    return series.figure(
        "trend", [series.SeriesPanel(series=lines)], [run for run, _ in geomeans], ("time over the first run's", "x"),
        "Run by run: geometric mean of times over the first run's", "bars: 95 % interval over cases", width=WIDE,
    )  # fmt: skip


def _ends(mean: Estimate) -> tuple[float, float] | None:
    low, high = mean.low, mean.high
    return (low, high) if low is not None and high is not None and drawable(low) and drawable(high) else None
