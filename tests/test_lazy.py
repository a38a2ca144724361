"""The light commands load no torch, and none of the other heavy packages: they run where these cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = ("torch", "triton", "ray", "xformers", "flash_attn", "flashinfer")
SLOW_TO_LOAD = ("pandas", "scipy", "rich", "jinja2", "pynvml", "psutil")

PROGRAM = """
import sys

import importlib.machinery

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
code = invoke({arguments!r})
print("LOADED", sorted(set(sys.modules) & {watched!r}), file=sys.stderr)
sys.exit(code)
"""


def light(*arguments: str, blocked: tuple[str, ...] = BLOCKED) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(blocked=set(blocked), arguments=list(arguments), watched=set(SLOW_TO_LOAD))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--help",),
        ("help", "environment"),
        ("run", "--help"),
        ("list", "backends"),
        ("list", "suites", "--json"),
        ("list", "masks"),
        ("list", "devices"),
        ("doctor", "--quick"),
        ("run", "--dry-run", "--seq", "512..16384"),
    ],
    ids=" ".join,
)
def test_the_command_runs_without_torch(arguments):
    done = light(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("help", "environment")], ids=" ".join)
def test_help_loads_nothing_that_is_slow(arguments):
    assert light(*arguments, blocked=(*BLOCKED, *SLOW_TO_LOAD)).returncode == 0


def test_a_stored_run_is_shown_and_reported_without_torch(tmp_path, stored_run):
    for arguments in (("show", str(stored_run)), ("show", str(stored_run), "--json"), ("report", str(stored_run))):
        done = light(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (Path(stored_run) / "report" / "report.md").is_file()


def test_a_dry_run_plans_every_cell_once(tmp_path):
    done = light("run", "--dry-run", "--json", "--seq", "64..256", "-b", "naive,sdpa:flash")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len([line for line in lines if line["type"] == "case"]) == 3 * 2 * 2
    assert lines[-1]["type"] == "summary"
    assert lines[-1]["cases"] == 12
