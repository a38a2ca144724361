"""Writes the expected outputs anew, to be read before they are committed: python -m tests.golden.regenerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from attnbench import comparison, frame
from attnbench.comparison import Comparison
from attnbench.report import compare, csv, export, jsonl, markdown, summary, table
from attnbench.store import Run
from tests.golden.made import run

HERE = Path(__file__).parent
EXPORTS = ("latex", "md", "bencher", "github-action-benchmark")
COMPARED = (("table", "txt"), ("md", "md"), ("csv", "csv"))


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
        **{f"export-{name}.{export.FORMATS[name].suffix}": str(export.text(made, name)) for name in EXPORTS},
        **{f"compare.{suffix}": "\n".join(compare.text([_beside(made)], kind, 80)) + "\n" for kind, suffix in COMPARED},
        "results.jsonl": "".join(jsonl.line(record) + "\n" for record in records),
    }


def _beside(made: Run) -> Comparison:
    """The run against itself with one backend a tenth slower, one case lost and one new."""
    later = []
    for result in made.results[1:]:
        samples = result.samples
        if result.arm.backend == "sdpa:math" and "time" in samples:
            time = samples["time"]
            slower = msgspec.structs.replace(time, values=tuple(value and 1.1 * value for value in time.values))
            samples = {**samples, "time": slower}
        later.append(msgspec.structs.replace(result, samples=samples))
    new = msgspec.structs.replace(made, results=later, path=made.path.with_name("later"))
    return comparison.compare(made, new)


def _steady(value: Any) -> Any:
    """Nine digits: the last ones depend on the machine's logarithm."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


if __name__ == "__main__":
    for name, text in outputs().items():
        (HERE / name).write_text(text, encoding="utf-8")
