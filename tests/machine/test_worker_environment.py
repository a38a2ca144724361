from __future__ import annotations

import platform

import pytest

from attnbench.machine import worker_environment
from attnbench.records.arm import Device, parse_device
from tests.machine.samples import in_child

CPU = Device(kind="cpu")


def test_threads_of_an_arm_are_those_of_its_device() -> None:
    chosen = worker_environment.arm_environment(parse_device("cpu:threads=3"))
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
    chosen = worker_environment.arm_environment(Device(kind="cpu", isa=isa))
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    assert tuple(map(chosen.get, names)) == (aten, onednn, mkl)


def test_a_worker_sees_one_gpu_by_the_users_name_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    chosen = worker_environment.arm_environment(parse_device("cuda:1"))
    assert (chosen["CUDA_VISIBLE_DEVICES"], chosen["CUDA_DEVICE_ORDER"]) == ("GPU-abc", "PCI_BUS_ID")


def test_a_worker_on_a_cpu_keeps_the_users_visible_gpus() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment.arm_environment(CPU)


LARGE = """
import resource, threading
import numpy as np  # its large arrays come from malloc, as torch's do

def call():
    ones = np.ones(10_000_000)
    return ones + 1

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
    faults = int(in_child(LARGE.format(run=run), **worker_environment.arm_environment(parse_device("cpu:threads=1"))))
    assert faults < 64
