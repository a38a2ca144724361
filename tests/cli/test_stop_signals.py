"""Signals to commands that measure: results are kept, nothing else is left, the next command is named."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from attnbench.cli import stop_signals
from attnbench.cli.running import named_at_once
from attnbench.cli.stop_signals import StopSignals
from tests.cli.started import HELD, LONG, Started
from tests.records.samples import stored
from tests.waiting import wait_for_end

ROOT = Path(__file__).parents[2]


@pytest.mark.workers
def test_what_a_kill_leaves_is_completed_by_a_resume(tmp_path, monkeypatch, attnbench_command):
    command = Started(tmp_path, "run", *HELD)
    command.wait_until_held()
    monkeypatch.chdir(tmp_path)
    refused = attnbench_command("run", *HELD, "-o", str(command.run))
    assert refused.returncode == 2
    assert f"process {command.process.pid}" in refused.stderr
    command.kill()
    assert (before := command.stored).count(b"\n") == 2
    with (command.run / "results.jsonl").open("ab") as file:
        file.write(b'{"case": {"problem": {"seq_q": 64')
    command.go_on()
    done = attnbench_command("run", "--resume", str(command.run))
    assert done.returncode == 0, done.stderr
    assert command.stored.startswith(before)
    keys = {(record["case_id"], record["arm"]["backend"]) for record in map(json.loads, command.stored.splitlines())}
    assert command.stored.count(b"\n") == len(keys) == 4


@pytest.mark.workers
@pytest.mark.slow
def test_a_run_that_was_killed_and_continued_stops_at_a_sigterm(tmp_path):
    first = Started(tmp_path, "run", *HELD)
    first.wait_until_held()
    first.kill()
    before = first.stored
    second = Started(tmp_path, "run", *HELD)
    second.wait_until_held()
    assert list(second.temporary.glob("attnbench-*"))
    second.interrupt(signal.SIGTERM)
    second.go_on()
    code, stdout, _ = second.end()
    assert code == 143
    assert "naive" in stdout
    assert re.search(rf"2 of 4 cases not measured\nrun: .*\nnext: attnbench run --resume {first.run}\n", stdout)
    assert second.stored == before


@pytest.mark.workers
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_second_signal_stops_at_once_and_leaves_no_child(tmp_path, number, code):
    command = Started(tmp_path, "run", *HELD)
    command.wait_until_held()
    children = [child.pid for child in psutil.Process(command.process.pid).children(recursive=True)]
    assert len(children) >= 2
    command.interrupt(number)
    time.sleep(2 * stop_signals.REPEAT_S)  # a repeated SIGTERM counts once
    command.process.send_signal(number)
    ended, _, stderr = command.end()
    assert ended == code
    assert f"attnbench run --resume {command.run}" in stderr
    wait_for_end(children)
    assert command.stored.count(b"\n") == 2


@pytest.mark.workers
@pytest.mark.slow
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_kill_9_at_any_moment_loses_nothing_and_leaves_no_child(tmp_path, lines, attnbench_command):
    command = Started(tmp_path, "run", *LONG)
    command.wait_for_lines(lines)
    command.kill()
    before = command.stored
    done = attnbench_command("run", *LONG, "-o", str(command.run))
    assert done.returncode == 0, done.stderr
    assert command.stored.startswith(before)
    assert command.stored.count(b"\n") == 4


@pytest.mark.workers
@pytest.mark.slow
def test_sigterm_ends_a_gate_and_removes_the_files_of_base(tmp_path):
    (tmp_path / "file").touch()
    for arguments in (
        ["init", "-q"],
        ["add", "file"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    command = Started(tmp_path, "gate", "--base-ref", "HEAD", *LONG)
    command.wait_for_lines(1)
    assert list(command.temporary.glob("attnbench-base-*"))
    command.process.send_signal(signal.SIGTERM)
    code, _, stderr = command.end()
    assert code == 143
    assert f"attnbench gate {command.run}" in stderr


@pytest.mark.parametrize("imported", ["signal", "typer"])
def test_ctrl_c_while_the_command_line_is_imported_is_silent(tmp_path, imported):
    source = "import os, _signal\nos.kill(os.getpid(), _signal.SIGINT)\nprint('went on')\n"
    (tmp_path / f"{imported}.py").write_text(source)
    variables = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "attnbench", "--help"], env=variables, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_stop_at_once_names_the_command_that_continues_what_is_stored(tmp_path, capsys):
    for directory, message in ((tmp_path / "nothing", ""), (stored(tmp_path / "run"), "continue with: go on\n")):
        with pytest.raises(KeyboardInterrupt), named_at_once(directory, "go on"):
            raise KeyboardInterrupt
        assert capsys.readouterr().err.endswith(message)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_repeated_sigterm_counts_once_and_a_later_one_stops_at_once(clock):
    signals, asked = StopSignals(), []
    signals.ask = lambda: not asked and not asked.append(1)
    signals.receive(signal.SIGTERM, None)
    clock[0] += stop_signals.REPEAT_S / 2
    signals.receive(signal.SIGTERM, None)
    assert not signals.at_once
    clock[0] += 2 * stop_signals.REPEAT_S
    with pytest.raises(KeyboardInterrupt):
        signals.receive(signal.SIGTERM, None)
    signals.receive(signal.SIGTERM, None)  # while the command cleans up
    assert signals.exit_code == 143


def test_the_first_signal_says_how_the_runner_stops(capsys):
    with stop_signals.asking(lambda: "stopping: groups end now"):
        assert stop_signals.current.ask()
    assert "\nstopping: groups end now; " in capsys.readouterr().err


def test_the_first_signal_gives_the_exit_code(clock):
    signals = StopSignals()
    assert signals.exit_code == 130
    with pytest.raises(KeyboardInterrupt):
        signals.receive(signal.SIGHUP, None)
    signals.receive(signal.SIGINT, None)
    assert signals.exit_code == 129


def test_an_ignored_signal_stays_ignored_and_handlers_are_restored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with stop_signals.handled():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, before[1])
        assert signal.getsignal(signal.SIGTERM) is before[1]
    finally:
        signal.signal(signal.SIGHUP, before[0])
