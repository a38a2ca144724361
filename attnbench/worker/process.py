"""Settings of the worker's process: death with its parent, stack at a crash, OOM priority, memory limit, CPUs.

And what is loaded into it.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import resource
import signal
import sys
from pathlib import Path


def die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, even inside a loop in C."""
    parent = os.getppid()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call of prctl
        os._exit(1)


def print_stack_on_signals() -> None:
    """Print the Python stack to stderr when a fatal signal ends this process, and at SIGUSR1, also inside a C call."""
    faulthandler.enable(all_threads=False)
    faulthandler.register(signal.SIGUSR1, all_threads=False)


def prefer_as_oom_victim() -> None:
    """Have Linux kill this process first when memory runs out."""
    with contextlib.suppress(OSError):  # some containers forbid it; the memory limit still holds
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_data(size_bytes: int) -> None:
    """Limit the data segment. RLIMIT_AS would count address space that torch reserves and never uses."""
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, resource.RLIM_INFINITY))


def pin(cpus: tuple[int, ...]) -> None:
    """Pin every thread of this process: threads that a library has started do not inherit a later affinity."""
    if cpus and hasattr(os, "sched_setaffinity"):
        tasks = Path("/proc/self/task")
        for thread in [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)


def openmp_runtimes(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """The OpenMP runtimes in this process, by file name; with several, each has threads of its own."""
    lines = maps.read_text(errors="replace").splitlines() if maps.is_file() else []
    files = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line}
    return sorted(Path(file).name for file in files if re.match(r"lib(g|i)?omp(5|-|\.)", Path(file).name))


def unpinned_threads() -> list[str]:
    """The names of threads of this process that may run on other CPUs than its main thread."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed, names = os.sched_getaffinity(0), []
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # the thread has ended
            if not os.sched_getaffinity(int(task.name)) <= allowed:
                names.append((task / "comm").read_text().strip())
    return sorted(names)


def flushes_denormals() -> bool:
    """The processor's flag in this thread, which Python's division obeys and new threads inherit."""
    return sys.float_info.min / 2 == 0.0
