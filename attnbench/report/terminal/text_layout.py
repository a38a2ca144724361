"""Text in a terminal: its width, the cells that a string takes, and wrapped lines."""

import os
import shutil
from collections.abc import Iterator, Sequence

WIDTH = 80
MIN_WIDTH = 40  # narrower than that, not even one backend fits beside its row labels
MIN_LABEL = 20


def terminal_width() -> int:
    """COLUMNS if set, else the terminal's width, at most 80."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(int(columns), MIN_WIDTH)
    return max(min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns), MIN_WIDTH)


def cell_width(text: str) -> int:
    """Terminal cells, of which an emoji takes two."""
    from rich.cells import cell_len

    return cell_len(text)


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Split into lines of at most `width` terminal cells: at spaces, and inside words that are too long."""
    from rich.cells import chop_cells

    lines = [""]
    for word in text.split(" "):
        room = width if len(lines) == 1 else width - indent
        if cell_width(lines[-1]) + 1 + cell_width(word) <= room and lines[-1]:
            lines[-1] += f" {word}"
            continue
        lines += chop_cells(word, width - indent) or [""]
    first, *rest = [line for line in lines if line] or [""]
    return [first, *(" " * indent + line for line in rest)]


def labelled(label: str, width: int, cells: str) -> list[str]:
    """One row of a table: its label, which continues below if it is wider than `width`, and its cells."""
    first, *rest = wrap(label, width)
    return [(first.ljust(width) + cells).rstrip(), *(f"  {piece}" for piece in rest)]


def aligned(
    heading: str, headings: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], width: int
) -> Iterator[list[str]]:
    """The lines of a heading and then of each row: its label, wrapped to what is left of `width`, and its cells."""
    sizes = [max(map(cell_width, column)) for column in zip(headings, *(cells for _, cells in rows), strict=True)]
    longest = max((cell_width(label) for label, _ in rows), default=cell_width(heading))
    label_width = min(longest, max(MIN_LABEL, width - sum(sizes) - 2 * len(sizes)))
    for label, cells in ((heading, headings), *rows):
        line = "".join(f"  {cell.rjust(size)}" for cell, size in zip(cells, sizes, strict=True))
        yield labelled(label, label_width, line)
