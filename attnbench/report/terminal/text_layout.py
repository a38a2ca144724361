"""Text in a terminal: its width, the cells that a string takes, wrapped lines, and tables."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence

WIDTH = 80  # where stdout is no terminal
MIN_WIDTH = 40  # narrower than that, not even one backend fits beside its row labels
MIN_LABEL = 14  # of a column of labels; with less room, the cells of a row go below its label
GAP = 2
_PUNCTUATION = re.compile(r"(?<=[@:/=,_+-])(?<!\d[eE][+-])")  # 1e-05 stays whole
_UNIT = r"(?:%|[num]?s|min|h|B|[KMGTPE]iB|[kMGTPE]?(?:FLOP|B)/s|[kMG]?Hz|W|J|C)(?!\w)"
_SPACE = re.compile(rf"(?<!\d) | (?!{_UNIT})")  # but not the one between a number and its unit


def terminal_width() -> int:
    """COLUMNS if set, else the terminal's width."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(int(columns), MIN_WIDTH)
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, MIN_WIDTH)


def cell_width(text: str) -> int:
    """Terminal cells, of which an emoji takes two."""
    from rich.cells import cell_len

    return cell_len(text)


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Split into lines of at most `width` terminal cells: at spaces, and inside words that are too long.

    A number and its unit stay together.
    """
    lines = [""]
    for word in _SPACE.split(text):
        room = width if len(lines) == 1 else width - indent
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_width(joined) <= room:
            lines[-1] = joined
        else:
            lines += _pieces(word, width - indent)
    first, *rest = [line for line in lines if line] or [""]
    return [first, *(" " * indent + line for line in rest)]


def _pieces(word: str, width: int) -> list[str]:
    """A word in pieces of at most `width` cells, which end after punctuation where they can."""
    from rich.cells import chop_cells

    if cell_width(word) <= width:
        return [word]
    pieces = [""]
    for part in _PUNCTUATION.split(word):
        if cell_width(pieces[-1]) + cell_width(part) <= width:
            pieces[-1] += part
        else:
            pieces += chop_cells(part, width)
    return [piece for piece in pieces if piece]


def shared_words(texts: Sequence[str]) -> tuple[str, list[str]]:
    """The words that all texts have, and the texts without them; no word is shared where a text would be empty."""
    words = [text.split(" ") for text in texts]
    shared = set(words[0]).intersection(*words[1:]) if words else set()
    rest = [" ".join(word for word in each if word not in shared) for each in words]
    return (" ".join(word for word in words[0] if word in shared), rest) if all(rest) and words else ("", list(texts))


def labelled(label: str, width: int, cells: str) -> list[str]:
    """One row of a table: its label, which continues below if it is wider than `width`, and its cells."""
    first, *rest = wrap(label, width, indent=2)
    return [(first + " " * (width - cell_width(first)) + cells).rstrip(), *rest]


def aligned(
    heading: str, headings: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], width: int
) -> Iterator[list[str]]:
    """The lines of a heading and then of each row, at most `width` wide: its label, wrapped, and its cells.

    Where the cells leave too little room for the labels, those of a row go below its label.
    """
    sizes = [max(map(cell_width, column)) for column in zip(headings, *(cells for _, cells in rows), strict=True)]
    labels = [heading, *(label for label, _ in rows)]
    room = width - sum(sizes) - GAP * len(sizes)
    longest_word = max(cell_width(word) for label in labels for word in label.split(" "))
    label_width = min(max(map(cell_width, labels)), room)
    beside = label_width >= min(max(map(cell_width, labels)), max(MIN_LABEL, longest_word))
    for label, cells in ((heading, headings), *rows):
        padded = [" " * (GAP + size - cell_width(cell)) + cell for cell, size in zip(cells, sizes, strict=True)]
        if beside:
            yield labelled(label, label_width, "".join(padded))
        else:
            yield [*wrap(label, width, indent=2), *_joined(padded, width)]


def _joined(cells: Sequence[str], width: int) -> list[str]:
    """Cells in lines of at most `width`."""
    lines = [""]
    for cell in cells:
        if lines[-1] and cell_width(lines[-1]) + cell_width(cell) > width:
            lines.append("")
        lines[-1] += cell
    return [line.rstrip() for line in lines if line.strip()]
