"""What the system counts while a block runs: page faults, switches, waiting, steal, throttling, load, frequency.

Reading all of it takes about 0.1 ms. On a machine of very many cores some files take longer than a block; whatever
does is left out, and `Counters.left_out` says so.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attnbench import host

COST_MOST_S = 0.5e-3
FAULTS_A_CALL = 64  # after settling there should be none: more, and the allocator gives memory back and asks again
STOLEN_SHARE = 0.01
WAITING_SHARE = 0.05
THREADS_LOOKED_AT = 64

Source = Callable[[], dict[str, float]]


class Counters:
    """The counters of this process and of its cores."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        growing: list[Source] = [faults, waiting, lambda: stolen(cpus), Throttling()]
        now: list[Source] = [load, lambda: frequency(cpus)]
        self.left_out: list[str] = []
        self._growing = [source for source in growing if self._is_cheap(source)]
        self._now = [source for source in now if self._is_cheap(source)]

    def _is_cheap(self, source: Source) -> bool:
        source()  # the first reading opens what later ones find open
        started = time.perf_counter()
        names = source()
        cheap = time.perf_counter() - started < COST_MOST_S
        self.left_out += [] if cheap else names
        return cheap

    def start(self) -> Callable[[], dict[str, float]]:
        """Read now; what is given back reads again, and gives the difference."""
        before = _read(self._growing)
        started = time.perf_counter()

        def finish() -> dict[str, float]:
            seconds = time.perf_counter() - started
            after = _read(self._growing)
            grown = {name: value - before[name] for name, value in after.items() if name in before}
            return {"seconds": seconds, **grown, **_read(self._now)}

        return finish


def tags(facts: Mapping[str, float], calls: int, threads: int) -> tuple[str, ...]:
    """What disturbed a block of so many calls, judged from its facts.

    `preempted` asks for both signs: a thread was put off its core, and threads stood in the queue for a core for more
    than a share of the block. Each alone is harmless: a kernel thread that runs for a moment, or a thread that wakes.
    """
    seconds = facts["seconds"]
    found = {
        "faulted": facts.get("minor_faults", 0) > FAULTS_A_CALL * calls,
        "stolen": facts.get("stolen_s", 0) > STOLEN_SHARE * seconds * threads,
        "throttled": facts.get("throttled", 0) > 0,
        "preempted": facts.get("involuntary_switches", 0) > 0
        and facts.get("waiting_s", 0) > WAITING_SHARE * seconds * threads,
    }
    return tuple(name for name, holds in found.items() if holds)


def faults() -> dict[str, float]:
    """Page faults and context switches of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "minor_faults": usage.ru_minflt,
        "major_faults": usage.ru_majflt,
        "voluntary_switches": usage.ru_nvcsw,
        "involuntary_switches": usage.ru_nivcsw,
    }


def waiting() -> dict[str, float]:
    """Seconds that threads of this process were ready and had no core; from /proc/PID/task/TID/schedstat."""
    waited_ns = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task")[:THREADS_LOOKED_AT]:
            with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that has just ended
                waited_ns.append(int(_read_text(f"/proc/self/task/{thread}/schedstat").split()[1]))
    return {"waiting_s": sum(waited_ns) / 1e9} if waited_ns else {}


def stolen(cpus: tuple[int, ...]) -> dict[str, float]:
    """Seconds that the hypervisor gave these cores to others; the eighth figure of a cpu line, proc_stat(5)."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    ticks = 0
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in _read_text("/proc/stat").splitlines():
            if not line.startswith("cpu"):
                break
            name, *figures = line.split()
            ticks += int(figures[7]) if name in wanted else 0
        return {"stolen_s": ticks / os.sysconf("SC_CLK_TCK")}
    return {}


class Throttling:
    """How often the quota of this process's container, or of one above it, stopped it."""

    def __init__(self) -> None:
        self._files = [folder / "cpu.stat" for folder in host.cgroups("cpu") if (folder / "cpu.stat").exists()]

    def __call__(self) -> dict[str, float]:
        times = 0
        with contextlib.suppress(OSError, ValueError):
            for path in self._files:
                for line in path.read_text().splitlines():
                    name, _, value = line.partition(" ")
                    times += int(value) if name == "nr_throttled" else 0
            return {"throttled": times} if self._files else {}
        return {}


def load() -> dict[str, float]:
    """Runnable processes, averaged over a minute."""
    now = host.load()
    return {} if now is None else {"load": now}


def frequency(cpus: tuple[int, ...]) -> dict[str, float]:
    """The clock of the last of these cores, where Linux tells it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        path = Path(f"/sys/devices/system/cpu/cpu{cpus[-1]}/cpufreq/scaling_cur_freq")
        return {"frequency_hz": 1000 * float(path.read_text())}
    return {}


def _read(sources: list[Source]) -> dict[str, float]:
    return {name: value for source in sources for name, value in source().items()}


def _read_text(path: str) -> str:
    with open(path) as file:
        return file.read()
