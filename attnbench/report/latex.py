"""LaTeX: tables in the style of booktabs, and text that it takes as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
    "\r": " ",
}
_ESCAPES = str.maketrans(_SPECIAL)


def escape(text: str) -> str:
    """Text that LaTeX takes as it is."""
    return text.translate(_ESCAPES)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A tabular of text; columns of numbers are aligned to the right. It needs the package booktabs."""
    align = "".join("r" if number else "l" for number in numbers)
    return written(align, map(escape, head), (map(escape, row) for row in rows))


def written(align: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A tabular of cells that are LaTeX already; a row may be short of cells that span several columns."""
    lines = [f"\\begin{{tabular}}{{{align}}}", r"\toprule", f"{' & '.join(head)} \\\\", r"\midrule"]
    lines += [f"{' & '.join(row)} \\\\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
