"""The trend of a project: appended, read back, and its changes of level found where they were put."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench import cli
from attnbench.errors import StoreError
from attnbench.gate import history
from attnbench.gate.history import HistoryPoint
from attnbench.machine import identity
from attnbench.records import run_writer
from attnbench.records.result import Outcome
from attnbench.report.formats.report_directory import ReportOptions, write
from tests.gate.test_verdicts import gated, lines, outcome
from tests.golden import made as golden

HERE = identity.fingerprint()[0]


def history_points(seconds: list[float], fingerprint: str = HERE) -> list[HistoryPoint]:
    return [
        HistoryPoint(
            commit=f"{n:03x}".ljust(40, "0"), measured_at=f"2026-11-{1 + n // 24:02}T{n % 24:02}:00:00+00:00",
            fingerprint=fingerprint, suite="ci", run=f"run-{n}", seconds={"case@cpu": value},
        )
        for n, value in enumerate(seconds)
    ]  # fmt: skip


@pytest.fixture
def stored_run(tmp_path: Path) -> Path:
    """A run on this machine."""
    made = golden.run()
    manifest = msgspec.structs.replace(made.manifest, fingerprint=HERE)
    with run_writer.RunWriter(tmp_path / "made", manifest) as writer:
        writer.append(made.results)
    return tmp_path / "made"


def of(points: list[HistoryPoint]) -> list[history.LevelChange]:
    return history.changes("case@cpu", history.series(points, HERE)["case@cpu"])


@given(st.integers(5, 25), st.floats(1.1, 3.0), st.booleans(), st.integers(0, 1000))
def test_a_step_is_found_where_it_was_put(at, factor, slower, seed):
    factor = factor if slower else 1 / factor
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.01, 30))
    points = history_points([1e-3 * (factor if n >= at else 1.0) * noise[n] for n in range(30)])
    (change,) = [level_change for level_change in of(points) if abs(level_change.ratio - 1) > 0.05]
    assert change.at.commit == points[at].commit
    assert change.ratio == pytest.approx(factor, rel=0.03)


@given(st.integers(0, 18), st.floats(0.01, 0.03), st.booleans(), st.integers(0, 1000))
def test_a_creep_is_one_change_over_its_commits(start: int, each: float, slower: bool, seed: int) -> None:
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.004, 30))
    rate = (1 + each) if slower else 1 / (1 + each)
    points = history_points([1e-3 * rate ** max(n - start, 0) * noise[n] for n in range(30)])
    (change,) = of(points)
    assert change.commits == pytest.approx(29 - start, abs=2)
    assert change.ratio == pytest.approx(rate ** (29 - start), rel=0.03)
    assert change.ratio_each == pytest.approx(rate, abs=0.004)
    assert change.at == points[30 - change.commits]


@pytest.mark.parametrize(("commits", "expected"), [(1, Outcome.SAME), (5, Outcome.REGRESSED), (10, Outcome.REGRESSED)])
def test_a_creep_of_one_per_cent_a_commit_is_seen_over_several_commits_alone(commits: int, expected: Outcome) -> None:
    assert outcome(gated(*lines(head=1.01**commits))) is expected


def test_a_creep_of_one_per_cent_over_ten_commits_is_in_the_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.exp(np.random.default_rng(3).normal(0, 0.001, 11))
    for point in history_points([1e-3 * 1.01**n * float(noise[n]) for n in range(11)]):
        history.append(tmp_path / "history.jsonl", point)
    assert cli.invoke(["history", str(tmp_path / "history.jsonl")]) == 0
    output = capsys.readouterr().out
    assert "+10." in output
    assert " from 001000000000, " in output
    assert ", +1.0 % at each of 10 commits" in output
    assert cli.invoke(["history", str(tmp_path / "history.jsonl"), "--json"]) == 0
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["commits"], change["at"]) == (10, "001".ljust(40, "0"))
    assert change["ratio_each"] == pytest.approx(1.01, abs=0.002)


def test_times_with_uncommitted_changes_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = history_points([1e-3, 1.2e-3, 1.1e-3])
    for place, point in enumerate(points):
        history.append(tmp_path / "history.jsonl", msgspec.structs.replace(point, dirty=place > 0))
    assert cli.invoke(["history", str(tmp_path / "history.jsonl")]) == 0
    line = "case@cpu: 1.00 ms -> 1.10 ms* over 3 points (* with uncommitted changes: 2)"
    assert capsys.readouterr().out.splitlines() == [line]
    assert cli.invoke(["history", str(tmp_path / "history.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dirty"] == 2


def test_noise_alone_hardly_ever_changes():
    alarms = 0
    for seed in range(100):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.02, 40))
        alarms += bool(of(history_points((1e-3 * noise).tolist())))
    assert alarms <= 20


def test_changes_of_many_points_are_found_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        f"case {n}": history.series(history_points([1.0] * 4 + [2.0] * (4 + n)), HERE)["case@cpu"] for n in range(3)
    }
    whole = history.level_changes(cases)
    assert [(case, len(changes)) for case, changes in whole.items()] == [(case, 1) for case in cases]
    monkeypatch.setattr(history, "MIN_POOLED", 1)
    assert history.level_changes(cases) == whole


def test_few_points_have_no_change():
    assert of(history_points([1.0, 1.0, 9.0, 9.0, 9.0])) == []


def test_two_machines_form_no_trend():
    points = [*history_points([1.0] * 4), *history_points([2.0] * 4, fingerprint="other")]
    assert [seconds for _, seconds in history.series(points, HERE)["case@cpu"]] == [1.0] * 4


def test_nodes_with_one_fingerprint_have_trends_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    for node, seconds in (("a", 1.0), ("b", 2.0)):
        for each in history_points([seconds] * 4):
            assert history.append(path, msgspec.structs.replace(each, node=node))
    points, _ = history.load(path)
    assert [seconds for _, seconds in history.series(points, f"{HERE}/b")["case@cpu"]] == [2.0] * 4
    assert cli.invoke(["history", str(path)]) == 2
    assert f"--machine is needed: 2 nodes have fingerprint {HERE}: {HERE}/a, {HERE}/b" in capsys.readouterr().err
    assert cli.invoke(["history", str(path), "--machine", f"{HERE}/a"]) == 0
    out, err = capsys.readouterr()
    assert "over 4 points" in out
    assert "1 other machine is in" in err


def test_what_was_appended_is_read_back_and_garbage_is_counted(tmp_path: Path):
    path = tmp_path / "deep" / "history.jsonl"
    points = history_points([1.0, 2.0])
    for point in points:
        history.append(path, point)
    path.write_bytes(path.read_bytes() + b"garbage\n")
    assert history.load(path) == (points, 1)
    with pytest.raises(StoreError, match=r"none cannot be read: .*: attnbench history .*/none --add RUN creates it$"):
        history.load(tmp_path / "none")


def test_a_file_that_is_no_history_is_refused_and_left_as_it_is(
    stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Title\n")
    for options in ([], ["--add", str(stored_run)]):
        assert cli.invoke(["history", str(path), *options]) == 2
        assert f"{path} is no history: none of its lines is a point; " in capsys.readouterr().err
    assert path.read_text() == "# Title\n"
    path.write_text("")
    assert cli.invoke(["history", str(path)]) == 0
    assert f"{path} is empty: attnbench history {path} --add RUN adds a run" in capsys.readouterr().err


def test_the_command_adds_a_run_and_tells_of_changes(
    stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "history.jsonl"
    assert cli.invoke(["history", str(path), "--add", str(stored_run)]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.endswith("cases with one point, no trend yet; --case TEXT shows the times")
    assert f"added {stored_run.name} to {path}: {line.split()[0]} cases" in err
    assert cli.invoke(["history", str(path), "--case", "naive"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert re.fullmatch(r".* naive@\S+: [\d.]+ \S+ in the only run, no trend yet.*", line)
    for point in history_points([1.0] * 5 + [2.0] * 5):
        history.append(path, point)
    assert cli.invoke(["history", str(path), "--case", "case@cpu"]) == 0
    output = capsys.readouterr().out
    assert "+100.0 % at 005000000000" in output
    assert cli.invoke(["history", str(path), "--case", "case@cpu", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["changes"][0]["at"] == "005".ljust(40, "0")


def test_a_run_is_added_once(stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    assert cli.invoke(["history", str(path), "--add", str(stored_run)]) == 0
    assert "already" not in capsys.readouterr().err
    assert cli.invoke(["history", str(path), "--add", str(stored_run)]) == 0
    out, err = capsys.readouterr()
    assert "with one point" in out
    assert f"{stored_run.name} is in {path} already; not added again" in err
    (point,), _ = history.load(path)
    later = msgspec.structs.replace(point, measured_at="2027-01-01T00:00:00+00:00")
    assert history.append(path, later)
    assert history.load(path) == ([point, later], 0)


def test_an_unknown_machine_of_a_history_file_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    for fingerprint in (HERE, "other"):
        history.append(path, history_points([1.0], fingerprint)[0])
    assert cli.invoke(["history", str(path), "--machine", "xx"]) == 2
    assert capsys.readouterr().err == f"attnbench: --machine: no machine 'xx'; there are {HERE}, other\n"
    assert cli.invoke(["history", str(path), "--machine", "other"]) == 0
    assert f"1 other machine is in {path}; --machine selects one" in capsys.readouterr().err
    history.append(path, history_points([1.0], "third")[0])
    assert cli.invoke(["history", str(path)]) == 0
    assert f"2 other machines are in {path}; " in capsys.readouterr().err


def test_a_gate_appends_what_head_took_once(tmp_path: Path) -> None:
    stored = gated(*lines(head=1.5))
    with run_writer.RunWriter(tmp_path / "gate", stored.manifest) as writer:
        writer.append(stored.results)
    file = tmp_path / "trend" / "history.jsonl"
    for _ in range(2):
        assert cli.invoke(["gate", str(tmp_path / "gate"), "--history", str(file)]) == 1
    points, skipped = history.load(file)
    assert (len(points), skipped) == (1, 0)
    (seconds,) = points[0].seconds.values()
    assert seconds == pytest.approx(1.5e-3, rel=0.01)


def test_the_report_draws_commits_and_says_where_levels_changed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = [1e-3 * (1.5 if n >= 12 else 1.0) * float(np.exp(rng.normal(0, 0.01))) for n in range(24)]
    label = "b1 h8 q256 kv256 d64 causal fp32 fwd naive@cpu:threads=1"
    points = [
        msgspec.structs.replace(point, seconds={label: s})
        for point, s in zip(history_points(times), times, strict=True)
    ]
    run = golden.run()
    run = msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, fingerprint=HERE))
    where = write([run], tmp_path / "shown", ReportOptions(trend=points, plots=("svg",)))
    (picture,) = (where / "plots").glob("*commits*.svg")
    assert "Commit by commit: 1 changes of level, in 1 of 1 cases" in picture.read_text()
    (table,) = (where / "tables").glob("*changes*.csv")
    assert f"{label},{points[12].name}," in table.read_text()
    hidden = write([run], tmp_path / "hidden", ReportOptions(trend=points, anonymize=True, plots=()))
    assert points[12].name not in (hidden / "index.html").read_text()
    alone = write([run], tmp_path / "alone", ReportOptions(plots=("svg",)))
    assert not list((alone / "plots").glob("*commits*"))


def test_a_history_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot write to .*history\.jsonl: File exists"):
        history.append(tmp_path / "file" / "history.jsonl", history_points([1.0])[0])
