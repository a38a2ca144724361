"""Independent tasks on all cores, in forked processes, which share the memory of what is already read."""

import gc
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar, cast

Item = TypeVar("Item")
Value = TypeVar("Value")

_task: Callable[[int], object] | None = None  # of a forked process: only indices of items are sent


def share(task: Callable[[Item], Value], items: Sequence[Item], pooled: bool = True, pieces: int = 200) -> list[Value]:
    """`task` of each item, in order. Runs in this process where it cannot fork, or where `pooled` is false.

    `pieces`: how many items a process takes at a time.
    """
    return list(stream(task, items, pooled, pieces))


def stream(
    task: Callable[[Item], Value], items: Sequence[Item], pooled: bool = True, pieces: int = 1
) -> Generator[Value]:
    """As `share`, each value when it is ready. All processes are forked before the first value is returned."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not pooled or cores < 2 or len(items) < 2:
        yield from map(task, items)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        cores, mp_context=context, initializer=_adopt, initargs=(lambda index: task(items[index]),)
    ) as pool:
        yield from cast("Iterator[Value]", pool.map(_run, range(len(items)), chunksize=pieces))


def _adopt(task: Callable[[int], object]) -> None:
    global _task
    _task = task
    gc.disable()  # a collection would write to shared pages; reference counts free what is made here


def _run(index: int) -> object:
    assert _task
    return _task(index)
