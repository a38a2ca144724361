"""Charts as SVG, PNG and PDF, rendered by vl-convert without a browser or the network."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnbench.errors import StoreError, UsageError
from attnbench.report.charts.drawing import Chart

Spec = dict[str, Any]  # Vega-Lite, as JSON
FORMATS = ("svg", "png", "pdf")
SCALE = 2  # pixels of a PNG for one pixel of the chart
MISSING = "plots need altair and vl-convert-python: pip install altair vl-convert-python"


def available() -> bool:
    """Whether altair and vl-convert are installed; neither is imported."""
    return bool(find_spec("altair") and find_spec("vl_convert"))


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Turn off altair's validation against its schema, which takes longer than drawing; the tests validate."""
    if not available():
        yield
        return
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield


def spec(chart: Chart) -> Spec:
    """The Vega-Lite of a chart, with inline data and a transparent background."""
    spec: Spec = chart.to_dict(validate=False)
    # altair keeps the table of a chart under `datasets`; the page's script filters it in place.
    for values in spec.pop("datasets", {}).values():
        spec["data"] = {"values": values}
    spec["background"] = None
    # A label on every mark would triple the size; the page labels the chart and shows its table.
    spec["config"]["aria"] = False
    return spec


def inline(spec: Spec) -> str:
    """SVG to embed in a page: transparent, in the page's text colour."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec))


def standing(svg: str) -> str:
    """The same for a file: on white, in black."""
    return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)


def render(chart: Chart, format_: str) -> bytes:
    """One chart as svg, png or pdf; the same data give the same bytes, except for the date in a PDF."""
    return convert(standing(inline(spec(chart))), format_)


def convert(svg: str, format_: str) -> bytes:
    """The SVG of a file in one of FORMATS."""
    import vl_convert

    if format_ == "svg":
        return svg.encode()
    return bytes(vl_convert.svg_to_png(svg, scale=SCALE) if format_ == "png" else vl_convert.svg_to_pdf(svg))


class Picture:
    """A chart of altair that a notebook shows as SVG, without the network."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart

    def _repr_svg_(self) -> str:
        return standing(inline(spec(self.chart)))

    def save(self, path: Path) -> None:
        """Write .svg, .png or .pdf. Raises UsageError for another ending, StoreError if the file cannot be written."""
        format_ = path.suffix.removeprefix(".")
        if format_ not in FORMATS:
            raise UsageError(f"{path}: ends with none of .{', .'.join(FORMATS)}")
        try:
            path.write_bytes(render(self.chart, format_))
        except OSError as error:
            raise StoreError(f"cannot write to {path}: {error.strerror}") from error


def write(drawings: Mapping[str, str], folder: Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write every inline SVG in every format, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, svg in drawings.items():
        for format_ in formats:
            written.append(folder / f"{name}.{format_}")
            written[-1].write_bytes(convert(standing(svg), format_))
    return written
