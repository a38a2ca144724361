"""Sizes of figures: on a screen, and on paper in columns and pages of a journal."""

from __future__ import annotations

import re

import msgspec

from attnbench.errors import UsageError
from attnbench.report.charts import standing
from attnbench.report.charts.figure import HEIGHT, WIDTH, Figure
from attnbench.report.charts.svg import FONT

WIDTHS_MM = {"column": 85.0, "page": 178.0}
PANELS = {"column": 1, "page": 2}  # beside each other
POINTS = 7.5  # size of text on paper
PIXELS_PER_MM = 96 / 25.4
SHAPE = 0.75  # height of a panel over its width
MIN_MM, MAX_MM = 40, 1000


class Size(msgspec.Struct, frozen=True):
    """Pixels of a panel, and of its text."""

    width: float = WIDTH
    height: float = HEIGHT
    font: float = FONT


SCREEN = Size()


class Paper(msgspec.Struct, frozen=True, kw_only=True):
    """A figure on paper."""

    width_mm: float
    columns: int  # panels beside each other
    panel: Size


def parse(text: str, flag: str = "--size") -> Paper:
    """`column`, `page` or `120x80`. Raises UsageError for anything else."""
    font = POINTS * 96 / 72
    columns = PANELS.get(text, 1)
    if text in WIDTHS_MM:
        width_mm = WIDTHS_MM[text]
        width = _panel_width(width_mm, columns)
        return Paper(width_mm=width_mm, columns=columns, panel=Size(width, width * SHAPE, font))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)", text)
    if not match or not all(MIN_MM <= float(side) <= MAX_MM for side in match.groups()):
        raise UsageError(
            f"{flag} {text}: use column, page, or WIDTHxHEIGHT in mm from {MIN_MM} to {MAX_MM}, such as 120x80"
        )
    width_mm, height_mm = map(float, match.groups())
    height = height_mm * PIXELS_PER_MM - standing.TITLES - 2 * standing.BARE_MARGIN
    return Paper(width_mm=width_mm, columns=1, panel=Size(_panel_width(width_mm, 1), height, font))


def picture(figure: Figure, paper: Paper) -> str:
    """The figure as it goes on paper: no heading, no caption."""
    return standing.picture(figure, font=paper.panel.font, bare=True, columns=paper.columns, width_mm=paper.width_mm)


def _panel_width(width_mm: float, columns: int) -> float:
    """The pixels of a panel, so that the panels of a row fill the width."""
    whole = width_mm * PIXELS_PER_MM - 2 * standing.BARE_MARGIN
    return (whole + standing.GAP) / columns - standing.GAP - standing.TITLES
