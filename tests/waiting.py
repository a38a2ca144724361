"""Waiting for other processes, as long as a busy machine takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psutil

LIMIT_S = 300.0


def wait_until(condition: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    """Look until the condition holds. AssertionError with `what` after LIMIT_S seconds."""
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, what()
        time.sleep(0.01)


def wait_for_end(processes: Iterable[int]) -> None:
    """Wait until these processes have ended; whether their parent has noticed it does not matter."""
    for number in processes:
        wait_until(lambda number=number: _has_ended(number), lambda number=number: f"process {number} lives")


def _has_ended(number: int) -> bool:
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
