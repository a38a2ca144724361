"""What every test finds: no configuration of the user, results in a folder of its own, no colour, 80 columns."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

from attnbench.records import facts

# A busy machine is slow, and a failure must come back on the next try: `--hypothesis-profile random` draws others.
settings.register_profile(
    "attnbench", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("random", settings.get_profile("attnbench"), derandomize=False)
settings.load_profile("attnbench")
UNUSED = itertools.count()  # numbers of folders that are never made
# A shell starts background jobs with SIGINT ignored, and so would be the Ctrl-C of a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def surroundings(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing of the user's shell reaches a test. A folder is made only for a test that asks for one."""
    base = tmp_path_factory.getbasetemp()
    own = "tmp_path" in request.fixturenames
    folder = request.getfixturevalue("tmp_path") if own else base / f"unused-{next(UNUSED)}"
    foreign = {"CI", "FORCE_COLOR", "GITHUB_ACTIONS", "GITHUB_BASE_REF", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"}
    for name in [name for name in os.environ if name.startswith("ATTNBENCH_") or name in foreign]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(folder / "results"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    # One cache for the whole session: what one test compiled, another need not compile again.
    monkeypatch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(facts, "STRICT", True)
    # assert_close need not import torch.distributed to learn that no tensor of a test is distributed.
    if comparison := sys.modules.get("torch.testing._comparison"):
        monkeypatch.setattr(comparison, "_HAS_DTENSOR", False, raising=False)


# The longest units of work, longest first: they are handed out in the order of the collection, so that the processes of
# pytest-xdist end together.
LONGEST = (
    "workers",
    "suite/test_shrink.py",
    "kernels/test_hopper_simulated.py",
    "test_your_kernel.py",
    "kernels/test_mutations.py",
    "kernels/test_triton_kernels.py",
    "studies/test_corpus.py",
    "attention/test_requests.py",
    "backends/test_naive.py",
    "attention/test_mechanisms.py",
    "analysis/test_redraws.py",
    "analysis/test_traffic_part.py",
    "gate/test_verdict_text.py",
    "backends/test_flex.py",
    "report/test_report_html.py",
    "report/test_report_browser.py",
    "studies/test_claims.py",
    "test_notebook.py",
    "cli/test_streams.py",
)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


@cache
def _unit(file: str) -> str:
    """The tests that one process runs together: those of a file, or of all files that time worker processes."""
    path = Path(__file__).parent / file
    return "workers" if path.is_file() and "mark.workers" in path.read_text(encoding="utf-8") else file


RERUNS = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long units of work first, where pytest-xdist shares them out. In CI a test that times workers may be repeated."""
    if os.environ.get("CI"):  # other work on a shared machine changes times; -ra prints each repetition
        for item in items:
            if item.get_closest_marker("workers"):
                item.add_marker(pytest.mark.flaky(reruns=RERUNS))
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {unit: place for place, unit in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(_unit(_file(item.nodeid)), len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadscope`: by units of work. A test of kernels is a unit, and so are those of a compiled variant."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = _file(nodeid)
            if file.startswith("kernels/compiled/"):
                return nodeid.partition("[")[2]
            apart = file == "kernels/test_triton_kernels.py" or file.startswith("kernels/interpreted/")
            return nodeid if apart else _unit(file)

    return Units(config, log)


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
