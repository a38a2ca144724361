"""Write the golden files again; read their diff before committing: python -m tests.golden.regenerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from attnbench.analysis import comparison
from attnbench.analysis.comparison import Comparison
from attnbench.analysis.rows import Row, rows_of
from attnbench.records.run_directory import Run
from attnbench.report import pages, summary
from attnbench.report.formats import comparison as comparison_formats
from attnbench.report.formats import csv, export, jsonl, markdown
from attnbench.report.pages.page import report_data
from attnbench.report.terminal import pivot_table
from tests.golden import made

HERE = Path(__file__).parent
EXPORTS = ("latex", "md", "bencher", "github-action-benchmark")
COMPARED = (("table", "txt"), ("md", "md"), ("csv", "csv"))


def outputs() -> dict[str, str]:
    """Every format of the synthetic results, by the name of its file."""
    run = made.run()
    plain = [msgspec.structs.asdict(row) for row in rows_of(run.results)]
    rows = [Row(**{name: _rounded(value) for name, value in row.items()}) for row in plain]
    elsewhere = msgspec.structs.replace(run, path=Path("elsewhere/made"))  # in no folder of results
    records = [*map(jsonl.record, rows), summary.record(rows, run.manifest.planned, "results/made", 5)]
    return {
        "table.txt": pivot_table.text(rows, 80),
        "table-narrow.txt": pivot_table.text(rows, 48),
        "summary.txt": f"{summary.sentence(rows)}\n{summary.tally(rows, len(run.manifest.impossible))}\n",
        "report.md": markdown.page(*pages.contents(report_data([elsewhere]))),
        "results.csv": csv.text(row.plain() for row in rows),
        **{f"export-{name}.{export.FORMATS[name].suffix}": str(export.text(run, name)) for name in EXPORTS},
        **{
            f"compare.{suffix}": "\n".join(comparison_formats.text([_comparison(run)], kind, 80)) + "\n"
            for kind, suffix in COMPARED
        },
        "results.jsonl": "".join(jsonl.line(record) + "\n" for record in records),
    }


def _comparison(run: Run) -> Comparison:
    """The run against itself with one backend 10 % slower and one case missing."""
    later = []
    for result in run.results[1:]:
        samples = result.samples
        if result.arm.backend == "sdpa:math" and "time" in samples:
            time = samples["time"]
            slower = msgspec.structs.replace(time, values=tuple(value and 1.1 * value for value in time.values))
            samples = {**samples, "time": slower}
        later.append(msgspec.structs.replace(result, samples=samples))
    new = msgspec.structs.replace(run, results=later, path=run.path.with_name("later"))
    return comparison.compare(run, new)


def _rounded(value: Any) -> Any:
    """A float with nine digits; further ones depend on the machine's logarithm."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


if __name__ == "__main__":
    for name, text in outputs().items():
        (HERE / name).write_text(text, encoding="utf-8")
