"""The backends of torch on a CPU, against float64, wherever they say that they run."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from attnbench import backends
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import ProblemError
from attnbench.records.case import Case
from tests import oracle

MASKS = ("none", "causal", "window:5", "causal+window:7", "prefix:9", "padding:0.3", "document:3", "causal+padding:0.4")
PATTERNS = (
    "dilated:3", "causal+dilated:2+window:9", "strided:5", "blocksparse:0.4:8", "causal+blocksparse:0.5:8",
    "longformer:6:2", "bigbird:8:random=1", "graph:0.2", "dense+causal", "blocksparse:0.4:8+padding:0.3",
)  # fmt: skip
SHAPES = (
    {"seq_q": 37, "seq_kv": 61},
    {"seq_q": 61, "seq_kv": 37},
    {"seq_q": 48},
    {"seq_q": 1, "seq_kv": 33},
    {"seq_q": 29, "head_dim": 60},
    {"seq_q": 40, "head_dim": 48, "head_dim_v": 32},
    {"seq_q": 20, "seq_kv": 30, "kv_heads": 2},
)
# Patterns that determine the lengths.
FITTED = {
    "tree:0-0-1-1-3-4-4": ({"seq_q": 7, "seq_kv": 40, "kv_heads": 2}, {"seq_q": 7, "seq_kv": 70}),
    "blockdiffusion:4": ({"seq_q": 40}, {"seq_q": 64, "head_dim": 60}),
    "natten:5:2:3": ({"seq_q": 37}, {"seq_q": 48, "kv_heads": 2}),
    "natten:4x3:3x2:1x2:8x6": ({"seq_q": 48}, {"seq_q": 48, "head_dim": 48, "kv_heads": 2}),
    "sta:2x1:4:shape=12x4+padding:0.3": ({"seq_q": 48}, {"seq_q": 48, "kv_heads": 1}),
}
PATTERNS += tuple(FITTED)


def problems(mask: str, dtype: str, **more):
    for shape in FITTED.get(mask, SHAPES):
        try:
            yield Problem(batch=2, heads=4, mask=mask, dtype=dtype, **shape, **more)
        except ProblemError:
            continue


NAMES = ("naive", "sdpa", "sdpa:math", "sdpa:flash", "flex:eager", "gather")


@lru_cache(maxsize=2 * len(SHAPES))
def exact_output(problem: Problem) -> torch.Tensor:
    """Of the drawn q, k and v, in float64: the backends of a problem follow one another."""
    return oracle.attend(problem, *oracle.drawn(problem)[0])[0]


@lru_cache(maxsize=2 * len(SHAPES))
def exact_gradients(problem: Problem) -> tuple[torch.Tensor, ...]:
    """Of q, k and v, in float64."""
    qkv, dout = oracle.drawn(problem)
    exact = [tensor.double().requires_grad_() for tensor in qkv]
    return torch.autograd.grad(oracle.attend(problem, *exact)[0], exact, dout.double())


@pytest.mark.parametrize(("mask", "dtype", "name"), oracle.forward_grid(MASKS + PATTERNS, NAMES))
def test_forward_equals_float64(mask, dtype, name, request):
    backend = backends.load(name)
    # Of flex, a shape of each term alone and of two together is traced; all shapes of all masks in `make test-slow`.
    ran, whole, some = 0, oracle.whole_grid(request), "+" not in mask or mask == "causal+window:7"
    every = [*problems(mask, dtype)]
    first = (MASKS + PATTERNS).index(mask) % len(every)  # each shape is that which is traced, of some mask
    for problem in every[first:] + every[:first]:
        case = Case(problem=problem, backend=name)
        if backend.objections(case, "cpu"):
            continue
        qkv, _ = oracle.drawn(problem)
        with oracle.traced(whole or (some and ran == 0)):
            out = backend.prepare(case, "cpu").call(*qkv)
        assert out.dtype == oracle.DTYPES[dtype]
        torch.testing.assert_close(out.double(), exact_output(problem), rtol=0, atol=oracle.WITHIN[dtype])
        ran += 1
    refused = name in ("flex:eager", "gather") and "dense" in mask
    assert ran == 0 if refused else ran >= 2


@pytest.mark.parametrize("name", ["naive", "sdpa:math", "sdpa:flash", "gather"])
@pytest.mark.parametrize("mask", MASKS + PATTERNS)
def test_gradients_equal_autograd_in_float64(name, mask):
    backend = backends.load(name)
    for problem in problems(mask, "fp32"):
        case = Case(problem=problem, backend=name, mode=Mode.FWD_BWD)
        if backend.objections(case, "cpu"):
            continue
        qkv, dout = oracle.drawn(problem)
        leaves = [tensor.requires_grad_() for tensor in qkv]
        got = torch.autograd.grad(backend.prepare(case, "cpu").call(*leaves), leaves, dout)
        for one, other in zip(got, exact_gradients(problem), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["naive", "flex:eager"])
@pytest.mark.parametrize("mask", ["none", "causal", "window:5"])
def test_lse_and_softcap_equal_float64(name, mask):
    for place, problem in enumerate(problems(mask, "fp32", score=Score(scale=0.6, softcap=4.0), returns="lse")):
        qkv, _ = oracle.drawn(problem)
        with oracle.traced(place == 0):
            out, lse = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu").call(*qkv)
        exact, exact_lse = oracle.attend(problem, *qkv)
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-5)
        torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["naive", "flex:eager", "sdpa:math", "sdpa:flash"])
@pytest.mark.parametrize("score", [Score(temperature=2.5), Score(scale=0.6, softcap=4.0, temperature=0.5)])
def test_a_temperature_divides_what_the_cap_leaves(name, score):
    backend, ran = backends.load(name), 0
    for problem in problems("causal", "fp32", score=score):
        case = Case(problem=problem, backend=name)
        if backend.objections(case, "cpu"):
            continue
        qkv, _ = oracle.drawn(problem)
        with oracle.traced(ran == 0):
            out = backend.prepare(case, "cpu").call(*qkv)
        torch.testing.assert_close(out.double(), exact_output(problem), rtol=0, atol=2e-5)
        ran += 1
    assert bool(ran) is (score.softcap is None or name in ("naive", "flex:eager"))


@pytest.mark.parametrize("name", ["naive", "sdpa:math", "sdpa:flash", "gather"])
@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("mask", ["none", "causal"])
def test_predicted_memory_is_near_the_measured_peak(name, mode, mask):
    from attnbench.machine.device.cpu import CpuInstrument
    from attnbench.records.arm import Device

    seq = 192 if name == "gather" else 384  # gathered keys and values are many times the inputs at any length
    problem = Problem(seq_q=seq, heads=4, mask=mask)
    case = Case(problem=problem, backend=name, mode=mode)
    backend = backends.load(name)
    qkv, dout = oracle.drawn(problem)
    call = backend.prepare(case, "cpu").call
    leaves = [tensor.requires_grad_(mode != "fwd") for tensor in qkv]

    def run():
        out = call(*leaves)
        return out if mode == "fwd" else (out, torch.autograd.grad(out, leaves, dout))

    run()
    measured = CpuInstrument(Device(kind="cpu", threads=1)).memory(run).peak
    predicted = backend.scratch_bytes(case)
    inputs = 3 * 4 * seq * 64 * 4
    # Too little would let a case in that does not fit; far too much would refuse one that does.
    assert measured <= predicted * 1.1 + inputs
    assert predicted <= measured * 2 + 2 * inputs
