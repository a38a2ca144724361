from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
import time

import pytest

from attnbench.machine.device import counters
from attnbench.machine.device.counters import FAULTS_A_CALL, Counters, frequency, stolen, tags, waiting

QUIET = {"seconds": 0.010, "minor_faults": 3, "involuntary_switches": 1, "waiting_s": 1e-5, "stolen_s": 0.0}
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")


def test_a_quiet_block_has_no_tag() -> None:
    assert tags(QUIET, calls=10, threads=1) == ()


@pytest.mark.parametrize(
    ("facts", "tag"),
    [
        ({"minor_faults": 641}, "faulted"),
        ({"stolen_s": 0.01}, "stolen"),
        ({"throttled": 1}, "throttled"),
        ({"involuntary_switches": 2, "waiting_s": 0.004}, "preempted"),
    ],
)
def test_each_disturbance_has_its_tag(facts: dict[str, float], tag: str) -> None:
    assert tags(QUIET | facts, calls=10, threads=1) == (tag,)


@pytest.mark.parametrize("facts", [{"involuntary_switches": 50}, {"involuntary_switches": 0, "waiting_s": 0.004}])
def test_one_sign_alone_is_no_preemption(facts: dict[str, float]) -> None:
    assert tags(QUIET | facts, calls=10, threads=1) == ()


def test_waiting_and_steal_are_shared_among_threads() -> None:
    shared = {"involuntary_switches": 2, "waiting_s": 0.0015, "stolen_s": 0.00015}
    assert tags(QUIET | shared, calls=10, threads=1) == ("stolen", "preempted")
    assert tags(QUIET | shared, calls=10, threads=4) == ()


def test_a_missing_counter_is_no_disturbance() -> None:
    assert tags({"seconds": 0.01}, calls=1, threads=1) == ()


@LINUX
def test_pages_touched_for_the_first_time_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "MAX_COST_S", 60.0)  # a busy machine is slow
    finish = Counters((0,)).start()
    pages = 500
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(pages):
            memory[page * mmap.PAGESIZE] = 1
    facts = finish()
    assert facts["minor_faults"] >= pages
    assert "faulted" in tags(facts, calls=pages // FAULTS_A_CALL, threads=1)


@LINUX
def test_steal_is_that_of_the_requested_cores() -> None:
    import psutil

    before = [core.steal for core in psutil.cpu_times(percpu=True)]
    first, all_cores = stolen((0,))["stolen_s"], stolen(tuple(range(len(before))))["stolen_s"]
    after = [core.steal for core in psutil.cpu_times(percpu=True)]
    assert before[0] <= first <= after[0]
    assert sum(before) - 1e-6 <= all_cores <= sum(after) + 1e-6


CONTENDED = """
import os, time
from attnbench.machine.device.counters import Counters, tags, watch_others
core = max(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
counters = Counters((core,))
parent, child = os.getpid(), os.fork()
if not child:
    while os.getppid() == parent: pass
    os._exit(0)
finish, others, used, began = counters.start(), watch_others((core,)), time.process_time(), time.monotonic()
while time.process_time() < used + 0.3: pass  # however long it takes
facts, load, used = finish(), others(), time.process_time() - used
elapsed = time.monotonic() - began
os.kill(child, 9)
os.waitpid(child, 0)
print(load.cores, used / elapsed, facts["waiting_s"], *tags(facts, 1000, 1))
"""


@LINUX
def test_a_thread_that_shares_its_core_is_preempted() -> None:
    if not waiting():
        pytest.skip("this kernel has no schedstat")
    done = subprocess.run([sys.executable, "-c", CONTENDED], capture_output=True, text=True, check=True)
    foreign, own, waited_s, *disturbances = done.stdout.split()
    assert float(waited_s) > 0.1  # two busy processes share a core, until one has had it for 0.3 s
    assert float(foreign) > 0.2
    assert float(foreign) < 1.0 - float(own) / 2  # what this process uses is not foreign
    assert "preempted" in disturbances


def test_a_source_that_takes_too_long_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.getloadavg

    def slow() -> tuple[float, float, float]:
        time.sleep(0.01)
        return plain()

    monkeypatch.setattr(os, "getloadavg", slow)
    read = Counters((0,))
    assert "load" in read.left_out
    assert "load" not in read.start()()


def test_a_source_that_is_delayed_now_and_then_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = itertools.cycle([1.0, 1.0, 1e-6])
    monkeypatch.setattr(counters, "_cost_s", lambda _: next(costs))
    assert Counters((0,)).left_out == []


def test_a_core_without_a_clock_to_read_has_no_frequency() -> None:
    assert frequency((10**6,)) == {}
