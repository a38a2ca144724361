"""Bugs that are put into the kernels on purpose, each of which the checks of the kernels must notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.kernels.interpreted.mutations import MUTATIONS

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("triton")


@cache
def tried() -> dict[str, str]:
    """What the checks said of every bug."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.interpreted.mutations"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_the_checks_pass_without_a_bug() -> None:
    assert tried()[""] == "right"


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_seeded_bug_is_noticed(name: str) -> None:
    assert tried()[name] in ("mismatch", "crash")
