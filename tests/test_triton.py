"""The Triton backend. Its kernels are tested by tests/interpreted and tests/compiled, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnbench.attention.problem import Dtype, Mode, Problem, Returns
from attnbench.attention.scores import Score
from attnbench.backends import load
from attnbench.backends import triton as backend
from attnbench.backends.triton import Told
from attnbench.case import Case

TESTS = Path(__file__).parent

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


def run_apart(file: str, tmp_path: Path, *options: str, interpreted: bool) -> str:
    """Run a file of tests in a fresh process, where Triton is imported anew; empty if all of them pass."""
    foreign = ("TRITON_INTERPRET", "PYTEST_ADDOPTS")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_INTERPRET": "1"} if interpreted else {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / file)]
    done = subprocess.run([*command, *options], env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", ["cached", "mechanisms", "serving", "together", "wide"])
def test_the_kernels_are_right_in_the_interpreter(tmp_path: Path, file: str) -> None:
    assert not run_apart(f"interpreted/{file}.py", tmp_path, interpreted=True)


def test_the_usual_kernels_compile_for_every_kind_of_gpu(tmp_path: Path) -> None:
    assert not run_apart("compiled/kernels.py", tmp_path, "-m", "not slow", interpreted=False)


@pytest.mark.slow
def test_every_configuration_compiles(tmp_path: Path) -> None:
    # On all cores: nothing else runs beside the slow tests.
    assert not run_apart(
        "compiled/kernels.py", tmp_path, "-m", "slow", "-n", "auto", "--dist", "loadgroup", interpreted=False
    )


def case(mode: Mode = Mode.FWD, **fields: Any) -> Case:
    return Case(problem=Problem(**{"seq_q": 64, **fields}), backend="triton", mode=mode)


@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "causal+window:7"},
        {"mask": "prefix:7"},
        {"mask": "causal+document:3"},
        {"mask": "causal+padding:0.2"},
        {"batch": 2, "lengths": (64, 3)},
        {"seq_kv": 20, "mask": "causal"},
        {"heads": 4, "kv_heads": 2, "head_dim": 24, "head_dim_v": 40},
        {"score": Score(scale=0.2, softcap=30.0), "returns": Returns.LSE, "dtype": "bf16"},
    ],
    ids=str,
)
def test_every_mask_and_score_runs_on_both_devices(fields: dict[str, Any]) -> None:
    assert load("triton").objections(case(**fields), "cpu") == []
    assert load("triton").objections(case(**fields), "cuda", (9, 0)) == []


@pytest.mark.parametrize("mode", Mode)
def test_every_mode_runs_on_both_devices(mode: Mode) -> None:
    assert load("triton").objections(case(mode=mode), "cpu") == []
    assert load("triton").objections(case(mode=mode), "cuda", (8, 0)) == []


def test_fp8_runs_forward_on_gpus_that_multiply_it() -> None:
    assert load("triton").objections(case(dtype="fp8_e4m3"), "cuda", (8, 9)) == []
    assert load("triton").objections(case(dtype="fp8_e4m3"), "cuda", (8, 0)) == [
        "needs compute capability 8.9 for fp8_e4m3, this device has 8.0"
    ]
    assert load("triton").objections(case(dtype="fp8_e4m3", mode=Mode.BWD), "cuda", (9, 0)) == [
        "no bwd of fp8_e4m3 (forward only)"
    ]


def test_tf32_runs_on_a_gpu_alone() -> None:
    assert load("triton").objections(case(dtype="tf32"), "cuda", (9, 0)) == []
    assert load("triton").objections(case(dtype="tf32"), "cpu") == ["no tf32 (takes fp32, fp16, bf16, fp8_e4m3)"]


def test_a_gpu_older_than_ampere_is_refused() -> None:
    assert load("triton").objections(case(), "cuda", (7, 5)) == ["needs compute capability 8.0, this device has 7.5"]


def test_times_on_a_cpu_are_declared_meaningless() -> None:
    assert "interpreted" in load("triton").untimed


def test_arguments_of_a_plain_problem() -> None:
    assert backend.arguments(Problem(seq_q=64, head_dim=16)) == {
        "causal": False,
        "window": None,
        "scale": 0.25,
        "softcap": None,
        "precision": "ieee",
        "return_lse": False,
    }


def test_arguments_of_a_problem_with_everything() -> None:
    problem = Problem(
        seq_q=64, mask="causal+window:7", dtype=Dtype.TF32, score=Score(scale=0.5, softcap=30.0), returns=Returns.LSE
    )
    assert backend.arguments(problem) == {
        "causal": True,
        "window": (7, 0),
        "scale": 0.5,
        "softcap": 30.0,
        "precision": "tf32",
        "return_lse": True,
    }


@pytest.mark.parametrize(
    ("fields", "way"),
    [
        ({}, Told.BAND),
        ({"mask": "causal+window:7"}, Told.BAND),
        ({"mask": "prefix:7"}, Told.ROWS),
        ({"mask": "document:3"}, Told.ROWS),
        ({"batch": 2, "lengths": (64, 3)}, Told.ROWS),
        ({"mask": "causal+blocksparse:0.5:16"}, Told.BLOCKS),
        ({"mask": "bigbird:16"}, Told.BLOCKS),
        ({"mask": "bigbird:8"}, Told.TENSOR),
        ({"mask": "blocksparse:0.5:48"}, Told.TENSOR),
        ({"mask": "blocksparse:0.5:16+padding:0.2"}, Told.TENSOR),
        ({"mask": "dense+causal"}, Told.TENSOR),
        ({"mask": "dilated:2"}, Told.TENSOR),
    ],
    ids=str,
)
def test_a_mask_is_told_in_the_leanest_way(fields: dict[str, Any], way: Told) -> None:
    assert backend.told(Problem(seq_q=64, **fields)) is way


def test_building_the_intervals_is_time_apart() -> None:
    prepared = load("triton").prepare(case(mask="document:3"), "cpu")
    assert prepared.seconds.keys() == {"mask_build"}


uninterpreted = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="TRITON_INTERPRET is set here")


@uninterpreted
def test_the_probe_says_how_to_run_on_a_cpu() -> None:
    assert "TRITON_INTERPRET=1" in (backend.probe("cpu") or "")


# -- paths by name --------------------------------------------------------------------------------------------------


def named(path: str, mode: Mode = Mode.FWD, **fields: Any) -> list[str]:
    kind, capability = ("cuda", (9, 0)) if path == "hopper" else ("cpu", (0, 0))
    shape = {"seq_q": 64, "head_dim": 64, "dtype": "bf16"}
    one = Case(problem=Problem(**{**shape, **fields}), backend=f"triton:{path}", mode=mode)
    return load(one.backend).objections(one, kind, capability)


@pytest.mark.parametrize("path", ["portable", "descriptors", "hopper"])
@pytest.mark.parametrize("mode", Mode)
def test_a_path_can_be_named(path: str, mode: Mode) -> None:
    assert named(path, mode) == []
    assert named(path, mode, mask="causal+window:7", heads=4, kv_heads=2, returns=Returns.LSE) == []
    assert named(path, mask="causal+document:3") == []
    if path == "hopper":
        assert named(path, mask="causal", dtype="fp8_e4m3") == []


@pytest.mark.parametrize(
    ("path", "mode", "fields", "reason"),
    [
        ("descriptors", Mode.FWD, {"dtype": "fp32"}, "no fp32"),
        ("descriptors", Mode.FWD, {"mask": "blocksparse:0.5"}, "a list of blocks is walked by pointers"),
        ("descriptors", Mode.FWD, {"head_dim": 20}, "head_dim 20: a row is no multiple of 16 bytes"),
        ("portable", Mode.FWD, {"seq_q": 1, "page_size": 16, "seq_kv": 64}, "pages are read by the decode kernel"),
        ("hopper", Mode.FWD, {"dropout": 0.1}, "dropout"),
        ("hopper", Mode.FWD, {"score": Score(softcap=30.0)}, "no soft cap"),
        ("hopper", Mode.BWD, {"mask": "causal+document:3"}, "its backward kernels take causal and window alone"),
        ("hopper", Mode.FWD, {"mask": "causal+document:3", "dtype": "fp8_e4m3"}, "of 8 bits its kernels take causal"),
        ("hopper", Mode.BWD, {"head_dim": 256}, "its backward kernels take head_dim up to 128"),
    ],
)
def test_a_path_that_is_named_gives_way_to_no_other(path: str, mode: Mode, fields: dict[str, Any], reason: str) -> None:
    assert any(reason in found for found in named(path, mode, **fields)), named(path, mode, **fields)


def test_the_path_for_hopper_is_for_hopper_alone() -> None:
    one = Case(problem=Problem(seq_q=64, head_dim=64, dtype="bf16"), backend="triton:hopper", mode=Mode.FWD)
    for capability in ((8, 0), (10, 0), (12, 0)):
        assert load(one.backend).objections(one, "cuda", capability)
    assert load(one.backend).objections(one, "cpu") == ["runs on cuda, not on cpu"]
