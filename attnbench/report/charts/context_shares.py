"""Where the attention time of traffic goes by context length: predicted for all steps, and measured."""

from collections.abc import Sequence

from attnbench import units
from attnbench.analysis.traffic_mix import Mix
from attnbench.report.charts import series
from attnbench.report.charts.figure import WIDE, Figure
from attnbench.report.charts.series import Series, SeriesPoint

MIN_PARTS = 2  # one context length is a number of the table


def figure(mix: Mix, heading: str) -> Figure | None:
    """Shares of time over the lower end of each range of context lengths; None for a single range."""
    parts = mix.by_context
    if len(parts) < MIN_PARTS:
        return None
    names = [units.short(part.context[0]) if part.context else "" for part in parts]
    lines = [
        _series("predicted", [part.predicted_s for part in parts], names),
        _series("measured", [part.measured_s for part in parts], names),
    ]
    panel = series.SeriesPanel(series=tuple(each for each in lines if each.points))
    caption = "percent of attention time over keys per request, in powers of two"
    return series.figure(
        "context", [panel], names, ("share of attention time", "%"), heading, caption, log=False, width=WIDE
    )


def _series(name: str, seconds: Sequence[float | None], names: Sequence[str]) -> Series:
    total = sum(value or 0.0 for value in seconds)
    shares = [(place, 100 * value / total) for place, value in enumerate(seconds) if value is not None]
    return Series(
        arm=name,
        points=tuple(
            SeriesPoint(place=place, value=share, tip=f"{name}, from {names[place]} keys: {share:.1f} % of the time")
            for place, share in shares
        ),
    )
