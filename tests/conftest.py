"""What every test finds: no configuration of the user, results in a folder of its own, no colour, 80 columns."""

from __future__ import annotations

import fcntl
import os
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

# A shared machine makes single examples slow for no reason of ours; in CI a failure must come back on the next try.
settings.register_profile("attnbench", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "attnbench")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of the user's shell reaches a test."""
    foreign = {"CI", "FORCE_COLOR", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"}
    for name in [name for name in os.environ if name.startswith("ATTNBENCH_") or name in foreign]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # One cache for the whole session: what one test compiled, another need not compile again.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


# The longest units of work, longest first: they are handed out in the order of the collection, so that the processes of
# pytest-xdist end together.
LONGEST = (
    "workers",
    "kernels/test_triton_kernels.py",
    "kernels/test_mutations.py",
    "kernels/test_hopper_simulated.py",
    "backends/test_naive.py",
    "attention/test_mechanisms.py",
    "report/test_report_html.py",
)


def _unit(item: pytest.Item) -> str:
    """The tests that one process runs together; empty for a test that is a unit by itself.

    Those that time worker processes are one unit, so that they run one after another. A process that has compiled a
    variant of a kernel runs all tests of it.
    """
    file = item.nodeid.partition("::")[0].removeprefix("tests/")
    if item.get_closest_marker("workers"):
        return "workers"
    if file.startswith("kernels/compiled/"):
        return item.nodeid.partition("[")[2].removesuffix("]")
    return "" if file.startswith("kernels/interpreted/") else file


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks after this
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where pytest-xdist shares tests out: units of work, the longest first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    places = {unit: place for place, unit in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(_unit(item), len(LONGEST)))
    for item in items:
        # The interpreter and the compiler have processes of their own, which take minutes.
        if (unit := _unit(item)) and unit != "kernels/test_triton_kernels.py":
            item.add_marker(pytest.mark.xdist_group(unit))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Asked only for a test that is about to run, because the answer needs torch."""
    if item.get_closest_marker("gpu") and (reason := _no_gpu()):
        pytest.skip(reason)


@cache
def _no_gpu() -> str:
    if find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


class Command(Protocol):
    """Runs a command line."""

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def attnbench_command(capsys: pytest.CaptureFixture[str]) -> Command:
    """A command line in this process: what it prints and its exit code, without the start of an interpreter."""
    from attnbench.cli import invoke

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = invoke(list(arguments))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, measured once for all tests that only read it, also by those of other processes of pytest-xdist."""
    import attnbench

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "stored" / "run"
    with (shared / "stored.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            attnbench.run(seq="32,48", heads=2, backend="naive,sdpa:flash,triton", rounds="3", budget="0", out=folder)
    return folder
