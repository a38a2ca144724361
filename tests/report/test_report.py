"""Reports of a stored run: their content, and what they must escape."""

from __future__ import annotations

import csv
import io
import json
import re

import msgspec

from attnbench.analysis import rows as frame
from attnbench.records import run_directory
from attnbench.records.result import Status
from attnbench.report import pages, summary
from attnbench.report.formats import csv as csv_report
from attnbench.report.formats import jsonl, markdown
from attnbench.report.formats.report_directory import write
from attnbench.report.pages.page import report_data
from attnbench.report.terminal import pivot_table

EVIL = "</script>=cmd()|`*_[x](y)<b> \U0001f600 \u202e" + "x" * 300


def rows_of(stored_run):
    run = run_directory.read(stored_run)
    return run, frame.rows_of(run.results)


def test_the_report_is_written_with_machine_tables_and_command(stored_run, tmp_path):
    run, rows = rows_of(stored_run)
    folder = write([run], tmp_path / "report")
    page = (folder / "report.md").read_text()
    assert page.startswith("# attnbench\n")
    for row in rows:
        assert f" {row.case_id} |" in page
    assert "Python 3" in page
    assert "### Repeat" in page or not run.manifest.command
    assert (folder / "data.csv").is_file()
    assert (folder / "index.html").is_file()


def test_csv_reads_back_to_the_same_numbers(stored_run):
    _, rows = rows_of(stored_run)
    back = list(csv.DictReader(io.StringIO(csv_report.text(row.plain() for row in rows))))
    assert len(back) == len(rows)
    for got, row in zip(back, rows, strict=True):
        assert got["label"] == row.label
        assert (float(got["time_s"]) if got["time_s"] else None) == row.time_s


def test_cells_that_a_spreadsheet_would_run_are_quoted(stored_run):
    _, rows = rows_of(stored_run)
    evil = [{**rows[0].plain(), "reason": "=cmd()", "label": "@x", "time_s": -1.5}]
    got = next(csv.DictReader(io.StringIO(csv_report.text(evil))))
    assert (got["reason"], got["label"], got["time_s"]) == ("'=cmd()", "'@x", "-1.5")


def test_markdown_escapes_reasons_and_tags(stored_run):
    run, _ = rows_of(stored_run)
    manifest = msgspec.structs.replace(run.manifest, tags={"note": EVIL})
    results = [
        msgspec.structs.replace(result, reason=EVIL) if result.status is not Status.OK else result
        for result in run.results
    ]
    changed = msgspec.structs.replace(run, manifest=manifest, results=results)
    page = markdown.page(*pages.contents(report_data([changed])))
    assert "</script>" not in page.replace("\\<", "")
    assert "<b>" not in page.replace("\\<", "")
    assert "x" * 300 in page


def test_json_lines_are_strict_json(stored_run):
    _, rows = rows_of(stored_run)
    row = msgspec.structs.replace(rows[0], time_s=float("nan"), speedup=float("inf"))
    record = json.loads(jsonl.line(jsonl.record(row)))
    assert (record["time_s"], record["speedup"]) == (None, None)


def test_the_table_is_never_wider_than_the_given_width(stored_run):
    _, rows = rows_of(stored_run)
    for width in (40, 60, 80, 200):
        assert max(map(len, pivot_table.text(rows, width).splitlines())) <= width


def test_the_summary_counts_every_case_and_names_the_fastest(stored_run):
    _, rows = rows_of(stored_run)
    assert sum(summary.counts(rows).values()) == len(rows) == 12
    assert re.search(r"^12 cases: 8 ok.*4 unavailable", summary.tally(rows))
    assert summary.sentence(rows).endswith(".")
    assert summary.sentence([row for row in rows if row.status != "ok"]) == "nothing was measured."
