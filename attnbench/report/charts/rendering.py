"""Figures as SVG, PNG and PDF; vl-convert makes the last two without a browser or the network."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from attnbench.errors import UsageError, writing
from attnbench.report.charts import sizes, standing
from attnbench.report.charts.figure import Figure
from attnbench.report.charts.sizes import Paper

FORMATS = ("svg", "png", "pdf")
SCALE = 2  # pixels of a PNG for one pixel of the figure
MISSING = "PNG and PDF need vl-convert-python: pip install vl-convert-python; .svg works without it"


def available(format_: str = "png") -> bool:
    """Whether figures can be written in this format."""
    return format_ == "svg" or find_spec("vl_convert") is not None


def render(figure: Figure, format_: str) -> bytes:
    """One figure as svg, png or pdf; the same data give the same bytes, except for the date in a PDF."""
    return convert(standing.picture(figure), format_)


def convert(text: str, format_: str) -> bytes:
    """An SVG of a file in one of FORMATS."""
    if format_ == "svg":
        return text.encode()
    import vl_convert

    return bytes(vl_convert.svg_to_png(text, scale=SCALE) if format_ == "png" else vl_convert.svg_to_pdf(text))


class Picture:
    """A figure that a notebook shows as SVG, without the network."""

    def __init__(self, figure: Figure, paper: Paper | None = None) -> None:
        """Draw it for a screen, or for `paper` without its heading and caption."""
        self.figure = figure
        self.text = sizes.picture(figure, paper) if paper else standing.picture(figure)

    @property
    def caption(self) -> str:
        """What a paper prints below the figure."""
        words = (self.figure.heading, self.figure.caption, self.figure.left_out)
        return ". ".join(word[:1].upper() + word[1:] for word in words if word) + "."

    def _repr_svg_(self) -> str:
        return self.text

    def save(self, path: Path | str) -> None:
        """Write .svg, .png or .pdf. Raises UsageError for another ending, StoreError if the file cannot be written."""
        path = Path(path)
        format_ = path.suffix.removeprefix(".")
        if format_ not in FORMATS:
            raise UsageError(f"{path}: ends with none of .{', .'.join(FORMATS)}")
        if not available(format_):
            raise UsageError(f"{path}: {MISSING}")
        with writing(path):
            path.write_bytes(convert(self.text, format_))


def write(
    figures: Iterable[tuple[str, Figure]],
    folder: Path,
    formats: Sequence[str] = ("svg", "png"),
    arms: Iterable[str] = (),
) -> list[Path]:
    """Write every named figure in every available format, and return the paths. `arms` are all of the run."""
    arms = tuple(arms)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures:
        text = standing.picture(figure, arms=arms)
        for format_ in formats:
            if available(format_):
                written.append(folder / f"{name}.{format_}")
                written[-1].write_bytes(convert(text, format_))
    return written
