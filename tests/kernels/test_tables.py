from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.kernels.tables import COLUMNS, Kernel, TileConfig, read, shipped, users, users_file, write
from attnbench.kernels.tiling import SHARED_BYTES

HEAD = ",".join(COLUMNS)


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table = {
        ("forward", "sm_90", "half", "128", "any"): TileConfig(
            block_q=128, block_kv=64, warps=8, stages=3, source="compiled"
        ),
        ("decode", "sm_90", "fp8", "64", "none"): TileConfig(
            block_q=64, block_kv=128, warps=4, stages=2, source="measured, x"
        ),
    }
    write(tmp_path / "new" / "tiles.csv", table)
    assert read(tmp_path / "new" / "tiles.csv") == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel,arch\n", "the first line must be kernel,arch,dtype,width,mask,block_q"),
        (f"{HEAD}\nforward,sm_90,half,64,any,96,64,4,2,x\n", "line 2: block_q='96': must be a power of two"),
        (f"{HEAD}\nforward,sm_90,half,64,any,64,64,4,0,x\n", "line 2: stages='0': must be a number"),
        (f"{HEAD}\nforward,sm_90,half,64,any,64,64\n", "line 2: warps=None"),
        (f"{HEAD}\nforward,sm_90,half,64,any,64,-1,4,2,x\n", "line 2: block_kv='-1'"),
        (f"{HEAD}\nforwards,sm_90,half,64,any,64,64,4,2,x\n", "line 2: kernel='forwards': must be one of"),
        (f"{HEAD}\nforward,sm_90,half,64,all,64,64,4,2,x\n", "line 2: mask='all': must be one of"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tiles.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_the_users_table_is_empty_where_there_is_none() -> None:
    assert users() == {}


def test_the_users_table_lies_in_the_configuration() -> None:
    config = TileConfig(block_q=32, block_kv=32, warps=4, stages=1, source="measured")
    write(users_file(), {("forward", "sm_90", "half", "64", "any"): config})
    assert users() == {("forward", "sm_90", "half", "64", "any"): config}


NEEDED = [
    (kernel.value, arch, dtype, width, mask)
    for kernel in Kernel
    for arch in SHARED_BYTES
    for dtype in ("half", "fp32", "fp8")
    for width in ("64", "128", "256", *(("512",) if kernel == "decode" else ()))  # 512 of a latent cache
    for mask in ("some", "none")
    if not kernel.endswith(("tma", "hopper"))
    and (dtype != "fp8" or (arch not in ("sm_80", "gfx942") and not kernel.startswith("backward")))
]


@pytest.mark.parametrize("key", NEEDED, ids="-".join)
def test_every_gpu_has_a_configuration_of_every_kernel(key: tuple[str, ...]) -> None:
    assert key in shipped() or (*key[:4], "any") in shipped()


def test_hopper_has_a_configuration_of_its_kernels() -> None:
    widths = {"forward_hopper": (64, 128, 256), "backward_kv_hopper": (64, 128), "backward_q_hopper": (64, 128)}
    for kernel, each in widths.items():
        assert all((kernel, "sm_90", "half", str(width), "any") in shipped() for width in each)
    assert {key[1] for key in shipped() if key[0].endswith("hopper")} == {"sm_90"}


DESCRIBED = [
    (kernel, arch, dtype, width)
    for kernel in ("forward_tma", "backward_kv_tma", "backward_q_tma")
    for arch in ("sm_90", "sm_100")
    for dtype in (("half", "fp8") if kernel == "forward_tma" else ("half",))
    for width in ("64", "128", "256")
] + [("forward_tma", "sm_120", dtype, width) for dtype in ("half", "fp8") for width in ("64", "128")]


@pytest.mark.parametrize("key", DESCRIBED, ids="-".join)
@pytest.mark.parametrize("mask", ["some", "none"])
def test_gpus_with_a_tensor_memory_accelerator_have_a_configuration_of_it(key: tuple[str, ...], mask: str) -> None:
    assert (*key, mask) in shipped() or (*key, "any") in shipped()


def test_every_entry_is_for_a_gpu_that_can_run_it() -> None:
    kernels_of = {arch: {key[0] for key in shipped() if key[1] == arch} for arch in {key[1] for key in shipped()}}
    assert kernels_of.keys() == SHARED_BYTES.keys()
    assert all(not kernel.endswith("tma") for arch in ("sm_80", "sm_86", "gfx942") for kernel in kernels_of[arch])
    of_8_bits = {key[:2] for key in shipped() if key[2] == "fp8"}
    assert {arch for _, arch in of_8_bits} <= {"sm_86", "sm_90", "sm_100", "sm_120"}
    assert {kernel for kernel, _ in of_8_bits} <= {"forward", "forward_tma", "forward_hopper", "decode"}


def test_no_entry_stands_beside_one_for_any_mask() -> None:
    doubled = [key for key in shipped() if key[4] != "any" and (*key[:4], "any") in shipped()]
    assert doubled == []
