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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS / file)]
    done = subprocess.run([*command, *options], env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout[-8000:] + done.stderr[-2000:]


def test_the_kernels_are_right_in_the_interpreter(tmp_path: Path) -> None:
    assert not run_apart("interpreted/kernels.py", tmp_path, interpreted=True)


def test_the_usual_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    assert not run_apart("compiled/kernels.py", tmp_path, "-m", "not slow", interpreted=False)


@pytest.mark.slow
def test_every_configuration_compiles(tmp_path: Path) -> None:
    assert not run_apart("compiled/kernels.py", tmp_path, "-m", "slow", interpreted=False)


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


def test_a_backward_pass_is_refused() -> None:
    assert load("triton").objections(case(mode=Mode.BWD), "cuda", (9, 0)) == ["no bwd (forward only)"]


def test_tf32_runs_on_a_gpu_alone() -> None:
    assert load("triton").objections(case(dtype="tf32"), "cuda", (9, 0)) == []
    assert load("triton").objections(case(dtype="tf32"), "cpu") == ["no tf32 (takes fp32, fp16, bf16)"]


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
    ("fields", "listed"),
    [
        ({}, False),
        ({"mask": "causal+window:7"}, False),
        ({"mask": "prefix:7"}, True),
        ({"mask": "document:3"}, True),
        ({"batch": 2, "lengths": (64, 3)}, True),
    ],
    ids=str,
)
def test_keys_are_listed_where_the_mask_is_no_band(fields: dict[str, Any], listed: bool) -> None:
    assert backend.needs_intervals(Problem(seq_q=64, **fields)) is listed


def test_building_the_intervals_is_time_apart() -> None:
    prepared = load("triton").prepare(case(mask="document:3"), "cpu")
    assert prepared.seconds.keys() == {"mask_build"}


uninterpreted = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="TRITON_INTERPRET is set here")


@uninterpreted
def test_the_probe_says_how_to_run_on_a_cpu() -> None:
    assert "TRITON_INTERPRET=1" in (backend.probe("cpu") or "")


def tokens(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.zeros(*shape, dtype=dtype)


Q = tokens(2, 4, 8, 16)
BOUND = tokens(2, 8, dtype=torch.int32)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((Q[0], Q, Q), {}, r"q has shape \[4, 8, 16\]"),
        ((Q.double(), Q, Q), {}, "q is torch.float64"),
        ((Q, Q.half(), Q), {}, "k is torch.float16 on cpu: must be as q, torch.float32"),
        ((Q, tokens(2, 3, 8, 16), tokens(2, 3, 8, 16)), {}, "k has 3 heads: the 4 heads of q"),
        ((Q, tokens(2, 4, 8, 32), Q), {}, r"k has shape \[2, 4, 8, 32\]"),
        ((Q, Q, tokens(2, 4, 9, 16)), {}, r"v has shape \[2, 4, 9, 16\]"),
        ((tokens(1, 1, 8, 300),) * 3, {}, "q has head_dim 300: must be 1 to 256"),
        ((Q, Q, Q), {"window": -5}, "window=-5"),
        ((Q, Q, Q), {"window": (1, 2, 3)}, r"window=\(1, 2, 3\)"),
        ((Q, Q, Q), {"window": 1.5}, "window=1.5"),
        ((Q, Q, Q), {"scale": float("nan")}, "scale=nan: must be a finite number"),
        ((Q, Q, Q), {"softcap": -1.0}, "softcap=-1.0: must be a positive number"),
        ((Q, Q, Q), {"precision": "tf16"}, "precision='tf16': must be one of ieee, tf32"),
        ((Q, Q, Q), {"intervals": (tokens(8), tokens(8))}, r"intervals: low is torch.float32 \[8\]"),
        ((Q, Q, Q), {"intervals": (BOUND, BOUND[:1])}, r"intervals: \[2, 8\] .* \[1, 8\] .*: must be of one shape"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(given: Any, options: dict[str, Any], message: str) -> None:
    from attnbench import kernels

    with pytest.raises(ValueError, match=message):
        kernels.attention(*given, **options)


@uninterpreted
def test_cpu_tensors_are_refused_outside_the_interpreter() -> None:
    from attnbench import kernels

    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        kernels.attention(Q, Q, Q)
