"""`attnbench predict` as a user types it, on a stored run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench import cli
from attnbench.records.result import Result
from tests.records.samples import stored
from tests.studies.test_predict import results, with_memory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(stored(tmp_path_factory.mktemp("predict") / "run", *results(), *results(backend="sdpa:flash")))


def test_a_table_with_intervals_grounds_and_refused_cases(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.invoke(["predict", run, "--seq", "700,100k", "--heads", "3", "--mask", "none"]) == 0
    printed = capsys.readouterr().out
    assert "law of 44" in printed
    assert "nearest: b1 h" in printed
    assert "queries 102400, measured 64..2048" in printed
    assert "intervals of laws: 90 %, from the errors of hidden measured cases" in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize(
    ("seq", "cases", "sources", "legend"),
    [
        ("512", results(), "measured, unchecked", "with too few measured cases to check it"),
        ("512", with_memory(1.5), "measured", "memory of a call beyond its inputs, with its outputs"),
        ("700", with_memory(1.0), "law of 44, formula", "exact in every measured case"),
        ("700", with_memory(1.5), "law of 44", "and that of the memory where it is another"),
    ],
)
def test_the_sources_of_time_and_memory_are_named_once_where_they_agree(
    seq: str, cases: Iterator[Result], sources: str, legend: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:  # fmt: skip
    directory = str(stored(tmp_path / "run", *cases))
    assert cli.invoke(["predict", directory, "--seq", seq, "--heads", "4", "--mask", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.search(rf"[KM]iB +{sources}$", line) for line in lines)
    assert legend in " ".join(" ".join(lines).split())


def test_json_on_stdout_and_in_a_file(run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "predicted.jsonl"
    command = ["predict", run, "--seq", "700", "--mask", "none", "-b", "naive", "--json", "-o", str(file)]
    assert cli.invoke(command) == 0
    printed, err = capsys.readouterr()
    assert file.read_text() == printed
    assert f"wrote {file}" in err
    record = json.loads(printed)
    assert (record["type"], record["arm"], record["time"]["source"]) == ("prediction", "naive", "law")
    assert record["time"]["low"] < record["time"]["value"] < record["time"]["high"]


@pytest.mark.parametrize("backends", ["naive", "naive,sdpa:flash"])
def test_refused_cases_of_any_number_have_one_form_one_reason_and_one_command(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, backends: str
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    command = ["predict", run, "--seq", "100k", "--mask", "none", "-b", backends]
    assert cli.invoke(command) == 6
    printed = capsys.readouterr().out
    assert printed.count("queries 102400, measured 64..2048") == 1
    assert printed.count("measure it: attnbench run --seq-q 102400 ") == 1
    assert f"-b {backends} --device cpu:threads=1\n" in printed
    assert cli.invoke([*command, "--extrapolate"]) == 0


def test_a_shape_beside_the_check_is_refused(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--seq", "300"], ["-b", "naive"], ["--extrapolate"]):
        assert cli.invoke(["predict", run, "--check", *options]) == 2
        assert "--check predicts every measured case of the run: leave out" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["recommend", "predict", "query", "export", "profile"])
def test_an_output_path_that_cannot_be_written_is_one_line(
    command: str, run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    words = {
        "recommend": [run], "predict": [run, "--check"], "query": ["SELECT 1", run],
        "export": [run, "--to", "json"], "profile": ["--seq", "64"],
    }  # fmt: skip
    out = tmp_path / "file" / ("out.csv" if command == "query" else "out")
    assert cli.invoke([command, *words[command], "-o", str(out)]) == 2
    assert capsys.readouterr().err.strip() == f"attnbench: cannot write to {out}: Not a directory"


def test_the_check_names_each_law_and_the_total(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["predict", run, "--check", "--json"]) == 0
    *laws, total = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["arm"] for each in laws] == ["naive", "sdpa:flash"]
    assert total["arm"] == "all"
    assert total["cases"] == sum(each["cases"] for each in laws) > 0
    assert total["median_error"] <= 0.10
    assert cli.invoke(["predict", run, "--check"]) == 0
    assert "each measured shape was hidden once" in " ".join(capsys.readouterr().out.split())


def test_a_device_is_one_of_the_run_or_has_a_data_sheet(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", run, "--seq", "700", "--mask", "none", "-b", "naive", "--device"]
    assert cli.invoke([*command, "H1O0 SXM"]) == 2
    assert "--device: no device 'H1O0 SXM'; did you mean 'H100 SXM'?" in capsys.readouterr().err
    assert cli.invoke([*command, "h100 sxm"]) == 6
    assert "the roofline needs the ceilings of cpu:threads=1" in capsys.readouterr().out


def test_a_comma_in_a_list_of_cores_names_what_to_write(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["predict", run, "--seq", "700", "--mask", "none", "--device", "cpu:cores=0,1"]) == 2
    assert "--device: no device '1'; for two cores: cpu:cores=0+1; for a GPU: cuda:0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "bisect"])
def test_the_help_names_no_argument_that_the_command_lacks(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke([command, "--help"]) == 0
    assert "argument SUITE" not in " ".join(capsys.readouterr().out.split())
