"""Charts as files: SVG, PNG, PDF, by vl-convert; no browser, no network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnbench import __version__
from attnbench.frame import Row
from attnbench.report import charts

FORMATS = ("svg", "png", "pdf")
SCALE = 2  # pixels of a PNG to one of the chart
MISSING = "plots need altair and vl-convert-python: pip install altair vl-convert-python"


def available() -> bool:
    """Whether charts can be drawn here; looked up, not imported."""
    return bool(find_spec("altair") and find_spec("vl_convert"))


def render(chart: charts.Chart, format_: str) -> bytes:
    """One chart as svg, png or pdf; the same bytes for the same data."""
    held = io.BytesIO()
    text = io.StringIO()
    if format_ == "svg":
        chart.save(text, format="svg")
        return text.getvalue().encode()
    chart.save(held, format=format_, **({"scale_factor": SCALE} if format_ == "png" else {}))
    return held.getvalue()


def spec(chart: charts.Chart) -> dict[str, Any]:
    """The Vega-Lite of a chart, its data in place and its background clear."""
    found: dict[str, Any] = chart.to_dict()
    # altair names its tables and keeps them apart; a page filters the one that there is.
    for values in found.pop("datasets", {}).values():
        found["data"] = {"values": values}
    found["background"] = None
    return found


def inline(chart: charts.Chart) -> str:
    """SVG to stand within a page: clear background, the page's own text colour."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(spec(chart))
    return svg


def write(rows: Sequence[Row], folder: Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Every chart that the rows have data for, in every format."""
    folder.mkdir(parents=True, exist_ok=True)
    caption = charts.caption_of(rows, __version__)
    written = []
    for name, draw in charts.CHARTS.items():
        chart = draw(rows, caption)
        if chart is None:
            continue
        for format_ in formats:
            path = folder / f"{name}.{format_}"
            path.write_bytes(render(chart, format_))
            written.append(path)
    return written
