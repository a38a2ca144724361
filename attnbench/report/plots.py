"""Charts as files and as pieces of a page: SVG, PNG, PDF, by vl-convert; no browser, no network."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnbench.errors import StoreError, UsageError
from attnbench.report.drawing import Chart

FORMATS = ("svg", "png", "pdf")
SCALE = 2  # pixels of a PNG to one of the chart
MISSING = "plots need altair and vl-convert-python: pip install altair vl-convert-python"


def available() -> bool:
    """Whether charts can be drawn here; looked up, not imported."""
    return bool(find_spec("altair") and find_spec("vl_convert"))


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Without altair's check of each piece of a chart against its schema, which takes longer than to draw it.

    The tests make every chart with it.
    """
    if not available():
        yield
        return
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield


def spec(chart: Chart) -> dict[str, Any]:
    """The Vega-Lite of a chart, its data in place and its background clear."""
    found: dict[str, Any] = chart.to_dict(validate=False)
    # altair names its tables and keeps them apart; a page filters the one that there is.
    for values in found.pop("datasets", {}).values():
        found["data"] = {"values": values}
    found["background"] = None
    found["config"]["aria"] = False  # a label on every mark would triple the size; the chart has one, and its table
    return found


def inline(found: Mapping[str, Any]) -> str:
    """SVG of a spec, to stand within a page: clear background, the page's own text colour."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(dict(found))
    return svg


def standing(svg: str) -> str:
    """The same to stand alone: on white, in black."""
    return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)


def render(chart: Chart, format_: str) -> bytes:
    """One chart as svg, png or pdf; the same bytes for the same data, but for the date in a PDF."""
    return convert(standing(inline(spec(chart))), format_)


def convert(svg: str, format_: str) -> bytes:
    """A standing SVG in one of FORMATS."""
    import vl_convert

    if format_ == "svg":
        return svg.encode()
    made: bytes = vl_convert.svg_to_png(svg, scale=SCALE) if format_ == "png" else vl_convert.svg_to_pdf(svg)
    return made


class Picture:
    """A chart that a notebook shows as SVG, without the network; `chart` is altair's."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart

    def _repr_svg_(self) -> str:
        return standing(inline(spec(self.chart)))

    def save(self, path: Path) -> None:
        """As plot.svg, plot.png or plot.pdf. Raises UsageError for another ending, StoreError where it cannot."""
        format_ = path.suffix.removeprefix(".")
        if format_ not in FORMATS:
            raise UsageError(f"{path}: ends with none of .{', .'.join(FORMATS)}")
        try:
            path.write_bytes(render(self.chart, format_))
        except OSError as error:
            raise StoreError(f"cannot write to {path}: {error.strerror}") from error


def write(drawings: Mapping[str, str], folder: Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Every inline SVG as a file, in every format."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, svg in drawings.items():
        alone = standing(svg)
        for format_ in formats:
            path = folder / f"{name}.{format_}"
            path.write_bytes(convert(alone, format_))
            written.append(path)
    return written
