from __future__ import annotations

import hashlib
import platform

import pytest

from attnbench.machine import hardware, resources
from attnbench.records.arm import Device, parse_device


def gpu(index: int, uuid: str) -> hardware.Gpu:
    return hardware.Gpu(
        index=index,
        name=f"GPU {index}",
        memory_bytes=1,
        capability=(9, 0),
        driver="580",
        uuid_hash=hashlib.sha256(uuid.encode()).hexdigest()[:12],
    )


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
    installed = tuple(gpu(index, f"GPU-{letter * 2}") for index, letter in enumerate("abc"))
    seen = hardware.visible(installed, variable)
    assert [gpu.name for gpu in seen] == names
    assert [gpu.index for gpu in seen] == list(range(len(names)))


def test_a_refused_gpu_has_a_reason() -> None:
    if hardware.gpus():
        pytest.skip("this machine has a GPU")
    objection = hardware.check_device(parse_device("cuda:0"))
    assert objection is None or hardware.gpu_objection() in objection


def test_too_many_threads_are_refused_with_the_number_of_cores() -> None:
    objection = hardware.check_device(parse_device("cpu:threads=100000"))
    assert objection
    assert f"{len(resources.available_cores())} cores" in objection


def test_cores_that_attnbench_cannot_use_are_refused_with_those_it_can() -> None:
    here = resources.available_cores()
    assert hardware.check_device(Device(kind="cpu", cores=here)) is None
    objection = hardware.check_device(Device(kind="cpu", cores=(*here, 9999)))
    assert objection == f"no core 9999 for attnbench to use; there are {', '.join(map(str, here))}"


def test_listed_devices_are_available() -> None:
    assert [name for name in hardware.devices() if hardware.check_device(parse_device(name))] == []


def test_a_missing_instruction_set_is_refused_with_the_available_ones() -> None:
    missing = [isa for isa in ("avx2", "avx512", "amx") if f"cpu:isa={isa}" not in hardware.devices()]
    if not missing:
        pytest.skip("this CPU has them all")
    objection = hardware.check_device(Device(kind="cpu", isa=missing[-1])) or ""
    assert "it has default" in objection or platform.machine() in objection
