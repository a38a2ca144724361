"""One panel as SVG, in the CSS variables of a page.

Coordinates are rounded to a tenth of a pixel, so equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape

from attnbench.report.charts.figure import SOFT, Area, Box, Dot, Line, Mark, Note, Panel, Rule
from attnbench.report.charts.style import Look

FONT = 12.5  # pixels
CHARACTER, BOLD = 0.6, 1.1  # width of a character over the font size, on average; that of a bold one over it
RADIUS, SMALL = 4.2, 2.4  # pixels of a marker
# Corners of the markers, in radii.
_ARM = 1 / 3
MARKERS = {
    "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "diamond": ((0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)),
    "triangle": ((0, -1.1), (1.05, 0.85), (-1.05, 0.85)),
    "down": ((0, 1.1), (1.05, -0.85), (-1.05, -0.85)),
    "cross": (
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
}  # fmt: skip


def inline(panel: Panel, looks: Mapping[str, Look], label: str = "") -> str:
    """A panel to embed in a page; `label` is what a screen reader says."""
    head = f'<svg viewBox="0 0 {number(panel.width)} {number(panel.height)}" role="img" aria-label="{escape(label)}"'
    return f'{head} font-size="{FONT}" fill="var(--soft)">{content(panel, looks, FONT)}</svg>'


def content(panel: Panel, looks: Mapping[str, Look], font: float) -> str:
    """What is inside the SVG of a panel."""
    return "".join(_Drawing(panel, looks, font).parts())


def number(value: float) -> str:
    """A coordinate: a tenth of a pixel."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """A text; attributes that are empty are left out, and `_` stands for `-`."""
    written = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items() if value)
    return f'<text x="{number(x)}" y="{number(y)}"{written}>{escape(words)}</text>'


def marker(x: float, y: float, look: Look, radius: float, attributes: str) -> str:
    """The marker of a look around a place."""
    if look.shape == "circle":
        return f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius * 0.95)}" {attributes}/>'
    corners = [(x + radius * dx, y + radius * dy) for dx, dy in MARKERS[look.shape]]
    return f'<path d="{_path(corners)}z" {attributes}/>'


def text_width(words: str, font: float = FONT) -> float:
    """Pixels that a text takes, about."""
    return len(words) * font * CHARACTER


def fit(words: str, width: float, font: float = FONT) -> str:
    """The text, cut to a width in pixels."""
    characters = max(3, int(width / (font * CHARACTER)))
    return words if len(words) <= characters else words[: characters - 1] + "…"


def spread(heights: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Move values apart until neighbours differ by `least`, within the bounds if they fit; the order stays."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    placed: list[float] = []
    for place in order:
        placed.append(max(heights[place], low, placed[-1] + least if placed else low))
    limit = high
    for index in reversed(range(len(placed))):
        placed[index] = max(min(placed[index], limit), low)
        limit = placed[index] - least
    if placed and placed != sorted(set(placed)):  # they do not fit: spread evenly, beyond the upper bound
        placed = [low + least * index for index in range(len(placed))]
    result = [0.0] * len(heights)
    for place, value in zip(order, placed, strict=True):
        result[place] = value
    return result


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


class _Drawing:
    """One panel: from the units of its axes to pixels."""

    def __init__(self, panel: Panel, looks: Mapping[str, Look], font: float) -> None:
        self.panel, self.looks, self.font = panel, looks, font
        margins = panel.margins
        self.left, self.right = margins.left, panel.width - margins.right
        self.top, self.bottom = margins.top, panel.height - margins.bottom
        self.draw: dict[type[Mark], Callable[..., str]] = {
            Dot: self.dot, Line: self.line, Area: self.area, Rule: self.rule, Box: self.box, Note: self.note,
        }  # fmt: skip

    def parts(self) -> Iterator[str]:
        """Boxes, axes, other marks without an arm, then those of each arm in a group, then texts."""
        common, by_arm = [], dict[str, list[Mark]]()
        for mark in self.panel.marks:
            if not isinstance(mark, Rule) and mark.arm:
                by_arm.setdefault(mark.arm, []).append(mark)
            else:
                common.append(mark)
        yield from self.drawn(common, Box)
        yield from self.axes()
        yield from self.drawn(common, Rule, Line)
        for arm, marks in by_arm.items():
            inside = "".join(self.drawn(marks, Area, Line, Box, Dot, Note))
            color = self.looks[arm].color.name
            yield f'<g class="arm" data-arm="{escape(arm)}" color="var(--{color})">{inside}</g>'
        yield from self.drawn(common, Note)

    def drawn(self, marks: Iterable[Mark], *kinds: type[Mark]) -> Iterator[str]:
        """The marks of these kinds, kind by kind."""
        marks = list(marks)
        return (self.draw[kind](mark) for kind in kinds for mark in marks if isinstance(mark, kind))

    def x(self, value: float) -> float:
        return self.left + self.panel.x.share(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        share = self.panel.y.share(value)
        return self.top + (share if self.panel.y.down else 1 - share) * (self.bottom - self.top)

    def axes(self) -> Iterator[str]:
        """The line of the x axis, ticks of both, and grid lines."""
        for tick in self.panel.y.ticks:
            y = self.y(tick.at)
            if self.panel.y.grid:
                yield f'<path d="M{number(self.left)} {number(y)}H{number(self.right)}" stroke="var(--line)"/>'
            yield text(self.left - 7, y + self.font / 3, tick.text, text_anchor="end")
        for tick in self.panel.x.ticks:
            x = self.x(tick.at)
            if self.panel.x.grid:
                yield f'<path d="M{number(x)} {number(self.top)}V{number(self.bottom)}" stroke="var(--line)"/>'
            yield text(x, self.bottom + self.font + 6, tick.text, text_anchor="middle")
        yield f'<path d="M{number(self.left)} {number(self.bottom)}H{number(self.right)}" stroke="var(--soft)"/>'

    def dot(self, dot: Dot) -> str:
        x, y = self.x(dot.x) + dot.shift, self.y(dot.y)
        whiskers, ring = "", ""
        if dot.y_ends:
            low, high = (number(self.y(end)) for end in dot.y_ends)
            whiskers += f"M{number(x)} {low}V{high}"
        if dot.x_ends:
            low, high = (number(self.x(end)) for end in dot.x_ends)
            whiskers += f"M{low} {number(y)}H{high}"
        if whiskers:
            whiskers = f'<path d="{whiskers}" stroke="currentColor" stroke-width="1.6" opacity=".75"/>'
        if dot.ring:
            ring = f'<circle cx="{number(x)}" cy="{number(y)}" r="8" fill="none" stroke="var(--ink)"/>'
        edge = 'opacity=".75"' if dot.small else 'stroke="var(--paper)"'
        attributes = f'fill="currentColor" {edge}{_tip(dot.tip)}'
        return whiskers + ring + marker(x, y, self.looks[dot.arm], SMALL if dot.small else RADIUS, attributes)

    def line(self, line: Line) -> str:
        path = _path((self.x(x) + line.shift, self.y(y)) for x, y in line.points)
        if not line.arm:
            return f'<path d="{path}" fill="none" stroke="var(--soft)" stroke-dasharray="2 3"/>'
        dash = self.looks[line.arm].dash
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        width = "1" if line.thin else "2"
        return f'<path d="{path}" fill="none" stroke="currentColor" stroke-width="{width}"{dashes}/>'

    def area(self, area: Area) -> str:
        outline = _path((self.x(x), self.y(y)) for x, y in (*area.lower, *reversed(area.upper)))
        return f'<path d="{outline}z" fill="currentColor" opacity=".18"/>'

    def rule(self, rule: Rule) -> str:
        color = f"var(--{rule.color})"
        if rule.along == "x":
            x = self.x(rule.at)
            path = f"M{number(x)} {number(self.top)}V{number(self.bottom)}"
            name = text(x + 4, self.top + self.font - 2, rule.text, fill=color)
        else:
            y = self.y(rule.at)
            path = f"M{number(self.left)} {number(y)}H{number(self.right)}"
            name = text(self.left + 4, y - 4, rule.text, fill=color)
        dashes = 'stroke-dasharray="3 3"' if rule.dashed else 'stroke-width="1.5"'
        return f'<path d="{path}" stroke="{color}" {dashes}/>{name if rule.text else ""}'

    def box(self, box: Box) -> str:
        x, x_end = sorted(map(self.x, box.x))
        y, y_end = sorted(map(self.y, box.y))
        named = box.color if box.color.startswith("#") else f"var(--{box.color})"
        color = "currentColor" if box.arm else named
        size = f'width="{number(x_end - x)}" height="{number(y_end - y)}"'
        crisp = "" if box.arm else ' shape-rendering="crispEdges"'  # no seams between cells
        return f'<rect x="{number(x)}" y="{number(y)}" {size} fill="{color}"{crisp}{_tip(box.tip)}/>'

    def note(self, note: Note) -> str:
        x = (self.x(note.x) if note.pixel_x is None else note.pixel_x) + note.dx
        y = (self.y(note.y) if note.pixel_y is None else note.pixel_y) + note.dy
        color = f"{self.looks[note.arm].color.name}-text" if note.arm else note.color
        return text(
            x, y, note.text, text_anchor="" if note.anchor == "start" else note.anchor,
            fill="" if color == SOFT else f"var(--{color})", font_weight="600" if note.bold else "",
            font_style="italic" if note.italic else "",
        )  # fmt: skip


def _tip(words: str) -> str:
    return f' data-tip="{escape(words)}"' if words else ""
