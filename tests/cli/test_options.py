"""Options: both names of one give the same request, and one definition of an axis reaches every command."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from attnbench import api, backends, cli
from attnbench.analysis.metrics import GROUPS
from attnbench.attention.choices import Dtype, KvDtype, Mode, Returns
from attnbench.attention.inputs import DISTRIBUTIONS
from attnbench.cli import completion, options, running
from attnbench.engine.sweep import Request
from attnbench.suite import AXES


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that `run` builds; nothing is measured."""
    built: list[Request] = []

    def main(request: Request, *_: object) -> int:
        built.append(request)
        return 0

    monkeypatch.setattr(running, "main", main)
    return built


@pytest.mark.parametrize("name", ["restarts", "launches"])
def test_both_names_of_restarts_give_the_same_request(
    name: str, requests: list[Request], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(["run", f"--{name}", "6"]) == 0
    with monkeypatch.context() as environment:
        environment.setenv(f"ATTNBENCH_RUN_{name.upper()}", "6")
        assert cli.invoke(["run"]) == 0
    for file, section in (("attnbench.toml", "run"), ("pyproject.toml", "tool.attnbench.run")):
        (tmp_path / file).write_text(f"[{section}]\n{name} = 6\n")
        assert cli.invoke(["run"]) == 0
        (tmp_path / file).unlink()
    assert requests == [Request(restarts=6)] * 4
    assert api.request(**{name: 6}) == requests[0]


def test_help_shows_the_new_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--restarts N" in text
    assert "launches" not in text.lower()


# An axis needs one entry of AXES, and a field of Problem: here a subclass adds the field.
NEW_AXIS = """
import contextlib
import io
import json
import sys
import msgspec
from attnbench.suite.keys import AXES, Axis
from attnbench.suite.readers import integers
for name, option in {"knob": True, "latch": False}.items():
    AXES[name] = Axis(name=name, summary=f"Turn the {name}.", read=integers, option=option, usual="1")

from attnbench.attention.problem import Problem
from attnbench.suite import cells
fields = [("knob", int, 1), ("latch", int, 1)]
cells.Problem = msgspec.defstruct("Problem", fields, bases=(Problem,), frozen=True, kw_only=True)
from attnbench.cli import invoke
from attnbench.engine import verify_only

def run(planned, *_):
    print("verify", *((group.problem.knob, group.problem.latch) for group in planned.plan.groups))
    sys.exit(0)

verify_only.run = run
outcomes = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = invoke(arguments)
        except SystemExit as leaving:
            code = leaving.code
    outcomes.append((code, out.getvalue()))
print(json.dumps(outcomes))
"""
OF_THE_NEW_AXIS = (
    (["run", "--help"], "--knob LIST"),
    (["gate", "--help"], "--knob LIST"),
    (["verify", "--help"], "Turn the knob."),
    (["explain", "--help"], "--knob LIST"),
    (["verify", "--seq", "32", "--mask", "none", "-b", "naive", "--knob", "2", "--set", "latch=3"], "verify (2, 3)\n"),
    (["run", "--seq", "32", "--mask", "none", "-b", "naive", "--knob", "1,2", "--dry-run"], "2 of 2 cases"),
    (["run", "--seq", "32", "--mask", "none", "-b", "naive", "--set", "latch=1,2,3", "--dry-run"], "3 of 3 cases"),
    (["run", "new.toml", "--dry-run", "--only", "knob=2.."], "3 of 3 cases"),
    (["run", "new.toml", "--dry-run", "--knob", "4"], "1 of 1 cases"),
    (["suite", "schema"], '"knob": {'),
    (["suite", "schema"], '"latch": {'),
)


@pytest.fixture(scope="module")
def with_new_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite of the new axis."""
    folder = tmp_path_factory.mktemp("new")
    (folder / "new.toml").write_text('[[problem]]\nseq = 32\nmask = "none"\nbackend = "naive"\nknob = "1..8"\n')
    return folder


@cache
def outcomes(folder: Path) -> list[tuple[int, str]]:
    """The exit code of each of these command lines, and what it prints, in one process that has the new axis."""
    commands = json.dumps([arguments for arguments, _ in OF_THE_NEW_AXIS])
    done = subprocess.run(
        [sys.executable, "-c", NEW_AXIS, commands], capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return [(code, out) for code, out in json.loads(done.stdout)]


@pytest.mark.parametrize("place", range(len(OF_THE_NEW_AXIS)), ids=lambda place: " ".join(OF_THE_NEW_AXIS[place][0]))
def test_one_entry_adds_an_axis_everywhere(place: int, with_new_suite: Path) -> None:
    code, out = outcomes(with_new_suite)[place]
    assert code == 0, out
    assert OF_THE_NEW_AXIS[place][1] in out


def completed(name: str, text: str) -> list[str]:
    options_of_run = (*options.PROBLEM, options.BACKEND, options.INPUTS, options.METRICS, options.SKIP)
    names = next(option.names for option in options_of_run if option.name == name)
    assert names
    return completion.of_list(names)(text)


def test_completion_offers_what_the_registries_hold() -> None:
    assert completed("backend", "naive,sdpa:") == [f"naive,{name}" for name in backends.BUILTIN if name[:5] == "sdpa:"]
    assert set(backends.BUILTIN) <= set(completed("backend", ""))
    assert completed("dtype", "") == list(Dtype)
    assert set(DISTRIBUTIONS) <= set(completed("inputs", ""))
    assert set(GROUPS) <= set(completed("metrics", ""))
    assert completed("set", "softc") == ["softcap="]
    assert completed("skip", "back") == ["backend="]
    for axis in AXES.values():
        names = [name for name in axis.names() if not name.endswith((":", "function"))] if axis.names else []
        assert all(axis.read(name, axis.name) for name in names)


def test_help_of_an_axis_names_every_member_of_a_closed_set() -> None:
    for name, kind in {"dtype": Dtype, "mode": Mode, "returns": Returns, "kv_dtype": KvDtype}.items():
        assert all(member in AXES[name].summary for member in kind)


def test_defaults_of_options_are_those_of_the_request(requests: list[Request]) -> None:
    assert cli.invoke(["run"]) == 0
    assert requests == [Request()]


def test_command_line_wins_over_the_other_name_in_a_file(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attnbench.toml").write_text("[run]\nrestarts = 3\n")
    assert cli.invoke(["run", "--launches", "6"]) == 0
    (tmp_path / "attnbench.toml").write_text("[run]\nlaunches = 3\n")
    assert cli.invoke(["run", "--restarts", "6"]) == 0
    assert requests == [Request(restarts=6)] * 2


def test_one_key_by_option_and_by_set_is_refused(capsys):
    assert cli.invoke(["run", "--requests", "q32", "--set", "requests=q64", "--dry-run"]) == 2
    assert "--requests q32 and --set requests=q64 give one key twice: use one of them" in capsys.readouterr().err
