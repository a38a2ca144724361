"""The Triton kernels, in processes of their own: interpreted, and compiled for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

HERE = Path(__file__).parent
INTERPRETED = HERE / "interpreted"
QUICK = ("pairs", "cached", "memory", "packed", "serving", "ragged")
SLOW = (
    ("attention",),
    ("pairs", "cached", "together"),
    ("memory", "packed", "serving", "ragged", "wide", "mechanisms"),
)
GPUS = ("sm_80 or sm_89 or sm_90", "sm_100 or sm_120 or gfx942")  # two processes of nearly the same length


def run_apart(tmp_path: Path, *arguments: object, interpreted: bool) -> str:
    """Run files of tests in a fresh process, where Triton is imported anew; empty if all of them pass."""
    foreign = ("TRITON_INTERPRET", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_INTERPRET": "1"} if interpreted else {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout[-8000:] + done.stderr[-2000:]


def test_the_kernels_are_right_in_the_interpreter(tmp_path: Path) -> None:
    files = [INTERPRETED / f"{name}.py" for name in QUICK]  # in one process, for its start takes seconds
    assert not run_apart(tmp_path, *files, "-m", "not slow", interpreted=True)


@pytest.mark.slow
@pytest.mark.parametrize("names", SLOW, ids=lambda names: names[0])
def test_every_combination_is_right_in_the_interpreter(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = [INTERPRETED / f"{name}.py" for name in names]
    assert not run_apart(tmp_path, *files, "-m", "slow", interpreted=True)


def test_every_file_of_the_interpreter_is_run() -> None:
    tested = {path.stem for path in INTERPRETED.glob("*.py") if "\ndef test_" in path.read_text(encoding="utf-8")}
    assert tested == {name for names in SLOW for name in names}


def test_compiled_kernels_keep_their_limits_on_every_kind_of_gpu(tmp_path: Path) -> None:
    assert not run_apart(tmp_path, HERE / "compiled" / "kernels.py", "-m", "not slow", interpreted=False)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", GPUS)
def test_what_is_not_stored_compiles(tmp_path: Path, gpus: str) -> None:
    assert not run_apart(tmp_path, HERE / "compiled" / "kernels.py", "-m", "slow", "-k", gpus, interpreted=False)
