"""Other tools' formats, read back by the tools themselves or by their schema."""

from __future__ import annotations

import io
import json
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from attnbench import cli
from attnbench.analysis.rows import COLUMNS, Row, rows_of
from attnbench.errors import UsageError
from attnbench.records import run_directory
from attnbench.records.run_directory import Run
from attnbench.report.formats import export, latex


@pytest.fixture(scope="module")
def run(stored_run: Path) -> Run:
    """A stored run."""
    return run_directory.read(stored_run)


def measured(run: Run) -> list[Row]:
    return [row for row in rows_of(run.results) if row.time_s is not None]


def test_csv_and_json_are_read_by_pandas(run: Run) -> None:
    table = pd.read_csv(io.StringIO(export.text(run, "csv")))
    assert list(table.columns) == list(COLUMNS)
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
    assert all(row.label in done.stdout for row in rows)
    (table,) = tmp_path.glob("out*.csv")
    medians = sorted(pd.read_csv(table)["median"])
    assert medians == pytest.approx(sorted(row.time_s for row in rows), rel=1e-6)


def test_github_action_benchmark_takes_name_unit_value(run: Run) -> None:
    held = json.loads(export.text(run, "github-action-benchmark"))
    times = [entry for entry in held if entry["unit"] == "s"]
    assert [entry["value"] for entry in times] == [row.time_s for row in measured(run)]
    assert all({"name", "unit", "value"} <= set(entry) and isinstance(entry["value"], int | float) for entry in held)
    assert len({entry["name"] for entry in held}) == len(held)


def test_bencher_takes_nanoseconds_with_their_bounds(run: Run) -> None:
    held = json.loads(export.text(run, "bencher"))
    for row in measured(run):
        latency = held[f"{row.label}@{row.device}"]["latency"]
        assert latency["value"] == pytest.approx(1e9 * row.time_s)
        assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]


def test_latex_has_a_row_for_each_case_and_no_bare_special(run: Run) -> None:
    text = export.text(run, "latex")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(rows_of(run.results))
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


def test_parquet_keeps_every_column_and_its_type(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "run.parquet"
    export.write(run, "parquet", path)
    table = pd.read_parquet(path)
    assert list(table.columns) == list(COLUMNS)
    assert table["time_s"].dropna().tolist() == [row.time_s for row in measured(run)]
    assert table["seq_q"].dtype.kind == "i"


def test_asv_loads_its_own_folder(run: Run, tmp_path: Path) -> None:
    results = pytest.importorskip("asv.results")
    manifest = msgspec.structs.replace(run.manifest, commit={"commit": "f00dcafe" * 5, "dirty": False})
    export.write(msgspec.structs.replace(run, manifest=manifest), "asv", tmp_path)
    (path,) = tmp_path.glob("*/f00dcafe-*.json")
    held = results.Results.load(str(path), machine_name=run.manifest.fingerprint)
    names = {f"time.{row.label}@{row.device}": row for row in measured(run)}
    assert names.keys() <= set(held.get_all_result_keys())
    for name, row in names.items():
        assert held.get_result_value(name, []) == [row.time_s]
        (stats,) = held.get_result_stats(name, [])
        assert (stats["ci_99_a"], stats["ci_99_b"]) == (row.time_low_s, row.time_high_s)
    assert [of_commit.params["machine"] for of_commit in results.iter_results(str(tmp_path))] == [
        run.manifest.fingerprint
    ]
    benchmarks = json.loads((tmp_path / "benchmarks.json").read_text())
    assert set(held.get_all_result_keys()) == benchmarks.keys() - {"version"}


def test_asv_needs_a_commit(run: Run, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(run.manifest, commit=None)
    with pytest.raises(UsageError, match="outside a git repository"):
        export.write(msgspec.structs.replace(run, manifest=manifest), "asv", tmp_path)


def test_tensorboards_own_reader_finds_every_time_at_its_length(run: Run, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    export.write(run, "tensorboard", tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 1
    assert not any(socket.gethostname() in path.name for path in tmp_path.rglob("*"))
    seen = reader.EventAccumulator(str(tmp_path))
    seen.Reload()
    tags = [tag for tag in seen.Tags()["scalars"] if tag.startswith("time_s/")]
    times = sorted((event.step, event.value) for tag in tags for event in seen.Scalars(tag))
    expected = sorted((row.seq_q, row.time_s) for row in measured(run))
    assert [step for step, _ in times] == [step for step, _ in expected]
    assert [value for _, value in times] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert "run" in seen.Tags()["tensors"]


def test_tensorboards_table_of_hyperparameters_has_every_case(run: Run, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams import metadata

    export.write(run, "tensorboard", tmp_path)
    times = {}
    for folder in (tmp_path / "cases").iterdir():
        seen = reader.EventAccumulator(str(folder))
        seen.Reload()
        held = seen.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        parameters = metadata.parse_session_start_info_plugin_data(held).hparams
        shape = (
            int(parameters["seq_q"].number_value),
            parameters["mask"].string_value,
            parameters["backend"].string_value,
        )
        times[shape] = seen.Scalars("time_s")[0].value
    expected = {(row.seq_q, row.mask, row.backend): row.time_s for row in measured(run)}
    assert times == pytest.approx(expected, rel=1e-6)


def leveldb_log(held: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind 7 bytes; wandb ships no reader for it."""
    assert held.startswith(b":W&B")
    place, parts = 7, []
    while place + 7 <= len(held):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, size, kind = struct.unpack("<IHB", held[place : place + 7])
        parts.append(held[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_wandb_reads_back_what_it_wrote_offline(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    export.write(run, "wandb", tmp_path)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    values: list[float] = []
    for data in leveldb_log(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            values += [json.loads(item.value_json)] if key.startswith("time_s/") else []
    assert sorted(values) == sorted(row.time_s for row in measured(run))
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    held = json.loads(table.read_text())
    assert [line[0] for line in held["data"]] == [row.name for row in rows_of(run.results)]
    assert not list(tmp_path.glob("wandb/**/*.log"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "parquet"], "--to parquet writes a binary file: give --out"),
        (["--to", "tensorboard"], "--to tensorboard writes a folder: give --out"),
    ],
)
def test_what_stdout_cannot_hold_is_refused(
    options: list[str], message: str, stored_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["export", str(stored_run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(
    stored_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    assert cli.invoke(["export", str(stored_run), "--to", "parquet", "-o", str(tmp_path / "p")]) == 2
    assert "--to parquet needs pyarrow: pip install pyarrow" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["export", "--to", "csv"], ["compare"], ["merge"], ["recommend"], ["report"]])
def test_lines_that_cannot_be_read_are_noted(
    command: list[str], stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stored_run, copy)
    with (copy / run_directory.RESULTS).open("ab") as file:
        file.write(b'{"case": cut off\n')
    more = {"merge": [str(stored_run), "-o", str(tmp_path / "merged")], "compare": [str(stored_run)]}
    options = {"report": ["--plots", "svg", "--pages", "cases"]}
    name, *rest = command
    assert cli.invoke([name, str(copy), *more.get(name, ()), *rest, *options.get(name, ())]) == 0
    assert f"{copy}: 1 line of the results is left out: not readable" in capsys.readouterr().err
