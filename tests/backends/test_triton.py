"""The Triton backend; tests/kernels tests its kernels."""

from __future__ import annotations

import os
from typing import Any

import pytest

from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import load
from attnbench.backends import triton as backend
from attnbench.backends.triton import MaskForm
from attnbench.records.case import Case

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


def case(mode: Mode = Mode.FWD, **fields: Any) -> Case:
    return Case(problem=Problem(**{"seq_q": 64, **fields}), backend="triton", mode=mode)


@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "causal+window:7"},
        {"mask": "prefix:7"},
        {"mask": "causal+document:3"},
        {"mask": "causal+padding:0.2"},
        {"batch": 2, "requests": "q64_q3"},
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
        "backward of fp8_e4m3 unsupported"
    ]


def test_tf32_runs_only_on_a_gpu() -> None:
    assert load("triton").objections(case(dtype="tf32"), "cuda", (9, 0)) == []
    assert load("triton").objections(case(dtype="tf32"), "cpu") == [
        "tf32 unsupported (supported: fp32, fp16, bf16, fp8_e4m3)"
    ]


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
    ("fields", "form"),
    [
        ({}, MaskForm.BAND),
        ({"mask": "causal+window:7"}, MaskForm.BAND),
        ({"mask": "prefix:7"}, MaskForm.ROWS),
        ({"mask": "document:3"}, MaskForm.ROWS),
        ({"batch": 2, "requests": "q64_q3"}, MaskForm.ROWS),
        ({"mask": "causal+blocksparse:0.5:16"}, MaskForm.BLOCKS),
        ({"mask": "bigbird:16"}, MaskForm.BLOCKS),
        ({"mask": "bigbird:8"}, MaskForm.TENSOR),
        ({"mask": "blocksparse:0.5:48"}, MaskForm.TENSOR),
        ({"mask": "blocksparse:0.5:16+padding:0.2"}, MaskForm.TENSOR),
        ({"mask": "dense+causal"}, MaskForm.TENSOR),
        ({"mask": "dilated:2"}, MaskForm.TENSOR),
        ({"mask": "blockdiffusion:16"}, MaskForm.BLOCKS),
        ({"mask": "sta:1:4:shape=8x8"}, MaskForm.BLOCKS),
        ({"mask": "sta:1:4x2:shape=8x8"}, MaskForm.TENSOR),
        ({"mask": "natten:5:shape=8x8"}, MaskForm.TENSOR),
    ],
    ids=str,
)
def test_a_mask_is_passed_in_the_cheapest_form(fields: dict[str, Any], form: MaskForm) -> None:
    assert backend.mask_form(Problem(seq_q=64, **fields)) is form


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
        ("descriptors", Mode.FWD, {"dtype": "fp32"}, "fp32 unsupported"),
        ("descriptors", Mode.FWD, {"mask": "blocksparse:0.5"}, "a list of blocks is walked by pointers"),
        ("descriptors", Mode.FWD, {"head_dim": 20}, "head_dim 20: a row is not a multiple of 16 bytes"),
        ("portable", Mode.FWD, {"seq_q": 1, "page_size": 16, "seq_kv": 64}, "only the decode kernel reads pages"),
        ("hopper", Mode.FWD, {"dropout": 0.1}, "dropout"),
        ("hopper", Mode.FWD, {"score": Score(softcap=30.0)}, "soft cap on the logits unsupported"),
        ("hopper", Mode.BWD, {"mask": "causal+document:3"}, "its backward kernels take only causal and window"),
        (
            "hopper",
            Mode.FWD,
            {"mask": "causal+document:3", "dtype": "fp8_e4m3"},
            "for 8-bit inputs its kernels take only causal",
        ),
        ("hopper", Mode.BWD, {"head_dim": 256}, "its backward kernels take head_dim up to 128"),
    ],
)
def test_a_named_path_is_not_replaced_by_another(path: str, mode: Mode, fields: dict[str, Any], reason: str) -> None:
    assert any(reason in found for found in named(path, mode, **fields)), named(path, mode, **fields)


BIASES = "biases in a batch of requests unsupported, but for ALiBi in a forward pass with causal and window"
REQUESTS = {"requests": "q20_2q1s64", "batch": 3, "seq_q": 20, "seq_kv": 64}


@pytest.mark.parametrize("page_size", [0, 1, 16, 256])
def test_a_batch_of_requests_runs_forward(page_size: int) -> None:
    fields = REQUESTS | {"page_size": page_size, "mask": "causal+window:7", "returns": Returns.LSE}
    assert load("triton").objections(case(**fields), "cpu") == []
    assert load("triton").objections(case(**fields), "cuda", (8, 0)) == []


@pytest.mark.parametrize(
    ("mode", "fields", "reason"),
    [
        (Mode.FWD, {"page_size": 512}, "page_size 512 is over 256"),
        (Mode.FWD, {"mask": "prefix:4", "page_size": 16}, "prefix in a batch of requests unsupported"),
        (Mode.FWD, {"score": Score(bias="t5")}, BIASES),
        (Mode.FWD_BWD, {"score": Score(bias="alibi")}, BIASES),
    ],
)
def test_a_batch_of_requests_is_refused_with_a_reason(mode: Mode, fields: dict[str, Any], reason: str) -> None:
    assert load("triton").objections(case(mode, **REQUESTS, **fields), "cpu") == [reason]


LATENT = {"seq_q": 2, "kv": "latent:512+64", "head_dim": 192, "head_dim_v": 128}


@pytest.mark.parametrize(
    "fields", [{}, {"page_size": 16}, {"mask": "causal"}, {"requests": "q2s64", "seq_kv": 64}], ids=str
)
def test_a_latent_cache_is_read(fields: dict[str, Any]) -> None:
    assert load("triton").objections(case(**LATENT | fields), "cpu") == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"seq_q": 17}, "the decode kernel, which reads a latent cache, takes at most 16 queries"),
        ({"kv": "latent:768+64"}, "kv=latent:768+64 is over 512+64"),
        ({"mask": "prefix:1"}, "prefix over a latent cache unsupported"),
    ],
)
def test_a_latent_cache_is_refused_with_a_reason(fields: dict[str, Any], reason: str) -> None:
    assert load("triton").objections(case(**LATENT | fields), "cpu") == [reason]


@pytest.mark.parametrize("fields", [{}, {"mask": "prefix:4"}, {"dropout": 0.1}, {"mask": "dilated:2"}], ids=str)
@pytest.mark.parametrize("mode", Mode)
def test_packed_requests_run_in_every_mode_and_on_named_paths(mode: Mode, fields: dict[str, Any]) -> None:
    assert load("triton").objections(case(mode, **REQUESTS | fields), "cpu") == []
    assert named("portable", mode, **REQUESTS, **fields) == []


def test_the_path_for_hopper_runs_only_on_hopper() -> None:
    one = Case(problem=Problem(seq_q=64, head_dim=64, dtype="bf16"), backend="triton:hopper", mode=Mode.FWD)
    for capability in ((8, 0), (10, 0), (12, 0)):
        assert load(one.backend).objections(one, "cuda", capability)
    assert load(one.backend).objections(one, "cpu") == ["runs on cuda, not on cpu"]
