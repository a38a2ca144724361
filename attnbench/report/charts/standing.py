"""A whole figure as an SVG for a file, in the light colours: heading, caption, legend, and panels with axis titles."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from attnbench.report.charts.figure import Figure, Panel
from attnbench.report.charts.style import Look, light_colors, looks
from attnbench.report.charts.svg import CHARACTER, FONT, RADIUS, content, fit, marker, number, text, text_width

COLUMNS = 2  # panels beside each other
GAP, MARGIN, TITLES = 16.0, 16.0, 20.0  # pixels between panels, around a figure, and for the title of an axis
BARE_MARGIN = 2.0  # around a figure without heading


def picture(
    figure: Figure,
    *,
    arms: Iterable[str] = (),
    font: float = FONT,
    bare: bool = False,
    columns: int = COLUMNS,
    width_mm: float | None = None,
) -> str:
    """The figure. `arms` are all of the run, so that each has one look in all figures.

    `bare` leaves out heading, caption and margin. `width_mm` states the width on paper.
    """
    known = looks((*figure.arms, *arms))
    margin = BARE_MARGIN if bare else MARGIN
    columns = min(columns, len(figure.panels))
    cell = max(panel.width for panel in figure.panels) + TITLES
    width = columns * (cell + GAP) - GAP + 2 * margin
    pieces, top = [], margin
    if not bare:
        head, top = _head(figure, width, font)
        pieces += head
    if figure.legend:
        legend, top = _legend(figure, known, width, font, margin, top)
        pieces += legend
    for start in range(0, len(figure.panels), columns):
        row = figure.panels[start : start + columns]
        heading = font + 8 if any(panel.heading for panel in row) else 0
        pieces += [_cell(panel, known, font, margin + place * (cell + GAP), top, heading)
                   for place, panel in enumerate(row)]  # fmt: skip
        top += max(panel.height for panel in row) + TITLES + heading
    return _document(pieces, width, top + margin, font, width_mm)


def _document(pieces: Sequence[str], width: float, height: float, font: float, width_mm: float | None) -> str:
    """The file, with colours in place of CSS variables."""
    ends = (f"{width_mm:g}mm", f"{width_mm * height / width:.4g}mm") if width_mm else (number(width), number(height))
    document = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{ends[0]}" height="{ends[1]}"'
        f' viewBox="0 0 {number(width)} {number(height)}" font-size="{font:g}"'
        ' font-family="Helvetica, Arial, DejaVu Sans, sans-serif" fill="var(--soft)">'
        f'<rect width="100%" height="100%" fill="var(--paper)"/>{"".join(pieces)}</svg>\n'
    )
    colors = light_colors()
    return re.sub(r"var\(--([\w-]+)\)", lambda match: colors[match[1]], document)


def _head(figure: Figure, width: float, font: float) -> tuple[list[str], float]:
    """Heading and caption, and the height below them."""
    top = MARGIN + font + 3
    pieces = [text(MARGIN, top, figure.heading, font_size=f"{font * 1.2:g}", font_weight="600", fill="var(--ink)")]
    characters = max(20, int((width - 2 * MARGIN) / (font * CHARACTER)))
    for line in textwrap.wrap("; ".join(filter(None, (figure.caption, figure.left_out))), characters):
        top += font + 4
        pieces.append(text(MARGIN, top, line))
    return pieces, top + 8


def _legend(
    figure: Figure, known: Mapping[str, Look], width: float, font: float, margin: float, top: float
) -> tuple[list[str], float]:  # fmt: skip
    """The markers with their names, in as many lines as they need, and the height below them."""
    pieces: list[str] = []
    x, top = margin, top + font + 4
    for arm in figure.arms:
        if x > margin and x + text_width(arm, font) + 20 > width - margin:
            x, top = margin, top + font + 6
        color = known[arm].color.name
        pieces.append(marker(x + 5, top - font / 3, known[arm], RADIUS, f'fill="var(--{color})"'))
        pieces.append(text(x + 14, top, fit(arm, width - x - 14 - margin, font), fill=f"var(--{color}-text)"))
        x += text_width(arm, font) + 32
    return pieces, top + 6


def _cell(panel: Panel, known: Mapping[str, Look], font: float, left: float, top: float, heading: float) -> str:
    """A panel with its heading and the titles of its axes."""
    pieces = []
    left += TITLES
    if panel.heading:
        pieces.append(text(left + panel.margins.left, top + font + 2, panel.heading, font_weight="600"))
    top += heading
    if panel.x.title:
        x = left + (panel.margins.left + panel.width - panel.margins.right) / 2
        pieces.append(text(x, top + panel.height + font - 2, panel.x.title, text_anchor="middle"))
    if panel.y.title:
        x, y = left - TITLES + font, top + (panel.margins.top + panel.height - panel.margins.bottom) / 2
        turned = f"rotate(-90 {number(x)} {number(y)})"
        title = fit(panel.y.title, panel.height, font)
        pieces.append(text(x, y, title, text_anchor="middle", transform=turned))
    moved = f"translate({number(left)} {number(top)})"
    return f'{"".join(pieces)}<g transform="{moved}">{content(panel, known, font)}</g>'
