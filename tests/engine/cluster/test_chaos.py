"""Processes of a run on a cluster are killed at random: no case is lost, none is stored twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ray")

from tools.chaos import chaos


@pytest.mark.slow
@pytest.mark.workers
def test_three_kills_lose_no_case_and_repeat_none() -> None:
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:  # short, for sockets
        outcome = chaos(3, Path(folder))
    assert outcome.kills.total() == 3
    assert outcome.right, outcome
