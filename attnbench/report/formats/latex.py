"""LaTeX: tables in the style of booktabs, and escaped text."""

from collections.abc import Iterable, Sequence

from attnbench.analysis.rows import Row

_ESCAPES = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "\n": " ", "\r": " ",
})  # fmt: skip


def escape(text: str) -> str:
    """Text without characters that are special in LaTeX."""
    return text.translate(_ESCAPES)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A tabular of text, with columns of numbers aligned to the right; needs the package booktabs."""
    align = "".join("r" if number else "l" for number in numbers)
    return _tabular(align, map(escape, head), (map(escape, row) for row in rows))


def times(rows: Iterable[Row]) -> str:
    """Times in ms with their intervals, GFLOP/s and speed-ups; one line for each case."""
    head = ("case", "time (ms)", r"95\,\% (ms)", "GFLOP/s", "speed-up")
    return _tabular("lrrrr", head, map(_cells, rows))


def _cells(row: Row) -> tuple[str, ...]:
    label = escape(row.name)
    if row.time_s is None:
        return label, rf"\multicolumn{{4}}{{l}}{{{escape(row.status)}}}"
    low, high = row.time_low_s, row.time_high_s
    interval = f"{1e3 * low:.4g}--{1e3 * high:.4g}" if low is not None and high is not None else "--"
    speedup = f"{row.speedup:.2f}" if row.speedup is not None else "--"
    return label, f"{1e3 * row.time_s:.4g}", interval, f"{row.flops / row.time_s / 1e9:.4g}", speedup


def _tabular(align: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A tabular of LaTeX cells; a row has fewer cells if one of them spans columns."""
    lines = [f"\\begin{{tabular}}{{{align}}}", r"\toprule", f"{' & '.join(head)} \\\\", r"\midrule"]
    lines += [f"{' & '.join(row)} \\\\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
