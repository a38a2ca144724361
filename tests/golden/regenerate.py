"""Writes the expected outputs anew, to be read before they are committed: python -m tests.golden.regenerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnbench import frame
from attnbench.report import csv, jsonl, markdown, summary, table
from tests.golden.made import run

HERE = Path(__file__).parent


def outputs() -> dict[str, str]:
    """Every format of the results made by hand, by the name of its file."""
    made = run()
    rows = [{name: _steady(value) for name, value in row.items()} for row in frame.rows(made.results)]
    records = [*map(jsonl.record, rows), summary.record(rows, made.manifest.planned, "results/made", 5)]
    return {
        "table.txt": table.text(rows, 80),
        "table-narrow.txt": table.text(rows, 48),
        "summary.txt": f"{summary.sentence(rows)}\n{summary.tally(rows, len(made.manifest.impossible))}\n",
        "report.md": markdown.page(made, rows),
        "results.csv": csv.text(rows),
        "results.jsonl": "".join(jsonl.line(record) + "\n" for record in records),
    }


def _steady(value: Any) -> Any:
    """Nine digits: the last ones depend on the machine's logarithm."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


if __name__ == "__main__":
    for name, text in outputs().items():
        (HERE / name).write_text(text, encoding="utf-8")
