"""One HTML file that works offline and without scripts, under a content security policy that forbids all requests.

Charts are inline SVG in the colours of the page's CSS variables, so one picture serves both themes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

import msgspec
from markupsafe import Markup, escape

from attnbench._version import __version__
from attnbench.report import quantities
from attnbench.report.answer import Answer, AnswerGrid, FixedChoice
from attnbench.report.charts import svg
from attnbench.report.charts.figure import Figure, Panel
from attnbench.report.charts.style import Look, dark_colors, light_colors, looks
from attnbench.report.formats import html_table
from attnbench.report.glossary import TERMS
from attnbench.report.pages.page import Page, PageCell, PageTable

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.runtime import Context

CASES = "cases"  # name of the page that print leaves out
THEMES = ("auto", "light", "dark", "print")
LEAST, MOST = 0.885, 1.2  # scale of a panel: text of 12.5 px stays above 11 px and below that of the page
COLUMNS, COLUMN, GAP = 12, 112, 32  # of the page: their number, their width with the gap in pixels, and the gap
MAX_BESIDE = 30  # rows of a table that stands beside another block
HALF = 6  # of the page's 12 columns: two sections of one such block stand side by side
MAX_LINES = 8  # of a box, and of the choices of one backend, before the rest is folded
MAX_GRID_ROWS = 40
MAX_OPEN_ROWS = 12  # of a grid whose cells take several lines
MAX_ENTRIES = 24  # of a legend


class PanelView(msgspec.Struct, frozen=True):
    """A panel as SVG, with the largest width that it is shown at."""

    heading: str
    svg: Markup
    most: int


class PanelsView(msgspec.Struct, frozen=True):
    """Panels side by side, each at least so wide."""

    panels: tuple[PanelView, ...]
    width: int
    least: int
    most: int


class FigureView(msgspec.Struct, frozen=True, kw_only=True):
    """What the template needs of a chart."""

    heading: str
    caption: str
    legend: tuple[str, ...]
    wide: PanelsView
    narrow: PanelsView | None
    left_out: str
    span: int

    @property
    def panels(self) -> tuple[PanelView, ...]:
        return self.wide.panels


class SectionView(msgspec.Struct, frozen=True, kw_only=True):
    """A page with its charts drawn and its tables written."""

    page: Page
    blocks: tuple[FigureView | html_table.TableView, ...]
    half: bool = False

    @property
    def classes(self) -> str:
        """`half` beside another, `unprinted` for the list of cases."""
        return " ".join(["half"] * self.half + ["unprinted"] * (self.page.name == CASES))


def page(
    answer: Answer | None,
    pages: Sequence[Page],
    title: str = "",
    theme: str = "auto",
    arms: Iterable[str] = (),
    files: Sequence[str] = (),
) -> str:
    """The whole file.

    `arms` are those of the run, which have the same colours in every chart; `files` are linked at the end. Without an
    answer, the page begins with its first section.
    """
    known = looks({*arms, *_arms(answer, pages)})
    sections = _sections(pages, known)
    tables = [block for section in sections for block in section.blocks if isinstance(block, html_table.TableView)]
    figures = [block for section in sections for block in section.blocks if isinstance(block, FigureView)]
    return _template().render(
        answer=answer, sections=sections, title=title, theme=theme, files=files,
        mark_up=_sentence(known), color=_color(known), key=lambda arm: _key(known[arm]),
        used_colors=sorted({look.color.name for look in known.values()}),
        suggestions=[page for page in pages if page.empty and page.hint],
        table_css=Markup("\n").join(table.css for table in tables),
        widths=sorted({figure.wide.width for figure in figures if figure.narrow}),
    )  # fmt: skip


def fragment(sentences: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Sentences and a table, for a notebook."""
    head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else ()))
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row.values()) for row in rows)
    body = "</tr>".join(f"<tr>{line}" for line in lines)
    return "".join(f"<p>{escape(line)}</p>" for line in sentences) + f"<table><tr>{head}</tr>{body}</table>"


@cache
def _template() -> Template:
    """Compiled once; what depends on the arms of a page is passed to it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context

    environment = Environment(
        loader=PackageLoader("attnbench.report.formats", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"sentence": pass_context(_in_sentence), "times": _times, "breakable": _breakable}
    environment.globals |= {
        "version": __version__, "terms": TERMS, "max_lines": MAX_LINES, "max_grid_rows": MAX_GRID_ROWS,
        "max_open_rows": MAX_OPEN_ROWS, "max_entries": MAX_ENTRIES, "max_text": html_table.CLIP,
        "whole": quantities.whole, "bar_width": _bar_width, "grid_arms": _grid_arms,
        "light_colors": light_colors(), "dark_colors": dark_colors(),
    }  # fmt: skip
    return environment.get_template("report.html.j2")


def _arms(answer: Answer | None, pages: Sequence[Page]) -> Iterator[str]:
    """Every arm that the page names in its colour."""
    if answer:
        yield from (choice.arm for choice in answer.fixed)
        yield from _grid_arms(answer.grid) if answer.grid else ()
    for each in pages:
        for figure in each.figures:
            yield from figure.arms
        for table in each.tables:
            yield from (group.arm for group in table.groups if group.arm)
            yield from (cell.arm for row in table.rows for cell in row if isinstance(cell, PageCell) and cell.arm)


def _grid_arms(grid: AnswerGrid) -> list[str]:
    return list(dict.fromkeys(arm for _, cells in grid.rows for cell in cells for arm in cell.arms))


def _key(look: Look) -> Markup:
    """The marker of a look, for a legend."""
    drawn = svg.marker(7, 7, look, svg.RADIUS, 'fill="currentColor"')
    return Markup(f'<svg viewBox="0 0 14 14" aria-hidden="true">{drawn}</svg>')


def _color(known: Mapping[str, Look]) -> Callable[[str], str]:
    return lambda arm: known[arm].color.name


def _sections(pages: Sequence[Page], known: Mapping[str, Look]) -> list[SectionView]:
    """The pages that have something to show, drawn; two small ones in a row share a line."""
    numbers = count(1)

    def block(part: Figure | PageTable) -> FigureView | html_table.TableView:
        if isinstance(part, Figure):
            return _figure(part, known)
        return html_table.view(part, next(numbers), _color(known))

    shown = [each for each in pages if not each.empty or (each.text and not each.hint)]
    halves = set[int]()
    for place in range(len(shown) - 1):
        if place not in halves and _small(shown[place]) and _small(shown[place + 1]):
            halves |= {place, place + 1}
    return [
        SectionView(page=each, blocks=tuple(map(block, _packed(each, place in halves))), half=place in halves)
        for place, each in enumerate(shown)
    ]


def _with_data(page: Page) -> list[Figure | PageTable]:
    return [part for part in page.blocks if isinstance(part, Figure) or part.rows]


def _packed(page: Page, half: bool) -> list[Figure | PageTable]:
    """The blocks that have data; two that fit beside each other share the columns of the page."""
    parts = _with_data(page)
    if half:
        return [msgspec.structs.replace(part, span=COLUMNS) for part in parts]
    packed: list[Figure | PageTable] = []
    while parts:
        pair = parts[:2]
        needs = [_columns(part) for part in pair]
        if len(pair) == 2 and sum(needs) <= COLUMNS and all(part.span == COLUMNS for part in pair):
            spans = (COLUMNS - max(needs[1], HALF - 1), max(needs[1], HALF - 1))
            packed += [msgspec.structs.replace(part, span=span) for part, span in zip(pair, spans, strict=True)]
            parts = parts[2:]
        else:
            packed.append(parts.pop(0))
    return packed


def _small(page: Page) -> bool:
    """Whether half the width suffices: at most one block, beside what is folded, and no list of cases."""
    if any(table.search for table in page.tables):
        return False
    open_ = [part for part in _with_data(page) if isinstance(part, Figure) or not part.folded]
    return len(open_) <= 1 and all(min(part.span, _columns(part)) <= HALF for part in open_)


def _columns(part: Figure | PageTable) -> int:
    """Columns of the page that the part takes without being squeezed."""
    if isinstance(part, Figure):
        return math.ceil(sum(panel.width for panel in part.panels) / COLUMN)
    beside = not part.folded and not part.search and len(part.rows) <= MAX_BESIDE
    return math.ceil((html_table.natural_width(part) + GAP) / COLUMN) if beside else COLUMNS


def _figure(figure: Figure, known: Mapping[str, Look]) -> FigureView:
    return FigureView(
        heading=figure.heading, caption=figure.caption, left_out=figure.left_out, span=figure.span,
        legend=figure.arms if figure.legend else (), wide=_panels(figure, figure.panels, known),
        narrow=_panels(figure, figure.narrow, known) if figure.narrow else None,
    )  # fmt: skip


def _panels(figure: Figure, panels: Sequence[Panel], known: Mapping[str, Look]) -> PanelsView:
    width = max(panel.width for panel in panels)
    views = [
        PanelView(
            panel.heading,
            Markup(svg.inline(panel, known, ", ".join(filter(None, (figure.heading, panel.heading))))),
            round(panel.width * MOST),
        )
        for panel in panels
    ]
    return PanelsView(tuple(views), round(width), round(width * LEAST), round(len(views) * (width * MOST + GAP)))


def _sentence(arms: Iterable[str]) -> Callable[[str], Markup]:
    """A filter for sentences: what stands in backticks is code but in `reasons.literal`, other scripts are isolated.

    A name written from right to left would otherwise move the words around it.
    """
    names = sorted((str(escape(arm)) for arm in arms if not arm.isascii()), key=len, reverse=True)
    pattern = re.compile("|".join([r"\\`", r"`([^`]+)`", *map(re.escape, names)]))

    def sentence(text: str) -> Markup:
        escaped = str(escape(text))
        return Markup(pattern.sub(marked, escaped))

    def marked(match: re.Match[str]) -> str:
        if match[0] == "\\`":
            return "`"
        return f"<code>{match[1]}</code>" if match[1] else f"<bdi>{match[0]}</bdi>"

    return sentence


def _in_sentence(context: Context, text: str) -> Markup:
    """The filter of the page that is being written."""
    return Markup(context["mark_up"](text))


def _breakable(name: str) -> Markup:
    """A name that may break after its punctuation."""
    return Markup(re.sub(r"([:/_.])", r"\1<wbr>", str(escape(name))))


def _times(ratio: float) -> str:
    """1.84×, 12.3×, 104×."""
    return f"{ratio:.{0 if ratio >= 99.95 else 1 if ratio >= 9.995 else 2}f}×"


def _bar_width(choice: FixedChoice, fixed: Sequence[FixedChoice]) -> int:
    """Per cent: 0 for the best possible mean, 100 for the largest."""
    most = max(each.mean for each in fixed)
    return round(100 * (choice.mean - 1) / (most - 1)) if most > 1 else 0
