"""Attention over a latent cache: every way to compute it, the reference, and its bytes, against plain products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from attnbench import backends, cli, suite
from attnbench.attention import cost, inputs, latent, latent_reference
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.kv_cache import Latent, parse_latent
from attnbench.attention.problem import Problem
from attnbench.backends import mla, scope
from attnbench.errors import ProblemError
from attnbench.machine.device.cpu import CpuInstrument
from attnbench.records.arm import parse_device
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.worker import correctness, expected_values, probes
from attnbench.worker.prepared_case import PreparedCase
from tests import oracle

BACKENDS = ("naive", "mla:absorbed", "mla:expanded")
SHAPE: dict[str, Any] = {"heads": 3, "head_dim": 12, "head_dim_v": 5, "kv": "latent:16+4"}
V3: dict[str, Any] = {"heads": 128, "head_dim": 192, "head_dim_v": 128, "kv": "latent:512+64", "dtype": "bf16"}


def by_hand(problem: Problem, q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    """In float64, from the keys and values of every head, one after the other."""
    kept = parse_latent(problem.kv)
    assert kept
    weights = latent.matrices(problem)
    q, cache = q.double(), cache[:, 0].double()
    heads = []
    for head in range(problem.heads):
        keys = torch.cat([cache[..., : kept.rank] @ weights.of_keys[head].double(), cache[..., kept.rank :]], dim=-1)
        logits = (q[:, head] @ keys.mT) * problem.head_dim**-0.5
        logits = logits.masked_fill(~oracle.visible(problem)[:, 0], -1e30)
        heads.append(logits.softmax(-1) @ (cache[..., : kept.rank] @ weights.of_values[head].double()))
    return torch.stack(heads, dim=1)


def computed(problem: Problem, backend: str, tensors: inputs.Inputs) -> torch.Tensor:
    prepared = scope.prepare(backends.load(backend), Case(problem=problem, backend=backend), "cpu")
    stored = prepared.stored or (lambda tensor: tensor)
    out = prepared.call(tensors.q, stored(tensors.k), stored(tensors.v))
    return out[0] if isinstance(out, tuple) else out


@settings(max_examples=25, deadline=None)
@given(
    seq_q=st.integers(1, 6), more=st.integers(0, 9), batch=st.integers(1, 3), heads=st.integers(1, 5),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    mask=st.sampled_from(["none", "causal", "causal+window:3", "padding:0.3"]), page_size=st.sampled_from([0, 4]),
)  # fmt: skip
def test_absorbed_and_expanded_are_the_products_by_hand(
    seq_q: int, more: int, batch: int, heads: int, widths: tuple[int, ...], mask: str, page_size: int
) -> None:
    rank, rope, nope, width_v = widths
    problem = Problem(
        seq_q=seq_q, seq_kv=seq_q + more, batch=batch, heads=heads, head_dim=nope + rope, head_dim_v=width_v,
        kv=f"latent:{rank}+{rope}", mask=mask, page_size=page_size,
    )  # fmt: skip
    tensors = inputs.make(problem, seed=seq_q)
    right = by_hand(problem, tensors.q, tensors.k)
    for backend in BACKENDS:
        out = computed(problem, backend, tensors)
        torch.testing.assert_close(out.double(), right, rtol=0, atol=1e-5)
    references = [latent_reference.attend_group(problem, tensors.q, tensors.k, (b, 0)) for b in range(batch)]
    exact = torch.stack([group.exact.out for group in references])
    torch.testing.assert_close(exact, right, rtol=0, atol=1e-12)
    plain = torch.stack([group.plain.out for group in references])
    assert float((plain - right).abs().max()) < 1e-5


def test_requests_are_computed_one_by_one():
    problem = Problem(seq_q=5, seq_kv=9, batch=3, requests="q5_2q1s9", mask="causal", page_size=4, **SHAPE)
    tensors = inputs.make(problem, 0)
    assert tensors.k.shape == (1, 1, 23, 20)
    outs = {backend: computed(problem, backend, tensors) for backend in BACKENDS}
    for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True):
        right = by_hand(part, tensors.q[:, :, queries], tensors.k[:, :, keys])
        for out in outs.values():
            torch.testing.assert_close(out[:, :, queries].double(), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("distribution", inputs.DISTRIBUTIONS)
def test_the_cache_is_one_input(distribution: str) -> None:
    problem = Problem(seq_q=2, seq_kv=7, kv_dtype="int8:tensor", **SHAPE)
    tensors = inputs.make(problem, 3, distribution)
    assert (tensors.q.shape, tensors.k.shape, tensors.v.shape) == ((1, 3, 2, 12), (1, 1, 7, 20), (1, 1, 7, 0))
    assert inputs.digest(tensors) == inputs.digest(inputs.make(problem, 3, distribution))
    if distribution == "sink":  # the first key has most of the weight
        out = by_hand(problem, tensors.q, tensors.k)
        value = tensors.k[0, 0, 0, :16].double() @ latent.matrices(problem).of_values.double()
        torch.testing.assert_close(out, value[None, :, None].expand_as(out), rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_outputs_are_judged_and_change_with_the_inputs(tmp_path: Path, backend: str, dtype: str) -> None:
    problem = Problem(seq_q=20, seq_kv=40, batch=2, mask="causal", dtype=dtype, **SHAPE)
    case = Case(problem=problem, backend=backend)
    prepared = PreparedCase(case, Procedure(), backends.load(backend), CpuInstrument(parse_device("cpu:threads=1")))
    procedure = prepared.procedure
    expected = expected_values.compute(problem, Mode.FWD, procedure.seed, procedure.inputs, tmp_path, 30.0)
    prepared.call_once(prepared.state.backend_code())
    assert correctness.judge(expected, prepared.named_outputs()).ok
    prepared.change(seed=1, moves=True, reorder=True)
    prepared.call_once(prepared.state.backend_code())
    outputs = prepared.named_outputs()
    assert correctness.judge(expected, outputs, prepared.undo).ok
    assert not correctness.judge(expected, outputs).ok
    assert not correctness.judge(expected, {"out": outputs["out"].roll(1, dims=1)}, prepared.undo).ok


def test_few_rows_are_judged_where_the_reference_is_expensive(tmp_path):
    problem = Problem(seq_q=300, mask="causal", **SHAPE)
    expected = expected_values.compute(problem, Mode.FWD, 0, "normal", tmp_path, 0.0)
    assert 0 < expected.share < 1
    out = computed(problem, "mla:expanded", inputs.make(problem, 0))
    assert correctness.judge(expected, {"out": out}).ok


@pytest.mark.parametrize("mask", ["none", "causal", "causal+window:3", "padding:0.4"])
@pytest.mark.parametrize("page_size", [0, 4])
def test_each_visible_token_of_the_cache_is_read_once(mask: str, page_size: int) -> None:
    problem = Problem(seq_q=2, seq_kv=11, batch=3, mask=mask, page_size=page_size, **SHAPE)
    tokens = int(oracle.visible(problem).expand(3, 1, 2, 11)[:, 0].any(dim=1).sum())
    q, out, matrices = 3 * 3 * 2 * 12, 3 * 3 * 2 * 5, sum(part.numel() for part in latent.matrices(problem))
    table = 4 * 3 * 3 if page_size else 0
    assert cost.traffic_bytes(problem, Mode.FWD) == 4 * (q + tokens * 20 + matrices + out) + table
    assert cost.input_bytes(problem) == 4 * (q + 3 * 11 * 20)


def test_figures_of_deepseek_v3_by_hand():
    problem = Problem(seq_q=1, seq_kv=4096, mask="causal", **V3)
    assert problem.kv_heads == 1
    assert cost.kv_bytes(problem) == 4096 * 1152
    assert cost.pairs(problem) == 128 * 4096
    assert cost.flops(problem, Mode.FWD) == 640 * 128 * 4096
    products = 2 * 128 * 512 * (128 + 128)  # of one token, with W_UK and W_UV
    absorbed, expanded = (Case(problem=problem, backend=name) for name in BACKENDS[1:])
    assert mla.executed_flops(absorbed) == 2176 * 128 * 4096 + products
    assert mla.executed_flops(expanded) == 640 * 128 * 4096 + 4096 * products


def test_decode_of_the_suite_of_deepseek_v3_reads_576_numbers_a_token():
    cells = suite.expand(suite.load("deepseek-v3"), kind="cuda", dtype=Dtype.BF16)
    decode = [cell.problem for cell in cells if isinstance(cell, suite.Cell) and cell.problem.seq_q == 1]
    assert {cost.kv_bytes(problem) / (problem.batch * problem.seq_kv) for problem in decode} == {576 * 2}


def test_only_backends_of_a_latent_cache_take_it():
    case = Case(problem=Problem(seq_q=4, **SHAPE), backend="naive")
    every = {name: backends.load(name) for name in backends.BUILTIN}
    for name, backend in every.items():
        for kind, limits in backend.limits.items():
            refused = "latent KV unsupported" in backend.objections(replace(case, backend=name), kind)
            assert refused == ("latent" not in limits.features), (name, kind)
    assert {name for name in BACKENDS if not every[name].objections(case, "cpu")} == set(BACKENDS)
    assert every["sdpa"].objections(case, "cpu") == ["latent KV unsupported"]
    separate = Case(problem=Problem(seq_q=4), backend="mla:absorbed")
    assert backends.load("mla:absorbed").objections(separate, "cpu") == ["only a latent cache: use sdpa"]
    for name in BACKENDS:
        backward = Case(problem=case.problem, backend=name, mode=Mode.FWD_BWD)
        assert "backward of a latent cache unsupported" in backends.load(name).objections(backward, "cpu")


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("latent:512", {}, r"kv='latent:512': use latent:512\+64"),
        ("latent:0+64", {}, "kv='latent:0"),
        ("mla", {}, "kv='mla'"),
        ("latent:16+4", {"kv_heads": 2}, "kv_heads=2: all heads share the cache; use kv_heads=1"),
        ("latent:16+64", {}, r"head_dim=64: 64 numbers are of RoPE; head_dim counts them, as 128 \+ 64"),
        ("latent:16+4", {"sinks": True}, "with sinks=True: a latent cache needs plain attention"),
        ("latent:16+4", {"dropout": 0.1}, "with dropout=0.1"),
        ("latent:16+4", {"positions": "rope"}, "with positions=rope"),
        ("latent:16+4", {"scope": "block"}, "with scope=block"),
        ("latent:16+4", {"weighting": "sigmoid"}, "with weighting=sigmoid"),
        ("latent:16+4", {"returns": "weights"}, "with returns=weights"),
    ],
)
def test_what_a_latent_cache_does_not_go_with(text: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Problem(seq_q=4, heads=4, kv=text, **fields)


def test_the_text_of_a_latent_cache_is_canonical():
    assert parse_latent("latent:016+4") == Latent(16, 4)
    assert Problem(seq_q=4, kv="latent:016+04").kv == "latent:16+4"
    assert Problem(seq_q=4, kv="none") == Problem(seq_q=4)
    assert (
        Case(problem=Problem(seq_q=4, kv="none"), backend="naive").id
        == Case(problem=Problem(seq_q=4), backend="naive").id
    )


def test_a_latent_cache_is_an_axis(capsys):
    options = ["--seq-q", "1", "--seq-kv", "64", "--heads", "4", "--head-dim", "24", "--set", "kv=none,latent:32+8"]
    assert cli.invoke(["run", *options, "-b", "mla:absorbed,sdpa", "--device", "cpu", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "kv=latent:32+8 mla:absorbed" in shown
    assert cli.invoke(["run", *options[:-1], "kv=latent:32", "--dry-run"]) == 2
    assert "--set kv" in capsys.readouterr().err


def test_probes_skip_the_empty_values():
    problem = Problem(seq_q=8, seq_kv=16, **SHAPE)
    case = Case(problem=problem, backend="mla:absorbed")
    instrument = CpuInstrument(parse_device("cpu:threads=1"))
    prepared = PreparedCase(case, Procedure(inputs="normal"), backends.load("mla:absorbed"), instrument)
    figures = probes.run(["noise", "determinism", "batch", "quantisation"], prepared)
    assert figures["noise"]["gain"]["0.01"] > 0
    assert figures["batch"]["equal"] in (True, False)
    assert figures["quantisation"]["bytes"]["int8"] == 16 * 20 + 16 * 4


@pytest.mark.parametrize(("seq_q", "seq_kv", "most"), [(1, 1024, 8), (64, 64, 12)])
def test_predicted_memory_has_the_expanded_keys_and_values_and_the_matrices(seq_q: int, seq_kv: int, most: int) -> None:
    problem = Problem(seq_q=seq_q, seq_kv=seq_kv, **V3 | {"heads": 32})
    expanded, matrices = cost.kv_bytes(latent.expanded(problem)), latent.matrix_bytes(problem)
    for name in ("naive", "mla:expanded"):
        predicted = backends.load(name).extra_bytes(Case(problem=problem, backend=name))
        assert expanded <= predicted - matrices <= most * expanded
    # SDPA on a CPU reads keys and values of different widths in float32: measured 84 MiB for 20 MiB of them, and with
    # 64 queries 8.5 MiB for 1.25 MiB.
    if seq_q == 1:
        assert predicted > 4 * expanded
