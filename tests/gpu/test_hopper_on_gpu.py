"""The kernels in Gluon on a Hopper GPU: against float64, the same bits every time, and beside the other paths."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.attention import inputs
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.kernels.tables import TileConfig
from tests import reference

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.gpu.configurations import check, grid, near  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability(0) != (9, 0), reason="needs a Hopper GPU"
    ),
]

PROBLEMS: dict[str, dict[str, Any]] = {
    "one row": {"seq_q": 1, "seq_kv": 1},
    "more keys": {"seq_q": 113, "seq_kv": 203, "mask": "causal"},
    "fewer keys": {"seq_q": 300, "seq_kv": 113, "mask": "causal"},
    "window": {"seq_q": 640, "mask": "causal+window:100"},
    "both sides": {"seq_q": 300, "seq_kv": 500, "mask": "window:70:33"},
    "shared heads": {"seq_q": 257, "heads": 8, "kv_heads": 2, "mask": "causal"},
    "width 40": {"seq_q": 200, "head_dim": 40},
    "width 96": {"seq_q": 200, "head_dim": 96, "mask": "causal"},
    "fp16": {"seq_q": 400, "dtype": "fp16", "mask": "causal"},
}
FORWARD: dict[str, dict[str, Any]] = {
    "width 256": {"seq_q": 300, "head_dim": 256, "mask": "causal"},
    "documents": {"seq_q": 640, "mask": "causal+document:7"},
    "padding": {"seq_q": 300, "batch": 3, "mask": "causal+padding:0.4"},
    "prefix": {"seq_q": 300, "mask": "prefix:70"},
}


@pytest.mark.parametrize(("key", "config", "shape"), grid(hopper=True))
def test_every_configuration_is_right_and_gives_the_same_bits(
    key: tuple[str, ...], config: TileConfig, shape: str
) -> None:
    check(key, config, shape)


def problem_of(fields: dict[str, Any]) -> Problem:
    return Problem(**{"batch": 2, "heads": 4, "head_dim": 128, "dtype": "bf16", **fields})


def prepared(problem: Problem, mode: Mode) -> Any:
    from attnbench.backends import load
    from attnbench.records.case import Case

    case = Case(problem=problem, backend="triton:hopper", mode=mode)
    assert load("triton:hopper").objections(case, "cuda", (9, 0)) == []
    return load("triton:hopper").prepare(case, "cuda:0").call


@pytest.mark.parametrize("name", [*PROBLEMS, *FORWARD])
def test_outputs_and_gradients_against_float64(name: str) -> None:
    backward = name in PROBLEMS
    problem = problem_of({**PROBLEMS, **FORWARD}[name])
    made = inputs.make(problem, seed=0)
    q, k, v = (tensor.cuda().requires_grad_(backward) for tensor in (made.q, made.k, made.v))
    out = prepared(problem, Mode.FWD_BWD if backward else Mode.FWD)(q, k, v)
    exact, plain = (
        make(problem, made.q, made.k, made.v).out for make in (reference.attend, reference.attend_same_dtype)
    )
    near(out.detach(), exact, q.dtype, plain)
    if backward:
        found = torch.autograd.grad(out, (q, k, v), made.dout.cuda())
        true = reference.gradients(problem, made.q, made.k, made.v, made.dout)
        rough = reference.gradients_same_dtype(problem, made.q, made.k, made.v, made.dout)
        for one, exact_one, plain_one in zip(found, true, rough, strict=True):
            near(one, exact_one, q.dtype, plain_one)


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("mask", ["none", "causal"])
def test_many_tiles_for_every_program_give_what_the_portable_path_gives(width: int, mask: str) -> None:
    from attnbench import kernels

    torch.manual_seed(0)
    q = torch.randn(2, 32, 4096, width, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, 8, 4096, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    one, other = (
        kernels.attention(q, k, v, causal=mask == "causal", return_lse=True, path=path)
        for path in ("hopper", "portable")
    )
    torch.testing.assert_close(one[0], other[0], rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-4)
    for _ in range(20):
        again = kernels.attention(q, k, v, causal=mask == "causal", path="hopper")
        assert torch.equal(again, one[0])


@pytest.mark.parametrize("width", [64, 128, 256])
def test_numbers_of_8_bits(width: int) -> None:
    from attnbench import kernels

    torch.manual_seed(0)
    q = torch.randn(2, 8, 500, width, device="cuda").to(torch.float8_e4m3fn)
    k, v = (torch.randn(2, 2, 500, width, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    scales = tuple(torch.linspace(0.5, 1.5, count, device="cuda") for count in (8, 2, 2))
    out, lse = kernels.attention(q, k, v, causal=True, descale=scales, path="hopper", return_lse=True)
    queries, keys, values = (t.double() * s[:, None, None].double() for t, s in zip((q, k, v), scales, strict=True))
    keys, values = keys.repeat_interleave(4, 1), values.repeat_interleave(4, 1)
    hidden = torch.ones(500, 500, dtype=torch.bool, device="cuda").triu(1)
    s = (queries @ keys.mT * width**-0.5).masked_fill(hidden, -torch.inf)
    weights = torch.exp(s - s.amax(-1, keepdim=True)) * 256
    rounded = weights.to(torch.float8_e4m3fn).double() / weights.sum(-1, keepdim=True)
    exact = s.softmax(-1) @ values
    # The tensor cores add products of 8 bits with some 14 bits: beside the roundings of weights and output.
    bound = 2 * (rounded @ values - exact).abs().max() + 2**-7 * values.abs().max()
    assert (out.double() - exact).abs().max() <= bound
    torch.testing.assert_close(lse.double(), s.logsumexp(-1), rtol=1e-3, atol=1e-3)


def test_nan_in_padding_does_no_harm() -> None:
    from attnbench import kernels

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 300, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    low = torch.zeros(1, 300, dtype=torch.int64, device="cuda")
    rows = kernels.rows(low, low + 170, seq_kv=300)
    wanted = kernels.attention(q, k, v, mask=rows, path="portable")
    for tensor in (k, v):
        tensor[:, :, 170:] = float("nan")
    torch.testing.assert_close(kernels.attention(q, k, v, mask=rows, path="hopper"), wanted, rtol=2e-2, atol=2e-3)
