from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from attnbench import host
from attnbench.arm import Device, parse_device

CPU = Device(kind="cpu")
LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
V2 = "30 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def in_child(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    return done.stdout.strip()


def gpu(index: int, uuid: str) -> host.Gpu:
    return host.Gpu(
        index=index,
        name=f"GPU {index}",
        memory_bytes=1,
        capability=(9, 0),
        driver="580",
        uuid_hash=hashlib.sha256(uuid.encode()).hexdigest()[:12],
    )


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
    assert host.whole_cores((0, 1, 2, 3), tree(tmp_path, files)) == cores


def test_without_a_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert host.whole_cores((1, 5), tmp_path) == (1, 5)


@LINUX
def test_affinity_bounds_cores_and_threads() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from attnbench import host; print(len(host.available_cores()), host.default_threads())"
    )
    assert in_child(code) == "1 1"


def test_default_leaves_a_core_to_the_others_where_it_can() -> None:
    assert host.default_threads() == max(1, len(host.available_cores()) - 1)


def test_a_worker_gets_the_last_cores() -> None:
    assert host.cores_for(parse_device("cpu:threads=1")) == host.available_cores()[-1:]


def test_cores_of_a_worker_stay_the_same_once_it_is_pinned() -> None:
    code = (
        "import os; from attnbench import host; from attnbench.arm import parse_device as device;"
        "first = host.cores_for(device('cpu:threads=1')); os.sched_setaffinity(0, first);"
        "print(first == host.cores_for(device('cpu:threads=1')))"
    )
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    assert in_child(code) == "True"


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
    assert host.container_memory(root) == (1000, 450)


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
    assert host.container_memory(root) == (500, 100)


def test_memory_limit_of_version_1_is_found(tmp_path: Path) -> None:
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
    assert host.container_memory(root) == (2048, 100)


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
    assert host.container_memory(root) is None


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", None)])
def test_cpu_quota_of_version_2(tmp_path: Path, text: str, quota: float | None) -> None:
    files = {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2, "sys/fs/cgroup/cpu.max": text}
    assert host.cpu_quota(tree(tmp_path, files)) == quota


@pytest.mark.parametrize(("text", "quota"), [("50000", 0.5), ("-1", None)])
def test_cpu_quota_of_version_1(tmp_path: Path, text: str, quota: float | None) -> None:
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/",
        "proc/self/mountinfo": "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": text,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert host.cpu_quota(tree(tmp_path, files)) == quota


def test_a_path_outside_of_the_mount_means_its_top(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../../elsewhere", "proc/self/mountinfo": V2}
    assert list(host.cgroups("memory", tree(tmp_path, files))) == [tmp_path / "sys/fs/cgroup"]


def test_odd_lines_of_proc_do_no_harm(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "nonsense\n\n0::/", "proc/self/mountinfo": f"\nnonsense\n1 2 -\n{V2}"}
    assert list(host.cgroups("cpu", tree(tmp_path, files))) == [tmp_path / "sys/fs/cgroup"]


def test_a_machine_without_proc_has_no_limits(tmp_path: Path) -> None:
    assert (host.container_memory(tmp_path), host.cpu_quota(tmp_path)) == (None, None)


def test_free_memory_is_no_more_than_the_kernel_says_is_there() -> None:
    path = Path("/proc/meminfo")
    if not path.exists():
        pytest.skip("no /proc/meminfo on this system")
    total = next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < host.memory_free_bytes() < total


@pytest.mark.parametrize(("load", "busy"), [(0.0, False), (1000.0, True)])
def test_a_machine_is_busy_above_half_its_cores(monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    assert host.busy() is busy


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        (None, ["GPU 0", "GPU 1", "GPU 2"]),
        ("2,0", ["GPU 2", "GPU 0"]),
        ("GPU-bb, 0", ["GPU 1", "GPU 0"]),
        ("1,7,0", ["GPU 1"]),
        ("", []),
        ("-1", []),
    ],
)
def test_visible_gpus_are_those_that_cuda_would_number(variable: str | None, names: list[str]) -> None:
    found = tuple(gpu(index, f"GPU-{letter * 2}") for index, letter in enumerate("abc"))
    seen = host.visible(found, variable)
    assert [one.name for one in seen] == names
    assert [one.index for one in seen] == list(range(len(names)))


def test_without_a_gpu_the_reason_is_told() -> None:
    if host.gpus():
        pytest.skip("this machine has a GPU")
    objection = host.check_device(parse_device("cuda:0"))
    assert objection is None or host.gpu_objection() in objection


def test_too_many_threads_are_refused_with_the_number_of_cores() -> None:
    objection = host.check_device(parse_device("cpu:threads=100000"))
    assert objection
    assert f"{len(host.available_cores())} cores" in objection


def test_what_is_listed_is_there() -> None:
    assert [name for name in host.devices() if host.check_device(parse_device(name))] == []


def test_an_instruction_set_that_is_not_there_is_refused_with_those_that_are() -> None:
    missing = [isa for isa in ("avx2", "avx512", "amx") if f"cpu:isa={isa}" not in host.devices()]
    if not missing:
        pytest.skip("this CPU has them all")
    objection = host.check_device(Device(kind="cpu", isa=missing[-1])) or ""
    assert "it has default" in objection or platform.machine() in objection


def test_threads_of_an_arm_are_those_of_its_device() -> None:
    chosen = host.arm_environment(parse_device("cpu:threads=3"))
    assert {chosen[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")} == {"3"}


@pytest.mark.parametrize(
    ("isa", "aten", "onednn", "mkl"),
    [
        ("avx2", "avx2", "AVX2", "AVX2"),
        ("avx512", "avx512", "AVX512_CORE_FP16", "AVX512"),
        ("amx", "avx512", "AVX512_CORE_AMX", None),
        ("", None, None, None),
    ],
)
def test_an_instruction_set_bounds_every_library(
    isa: str, aten: str | None, onednn: str | None, mkl: str | None
) -> None:
    chosen = host.arm_environment(Device(kind="cpu", isa=isa))
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    assert tuple(map(chosen.get, names)) == (aten, onednn, mkl)


def test_a_worker_sees_one_gpu_by_the_name_that_the_user_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    chosen = host.arm_environment(parse_device("cuda:1"))
    assert (chosen["CUDA_VISIBLE_DEVICES"], chosen["CUDA_DEVICE_ORDER"]) == ("GPU-abc", "PCI_BUS_ID")


def test_a_worker_on_a_cpu_keeps_what_the_user_said_of_gpus() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in host.arm_environment(CPU)


LARGE = """
import resource, threading
import numpy as np  # its large arrays come from malloc, as torch's do

def call():
    one = np.ones(10_000_000)
    two = one + 1
    return two

def faults():
    for _ in range(8): call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4): call()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)

{run}
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these variables are glibc's")
@pytest.mark.parametrize(
    "run",
    ["faults()", "thread = threading.Thread(target=faults); thread.start(); thread.join()"],
    ids=["main", "thread"],
)
def test_a_settled_worker_asks_the_kernel_for_no_more_pages(run: str) -> None:
    """80 MB arrays; with the defaults of glibc each call costs over a thousand faults."""
    faults = int(in_child(LARGE.format(run=run), **host.arm_environment(parse_device("cpu:threads=1"))))
    assert faults < 64


def test_the_fingerprint_does_not_change_between_processes() -> None:
    code = "from attnbench import host; print(host.fingerprint()[0])"
    assert in_child(code, PYTHONHASHSEED="1") == in_child(code, PYTHONHASHSEED="2") == host.fingerprint()[0]


def test_the_machine_card_names_neither_user_nor_host() -> None:
    words = set(json.dumps(msgspec.to_builtins(host.machine_card())).replace('"', " ").split())
    assert words.isdisjoint({getpass.getuser(), socket.gethostname()})


def test_host_facts_load_no_heavy_package() -> None:
    code = (
        "import sys; from attnbench import host; host.packages(); host.fingerprint(); host.devices();"
        "print([name for name in ('torch', 'triton', 'pandas', 'scipy') if name in sys.modules])"
    )
    assert in_child(code) == "[]"


def test_versions_are_those_of_the_packages_that_import() -> None:
    import numpy as np

    assert host.packages()["numpy"] == np.__version__


def test_a_preloaded_allocator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert host.allocator() == "jemalloc"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_commit_says_whether_files_were_changed_since(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    clean = host.commit(tmp_path)
    (tmp_path / "file").write_text("two")
    head = git("rev-parse", "HEAD")
    assert (clean, host.commit(tmp_path)) == ({"commit": head, "dirty": False}, {"commit": head, "dirty": True})


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert host.commit(tmp_path) is None
