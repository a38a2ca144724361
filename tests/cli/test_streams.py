"""The contract of exit codes, for every command in every state of its streams and at every signal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main

from attnbench import cli
from attnbench.cli import streams
from tests.cli.every_state import COMMANDS, RUN, STATES

ROOT = Path(__file__).parents[2]
QUICK = ("show", "viz", "run", "history")  # commands for `make test`; the others are `slow`
STOPPED = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "SIGINT twice": 130}
UNWRITABLE = {"closed stdout": "it is closed", "full disk": "No space left on device"}
Outcomes = dict[str, dict[str, dict[str, object]]]


@cache
def outcomes(names: tuple[str, ...], folder: Path) -> Outcomes:
    command = [sys.executable, "-m", "tests.cli.every_state", str(folder), *names]
    variables = os.environ | {"ATTNBENCH_RESULTS": "results", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=True)
    outcomes: Outcomes = json.loads(done.stdout)
    return outcomes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


def test_the_table_has_every_command():
    def names(group: typer.main.TyperGroup) -> list[str]:
        return [
            f"{name} {inner}".strip()
            for name, command in group.commands.items()
            for inner in (names(command) if isinstance(command, typer.main.TyperGroup) else [""])
        ]

    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.main.TyperGroup)
    assert sorted(["", *names(group)]) == sorted(COMMANDS)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in COMMANDS])
def test_the_exit_code_holds_in_every_state(name, state, folder):
    part = tuple(other for other in COMMANDS if (other in QUICK) is (name in QUICK))
    by_state = outcomes(part, folder / str(len(part)))[name]
    code, outcome, plain = COMMANDS[name][1], by_state[state], by_state["plain"]
    assert "Traceback" not in str(outcome["stderr"])
    assert outcome["left"] == []
    if state in UNWRITABLE and plain["stdout"]:
        assert outcome["code"] == (code or 2)
        assert str(outcome["stderr"]).endswith(f"attnbench: cannot write to stdout: {UNWRITABLE[state]}\n")
    else:
        assert outcome["code"] == STOPPED.get(state, code)
        assert state not in STOPPED or str(outcome["stderr"]).endswith("attnbench: stopped\n")
    if state == "ascii":
        assert len(str(outcome["stdout"]).splitlines()) == len(str(plain["stdout"]).splitlines())


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 2), (">/dev/full", 2), ("2>&-", 0), ("| true", 0)])
def test_a_process_has_these_codes_too(redirection, code):
    command = f"{sys.executable} -m attnbench list masks {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code
    assert done.stderr.count("\n") == (code == 2)
    assert "causal" in done.stdout or redirection != "2>&-"


def test_pictures_have_other_shades_where_the_encoding_lacks_them(attnbench_command):
    command = ["viz", "bigbird:window=1:random=1:block=8", "--seq", "96"]
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    with contextlib.redirect_stdout(out):
        assert cli.invoke(command) == 0
    shades = str.maketrans("░▒▓█", ".+%#")
    assert out.buffer.getvalue().decode("ascii") == attnbench_command(*command).stdout.translate(shades)


def test_characters_without_a_replacement_become_question_marks():
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    with contextlib.redirect_stdout(out), streams.safe():
        print("± 漢 \udc80 …")
    assert out.buffer.getvalue().decode("latin-1") == "± ? ? ...\n"


def test_a_broken_pipe_elsewhere_is_a_bug_and_no_regression(monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert cli.invoke(["show", RUN]) == 0  # a module that it imports must not keep the function below
    monkeypatch.setattr("attnbench.records.run_directory.read", fail)
    assert cli.invoke(["show", RUN]) == 70
    assert "BrokenPipeError" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, attnbench_command):
    (tmp_path / "file").touch()
    done = attnbench_command("viz", "causal", "--seq", "64", "--out", str(tmp_path / "file" / "mask.svg"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], []])
def test_help_and_version_read_no_configuration(arguments, tmp_path, monkeypatch, attnbench_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attnbench.toml").write_text("[[broken")
    done = attnbench_command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("data", [b"[[broken", b"\xff\xfe"])
def test_a_broken_project_file_matters_only_with_a_section_of_attnbench(data, tmp_path, monkeypatch, attnbench_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(data)
    assert attnbench_command("list", "masks").returncode == 0
    (tmp_path / "pyproject.toml").write_bytes(b"[tool.attnbench.run]\n" + data)
    done = attnbench_command("list", "masks")
    assert done.returncode == 2
    assert "pyproject.toml" in done.stderr


@pytest.mark.parametrize("command", [("list", "masks"), ("show", RUN), ("run", "--dry-run")])
def test_an_unknown_colour_is_refused_by_every_command(command, attnbench_command):
    done = attnbench_command("--color", "allways", *command)
    assert done.returncode == 2
    assert done.stderr == "attnbench: --color: no colour 'allways'; did you mean 'always'?\n"
