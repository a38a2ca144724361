"""The light commands load no torch, and none of the other heavy packages: they run where these cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

Command = tuple[str, ...]
Outcomes = dict[Command, "subprocess.CompletedProcess[str]"]

BLOCKED = ("torch", "triton", "ray", "xformers", "flash_attn", "flashinfer")
SLOW_TO_LOAD = ("pandas", "scipy", "rich", "jinja2", "pynvml", "psutil")
HELP: tuple[Command, ...] = (("--help",), ("run", "--help"), ("help", "environment"))
DRY_RUN: Command = ("run", "--dry-run", "--json", "--seq", "64..256", "-b", "naive,sdpa:flash")
COMMANDS: tuple[Command, ...] = (
    (),
    *HELP,
    ("list", "backends"),
    ("list", "suites", "--json"),
    ("list", "masks"),
    ("list", "devices"),
    ("doctor", "--quick"),
    ("run", "--dry-run", "--seq", "512..16384"),
    DRY_RUN,
)

PROGRAM = """
import contextlib
import importlib.machinery
import io
import json
import sys

class Blocker:
    # Found, so that it counts as installed; but whoever runs it fails.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError("blocked: " + spec.name)
    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Blocker())
from attnbench.cli import invoke

outcomes = []
for arguments in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = invoke(list(arguments))
    outcomes.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(outcomes))
"""


@cache
def light(commands: tuple[Command, ...], blocked: tuple[str, ...] = BLOCKED) -> Outcomes:
    """Run command lines one after the other, in a fresh process that can import none of the blocked packages."""
    program = PROGRAM.format(blocked=set(blocked), commands=commands)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    return {
        command: subprocess.CompletedProcess(command, *outcome)
        for command, outcome in zip(commands, outcomes, strict=True)
    }


def of_run(folder: Path) -> tuple[Command, ...]:
    return ("show", str(folder)), ("show", str(folder), "--json"), ("report", str(folder))


def without_torch(folder: Path) -> Outcomes:
    """The outcomes of all light commands, in one process."""
    return light((*COMMANDS, *of_run(folder)))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_command_runs_without_torch(command, stored_run):
    done = without_torch(stored_run)[command]
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_loads_nothing_that_is_slow(command):
    assert light(HELP, (*BLOCKED, *SLOW_TO_LOAD))[command].returncode == 0


def test_a_stored_run_is_shown_and_reported_without_torch(stored_run):
    outcomes = without_torch(stored_run)
    for done in map(outcomes.__getitem__, of_run(stored_run)):
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (Path(stored_run) / "report" / "report.md").is_file()


def test_a_dry_run_plans_every_cell_once(stored_run):
    lines = [json.loads(line) for line in without_torch(stored_run)[DRY_RUN].stdout.splitlines()]
    assert len([line for line in lines if line["type"] == "case"]) == 3 * 2 * 2
    assert lines[-1]["type"] == "summary"
    assert lines[-1]["cases"] == 12
