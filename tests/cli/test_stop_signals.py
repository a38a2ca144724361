"""Signals to commands that measure: results are kept, nothing else is left, the next command is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnbench.cli import stop_signals
from attnbench.cli.running import named_at_once
from attnbench.cli.stop_signals import StopSignals
from tests.cli.test_cli import wait_for_lines
from tests.records.test_run_directory import stored

ROOT = Path(__file__).parents[2]
LONG = ("--seq", "64,128", "--heads", "8", "-b", "naive,sdpa:flash", "--budget", "0")


class Command:
    """A command that measures into `run`, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.run, self.temporary = folder / "run", folder / "temporary"
        self.temporary.mkdir()
        variables = os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        # Compiled kernels are not temporary files of attnbench.
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "attnbench", *arguments, "-o", str(self.run)], cwd=folder, env=variables,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for_lines(self, count: int) -> None:
        wait_for_lines(self.run / "results.jsonl", count, self.process)

    def end(self) -> tuple[int, str, str]:
        """The exit code, what was printed; no temporary folder and no child may be left."""
        stdout, stderr = self.process.communicate(timeout=300)
        assert [path.name for path in self.temporary.iterdir() if path.name.startswith("attnbench")] == []
        assert "Traceback" not in stderr
        return self.process.returncode, stdout, stderr


@pytest.mark.workers
def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path):
    command = Command(tmp_path, "run", *LONG)
    command.wait_for_lines(2)
    assert list(command.temporary.glob("attnbench-*"))
    command.process.send_signal(signal.SIGTERM)
    code, stdout, _ = command.end()
    assert code == 143
    assert "naive" in stdout
    assert re.search(rf"\d of 8 cases not measured\nrun: .*\nnext: attnbench run --resume {command.run}\n", stdout)


@pytest.mark.workers
@pytest.mark.slow
def test_a_second_sigterm_stops_at_once(tmp_path):
    import psutil

    command = Command(tmp_path, "run", *LONG)
    command.wait_for_lines(2)
    children = psutil.Process(command.process.pid).children(recursive=True)
    command.process.send_signal(signal.SIGTERM)
    time.sleep(2 * stop_signals.REPEAT_S)
    command.process.send_signal(signal.SIGTERM)
    code, stdout, stderr = command.end()
    assert code in (143, -signal.SIGTERM)  # the second may come when the process has printed all and ends
    assert f"attnbench run --resume {command.run}" in stdout + stderr
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert (command.run / "results.jsonl").read_bytes().count(b"\n") >= 2


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
    command = Command(tmp_path, "gate", "--base-ref", "HEAD", *LONG)
    command.wait_for_lines(2)
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
