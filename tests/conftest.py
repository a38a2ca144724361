"""What every test finds: no configuration of the user, results in a folder of its own, no colour, 80 columns."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests marked `workers` take turns, so that two processes of pytest-xdist do not disturb each other's timing."""
    if item.get_closest_marker("workers") is None:
        return (yield)
    with Path(__file__).open() as turn:  # any file that all of them can open
        fcntl.flock(turn, fcntl.LOCK_EX)
        return (yield)


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


@pytest.fixture(scope="session")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, measured once for all tests that only read it."""
    import attnbench

    folder = tmp_path_factory.mktemp("stored") / "run"
    attnbench.run(seq="32,48", heads=2, backend="naive,sdpa:flash,triton", rounds="3", budget="0", out=folder)
    return folder
