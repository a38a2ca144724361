from __future__ import annotations

import os
from pathlib import Path

import pytest

from attnbench.machine import resources
from attnbench.records.arm import parse_device
from tests.machine.samples import in_child, tree

V2 = "30 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}"


def test_memory_of_a_container_counts_its_page_cache_as_free(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/box/memory.max": "1000",
            "sys/fs/cgroup/box/memory.current": "700",
            "sys/fs/cgroup/box/memory.stat": "anon 500\ninactive_file 150",
        },
    )
    assert resources.container_memory(root) == (1000, 450)


def test_the_container_that_leaves_least_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/outer/memory.max": "500",
            "sys/fs/cgroup/outer/memory.current": "400",
            "sys/fs/cgroup/outer/inner/memory.max": "max",
            "sys/fs/cgroup/outer/inner/memory.current": "300",
        },
    )
    assert resources.container_memory(root) == (500, 100)


def test_memory_limit_of_version_1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc",
            "proc/self/mountinfo": V1.format(root="/docker/abc", name="memory"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2048",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 52",
        },
    )
    assert resources.container_memory(root) == (2048, 100)


def test_the_largest_number_of_version_1_is_no_limit(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/",
            "proc/self/mountinfo": V1.format(root="/", name="memory"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000",
        },
    )
    assert resources.container_memory(root) is None


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", None)])
def test_cpu_quota_of_version_2(tmp_path: Path, text: str, quota: float | None) -> None:
    files = {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2, "sys/fs/cgroup/cpu.max": text}
    assert resources.cpu_quota(tree(tmp_path, files)) == quota


@pytest.mark.parametrize(("text", "quota"), [("50000", 0.5), ("-1", None)])
def test_cpu_quota_of_version_1(tmp_path: Path, text: str, quota: float | None) -> None:
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/",
        "proc/self/mountinfo": "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": text,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert resources.cpu_quota(tree(tmp_path, files)) == quota


def test_a_path_outside_of_the_mount_means_its_top(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../../elsewhere", "proc/self/mountinfo": V2}
    assert list(resources.cgroups("memory", tree(tmp_path, files))) == [tmp_path / "sys/fs/cgroup"]


def test_odd_lines_of_proc_do_no_harm(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "nonsense\n\n0::/", "proc/self/mountinfo": f"\nnonsense\n1 2 -\n{V2}"}
    assert list(resources.cgroups("cpu", tree(tmp_path, files))) == [tmp_path / "sys/fs/cgroup"]


def test_a_machine_without_proc_has_no_limits(tmp_path: Path) -> None:
    assert (resources.container_memory(tmp_path), resources.cpu_quota(tmp_path)) == (None, None)


def test_free_memory_is_below_the_total_of_the_kernel() -> None:
    path = Path("/proc/meminfo")
    if not path.exists():
        pytest.skip("no /proc/meminfo on this system")
    total = next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < resources.memory_free_bytes() < total


LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")


@pytest.mark.parametrize(
    ("siblings", "cores"),
    [
        (("0-1", "0-1", "2-3", "2-3"), (0, 2)),
        (("0,2", "1,3", "0,2", "1,3"), (0, 1)),
        (("0", "1", "2", "3"), (0, 1, 2, 3)),
    ],
)
def test_hyper_threads_of_one_core_count_once(
    tmp_path: Path, siblings: tuple[str, ...], cores: tuple[int, ...]
) -> None:
    files = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in enumerate(siblings)
    }
    assert resources.whole_cores((0, 1, 2, 3), tree(tmp_path, files)) == cores


def test_without_a_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert resources.whole_cores((1, 5), tmp_path) == (1, 5)


@LINUX
def test_affinity_bounds_cores_and_threads() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from attnbench.machine import resources; print(len(resources.available_cores()), resources.default_threads())"
    )
    assert in_child(code) == "1 1"


def test_default_leaves_a_core_to_the_others_where_it_can() -> None:
    assert resources.default_threads() == max(1, len(resources.available_cores()) - 1)


def test_a_worker_gets_the_last_cores() -> None:
    assert resources.cores_for(parse_device("cpu:threads=1")) == resources.available_cores()[-1:]


def test_a_worker_gets_the_named_cores() -> None:
    assert resources.cores_for(parse_device("cpu:threads=1:cores=3+5")) == (3, 5)


def test_cores_of_a_worker_stay_the_same_once_it_is_pinned() -> None:
    code = (
        "import os; from attnbench.machine import resources; from attnbench.records.arm import parse_device as device;"
        "first = resources.cores_for(device('cpu:threads=1')); os.sched_setaffinity(0, first);"
        "print(first == resources.cores_for(device('cpu:threads=1')))"
    )
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    assert in_child(code) == "True"


@pytest.mark.parametrize(("load", "busy"), [(0.0, False), (1000.0, True)])
def test_a_machine_is_busy_above_half_its_cores(monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    assert resources.busy() is busy
