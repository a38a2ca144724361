"""Independent pieces of work on all cores: the processes are forked, so that they share what is already read."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

_task: Callable[[int], Any] | None = None  # of a forked process: the places of items are sent, nothing else


def share(task: Callable[[Item], Made], items: Sequence[Item], pooled: bool = True, pieces: int = 200) -> list[Made]:
    """`task` of each item, in order; in this process alone where it cannot fork, or where `pooled` is not asked for.

    `pieces`: items that a process takes at a time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not pooled or cores < 2 or len(items) < 2:
        return [task(item) for item in items]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        cores, mp_context=context, initializer=_adopt, initargs=(lambda place: task(items[place]),)
    ) as pool:
        return list(pool.map(_run, range(len(items)), chunksize=pieces))


def _adopt(task: Callable[[int], Any]) -> None:
    global _task
    _task = task
    gc.disable()  # what is shared stays shared, and what is made here goes by its count of references


def _run(place: int) -> Any:
    assert _task
    return _task(place)
