"""System counters around a block: page faults, context switches, waiting, steal, throttling, load, frequency.

Reading all of them takes about 0.1 ms. On a machine with very many cores some files take longer than a block; these are
left out, and `Counters.left_out` names them.
"""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path

from attnbench.machine import resources
from attnbench.records.ceilings import ForeignLoad

MAX_COST_S = 0.5e-3
TRIES = 5  # of a reading that is to take no longer: another process may have the core meanwhile
FAULTS_A_CALL = 64  # after settling there are none, unless the allocator returns memory and requests it again
STOLEN_SHARE = 0.01
WAITING_SHARE = 0.05
MAX_THREADS_READ = 64
STOLEN = (7,)
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal

Source = Callable[[], dict[str, float]]


class Counters:
    """The counters of this process and of its cores; those that are expensive to read are left out."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        growing: list[Source] = [faults, waiting, lambda: stolen(cpus), Throttling()]
        now: list[Source] = [load, lambda: frequency(cpus)]
        self.left_out: list[str] = []
        self._growing = [source for source in growing if self._is_cheap(source)]
        self._now = [source for source in now if self._is_cheap(source)]

    def _is_cheap(self, source: Source) -> bool:
        names = source()  # the first reading opens files for the later ones
        is_cheap = any(_cost_s(source) < MAX_COST_S for _ in range(TRIES))
        self.left_out += [] if is_cheap else names
        return is_cheap

    def start(self) -> Callable[[], dict[str, float]]:
        """Read the counters. The returned function reads them again and returns the differences."""
        before = _read(self._growing)
        started = time.perf_counter()

        def finish() -> dict[str, float]:
            seconds = time.perf_counter() - started
            after = _read(self._growing)
            grown = {name: value - before[name] for name, value in after.items() if name in before}
            return {"seconds": seconds, **grown, **_read(self._now)}

        return finish


def _cost_s(source: Source) -> float:
    started = time.perf_counter()
    source()
    return time.perf_counter() - started


def tags(facts: Mapping[str, float], calls: int, threads: int) -> tuple[str, ...]:
    """What disturbed a block of so many calls, by its facts.

    `preempted` needs two signs: a thread lost its core, and threads waited for a core for more than a share of the
    block. Each alone is harmless: a kernel thread that runs for a moment, or a thread that wakes.
    """
    seconds = facts["seconds"]
    disturbed = {
        "faulted": facts.get("minor_faults", 0) > FAULTS_A_CALL * calls,
        "stolen": facts.get("stolen_s", 0) > STOLEN_SHARE * seconds * threads,
        "throttled": facts.get("throttled", 0) > 0,
        "preempted": facts.get("involuntary_switches", 0) > 0
        and facts.get("waiting_s", 0) > WAITING_SHARE * seconds * threads,
    }
    return tuple(name for name, holds in disturbed.items() if holds)


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
        for thread in os.listdir("/proc/self/task")[:MAX_THREADS_READ]:
            with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that has just ended
                waited_ns.append(int(_read_text(f"/proc/self/task/{thread}/schedstat").split()[1]))
    return {"waiting_s": sum(waited_ns) / 1e9} if waited_ns else {}


def stolen(cpus: tuple[int, ...]) -> dict[str, float]:
    """Seconds in which the hypervisor ran others on these cores."""
    seconds = _core_seconds(STOLEN)
    return {"stolen_s": sum(seconds.get(cpu, 0.0) for cpu in cpus)} if seconds else {}


def watch_others(cpus: tuple[int, ...]) -> Callable[[], ForeignLoad | None]:
    """Read the busy time of all cores. The returned function says how much of it others used since; None: unknown.

    `cpus` are those that this process is pinned to; empty for a GPU, whose host thread counts as one core.
    """
    before, waited = _core_seconds(BUSY), waiting()
    started, used_s = time.perf_counter(), time.process_time()

    def finish() -> ForeignLoad | None:
        after, seconds, own_s = _core_seconds(BUSY), time.perf_counter() - started, time.process_time() - used_s
        if not before or not after:
            return None
        # /proc/stat counts in ticks: less than one tick of a core may be the end of an earlier one.
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        here, everywhere = (
            max(0.0, sum(after[cpu] - before[cpu] - tick_s for cpu in among) - own_s) / (seconds * max(1, len(among)))
            for among in (before.keys() & set(cpus), before.keys() & after.keys())
        )
        waited_s = waiting().get("waiting_s", 0.0) - waited.get("waiting_s", 0.0)
        here = max(here, waited_s / (seconds * max(1, len(cpus))))
        return ForeignLoad(cores=here, machine=everywhere if cpus else None)

    return finish


def _core_seconds(columns: tuple[int, ...]) -> dict[int, float]:
    """Seconds that each core has spent in these states, the columns of a cpu line of proc_stat(5); empty elsewhere."""
    seconds: dict[int, float] = {}
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in takewhile(lambda line: line.startswith("cpu"), _read_text("/proc/stat").splitlines()):
            name, *figures = line.split()
            if name != "cpu":  # that line is the sum
                ticks = sum(int(figures[column]) for column in columns)
                seconds[int(name.removeprefix("cpu"))] = ticks / os.sysconf("SC_CLK_TCK")
    return seconds


class Throttling:
    """How often the CPU quota of this container, or of one above it, stopped this process."""

    def __init__(self) -> None:
        self._files = [folder / "cpu.stat" for folder in resources.cgroups("cpu") if (folder / "cpu.stat").exists()]

    def __call__(self) -> dict[str, float]:
        times = [int(resources.table(path).get("nr_throttled", "0")) for path in self._files]
        return {"throttled": sum(times)} if times else {}


def load() -> dict[str, float]:
    """Runnable processes, averaged over a minute."""
    average = resources.load()
    return {} if average is None else {"load": average}


def frequency(cpus: tuple[int, ...]) -> dict[str, float]:
    """The clock of the last of these cores, where Linux reports it."""
    path = f"/sys/devices/system/cpu/cpu{cpus[-1]}/cpufreq/scaling_cur_freq" if cpus else ""
    khz = resources.number(Path(path))
    return {} if khz is None else {"frequency_hz": 1000.0 * khz}


def _read(sources: list[Source]) -> dict[str, float]:
    return {name: value for source in sources for name, value in source().items()}


def _read_text(path: str) -> str:  # opens a file faster than Path.read_text
    with open(path) as file:
        return file.read()
