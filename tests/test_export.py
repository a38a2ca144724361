"""Other tools' formats, read back by the tools themselves or by their schema."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from attnbench import cli, frame, store
from attnbench.report import export, latex
from attnbench.store import Run


@pytest.fixture(scope="module")
def run(stored_run: Path) -> Run:
    """A stored run."""
    return store.read(stored_run)


def measured(run: Run) -> list[frame.Row]:
    return [row for row in frame.rows(run.results) if row["time_s"] is not None]


def test_csv_and_json_are_read_by_pandas(run: Run) -> None:
    table = pd.read_csv(io.StringIO(export.text(run, "csv")))
    assert list(table.columns) == list(frame.COLUMNS)
    held = json.loads(export.text(run, "json"))
    rows = pd.DataFrame(held["rows"])
    assert rows["time_s"].dropna().tolist() == pytest.approx(table["time_s"].dropna().tolist())
    assert held["manifest"]["fingerprint"] == run.manifest.fingerprint
    assert set(held["columns"]) == set(rows.columns)


def test_pytest_benchmarks_own_command_compares_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "0001_attnbench.json"
    path.write_text(export.text(run, "pytest-benchmark"))
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(path), "--csv", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    rows = measured(run)
    assert all(row["label"] in done.stdout for row in rows)
    (table,) = tmp_path.glob("out*.csv")
    medians = sorted(pd.read_csv(table)["median"])
    assert medians == pytest.approx(sorted(row["time_s"] for row in rows), rel=1e-6)


def test_github_action_benchmark_takes_name_unit_value(run: Run) -> None:
    held = json.loads(export.text(run, "github-action-benchmark"))
    times = [one for one in held if one["unit"] == "s"]
    assert [one["value"] for one in times] == [row["time_s"] for row in measured(run)]
    assert all({"name", "unit", "value"} <= set(one) and isinstance(one["value"], int | float) for one in held)
    assert len({one["name"] for one in held}) == len(held)


def test_bencher_takes_nanoseconds_with_their_bounds(run: Run) -> None:
    held = json.loads(export.text(run, "bencher"))
    for row in measured(run):
        latency = held[f"{row['label']}@{row['device']}"]["latency"]
        assert latency["value"] == pytest.approx(1e9 * row["time_s"])
        assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]


def test_latex_has_a_row_for_each_case_and_no_bare_special(run: Run) -> None:
    text = export.text(run, "latex")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(frame.rows(run.results))
    assert all(line.count("&") in (1, 4) for line in rows)
    assert latex.escape("a_b%c{d}\\<") == r"a\_b\%c\{d\}\textbackslash{}\textless{}"


def test_the_command_writes_and_names_what_it_cannot(
    stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["export", str(stored_run), "--to", "md"]) == 0
    assert "| seq |" in capsys.readouterr().out
    assert cli.invoke(["export", str(stored_run), "--to", "bencher", "-o", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())
    assert cli.invoke(["export", str(stored_run), "--to", "benchr"]) == 2
    assert "did you mean 'bencher'" in capsys.readouterr().err
    assert cli.invoke(["export", str(stored_run), "-o", str(tmp_path / "none" / "b.json")]) == 2
    assert "cannot write to" in capsys.readouterr().err
