"""Blocks and layers: against the modules of torch with the same weights, and with every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnbench import backends
from attnbench.attention import cost, inputs, scopes
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import scope
from attnbench.errors import ProblemError, UnknownNameError
from attnbench.records.case import Case
from attnbench.worker import correctness
from attnbench.worker.expected_values import select
from attnbench.worker.reference_outputs import differentiable

SHAPE = {"batch": 2, "heads": 4, "seq_q": 9, "head_dim": 8}


def tokens(tensor):
    return tensor.transpose(1, 2).flatten(2)


def exact(problem, q, k, v):
    weights = dict(scopes.matrices(problem))
    inner = scopes.self_attention(problem)
    outs = []
    for b in range(problem.batch):
        core = differentiable(Problem(**{**_fields(problem), "scope": "core"}), True, b)
        self_attention = None if inner is None else differentiable(inner, True, b)
        outs.append(scopes.apply(problem, weights, core, self_attention, *(tensor[b : b + 1] for tensor in (q, k, v))))
    return tokens(torch.cat(outs))


def _fields(problem):
    return {name: getattr(problem, name) for name in problem.__struct_fields__}


def drawn(problem):
    tensors = inputs.make(problem, 3)
    return [tensor.double() for tensor in (tensors.q, tensors.k, tensors.v)]


@pytest.mark.parametrize("fields", [{}, {"seq_kv": 13}, {"mask": "causal"}])
def test_block_is_multihead_attention(fields):
    problem = Problem(**SHAPE, scope="block", **fields)
    width = problem.heads * problem.head_dim
    q, k, v = drawn(problem)
    module = torch.nn.MultiheadAttention(width, problem.heads, bias=False, batch_first=True, dtype=torch.float64)
    weights = dict(scopes.matrices(problem))
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([weights[name].T for name in "qkv"]))
        module.out_proj.weight.copy_(weights["o"].T)
    hidden = torch.ones(problem.seq_q, problem.seq_kv).tril().bool().logical_not() if problem.mask == "causal" else None
    expected, _ = module(tokens(q), tokens(k), tokens(v), attn_mask=hidden)
    torch.testing.assert_close(exact(problem, q, k, v), expected, rtol=0, atol=1e-12)


def _fill(layer, weights, name, self_name):
    """Set the weights of a layer of torch, and its biases to 0."""
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if key.endswith("bias"):
                parameter.zero_()
        layer.self_attn.in_proj_weight.copy_(torch.cat([weights[f"{self_name}{letter}"].T for letter in "qkv"]))
        layer.self_attn.out_proj.weight.copy_(weights[f"{self_name}o"].T)
        layer.linear1.weight.copy_(weights[f"{name}up"].T)
        layer.linear2.weight.copy_(weights[f"{name}down"].T)
        if self_name != name:
            layer.multihead_attn.in_proj_weight.copy_(torch.cat([weights[f"{name}{letter}"].T for letter in "qkv"]))
            layer.multihead_attn.out_proj.weight.copy_(weights[f"{name}o"].T)


OPTIONS = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True, "dtype": torch.float64}


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_layers_are_encoder_layers(mask):
    problem = Problem(**SHAPE, scope="layer:3", mask=mask)
    width = problem.heads * problem.head_dim
    q, k, v = drawn(problem)
    x, weights = tokens(q), dict(scopes.matrices(problem))
    hidden = torch.ones(9, 9).tril().bool().logical_not() if mask == "causal" else None
    for n in range(3):
        layer = torch.nn.TransformerEncoderLayer(width, problem.heads, 4 * width, **OPTIONS)
        _fill(layer, weights, f"{n} ", f"{n} ")
        x = layer(x, src_mask=hidden)
    torch.testing.assert_close(exact(problem, q, k, v), x, rtol=0, atol=1e-11)


def test_layers_with_another_key_length_are_decoder_layers():
    problem = Problem(**SHAPE, seq_kv=13, scope="layer:2")
    width = problem.heads * problem.head_dim
    q, k, v = drawn(problem)
    x, weights = tokens(q), dict(scopes.matrices(problem))
    hidden = torch.ones(9, 9).tril().bool().logical_not()
    for n in range(2):
        layer = torch.nn.TransformerDecoderLayer(width, problem.heads, 4 * width, **OPTIONS)
        _fill(layer, weights, f"{n} ", f"{n} self ")
        x = layer(x, tokens(k), tgt_mask=hidden)
    torch.testing.assert_close(exact(problem, q, k, v), x, rtol=0, atol=1e-11)


PROBLEMS = {
    "block": {"scope": "block"},
    "block of shared heads": {"scope": "block", "kv_heads": 2, "seq_kv": 12, "head_dim_v": 8, "mask": "causal"},
    "block with rope and t5": {"scope": "block", "positions": "rope", "score": Score(bias="t5"), "mask": "causal"},
    "block with xl": {"scope": "block", "score": Score(bias="xl")},
    "block of padded sequences": {"scope": "block", "batch": 3, "mask": "padding:0.4"},
    "block of ragged sequences": {"scope": "block", "batch": 3, "requests": "q4_q9_q2", "mask": "causal"},
    "rope in a block of requests": {"scope": "block", "positions": "rope", "batch": 2, "requests": "q3s7_q9"},
    "block that draws its keys": {"scope": "block", "weighting": "hard:sample"},
    "layers of padded sequences": {"scope": "layer", "batch": 3, "mask": "padding:0.4"},
    "layer": {"scope": "layer:2", "mask": "causal", "kv_heads": 2},
    "decoder": {"scope": "layer", "seq_kv": 13},
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["naive", "sdpa:math", "sdpa:flash"])
def test_backends_are_judged_within_scopes(expected_of, name, dtype, backend):
    problem = Problem(**{**SHAPE, **PROBLEMS[name], "dtype": dtype})
    case = Case(problem=problem, backend=backend, mode=Mode.FWD_BWD)
    chosen = backends.load(backend)
    if chosen.objections(case, "cpu"):
        assert "xl" in name or "draws" in name
        return
    expected = expected_of(problem)
    drawn = inputs.make(problem, 0)
    leaves = [tensor.requires_grad_() for tensor in (drawn.q, drawn.k, drawn.v)]
    out = scope.prepare(chosen, case, "cpu").call(*leaves)
    gradients = torch.autograd.grad(out, leaves, drawn.dout, materialize_grads=True)
    outputs = {"out": out.detach(), **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
    judged = correctness.judge(expected, outputs)
    assert judged.ok, judged.reason
    for key in ("out", "dq"):
        wrong = {**outputs, key: outputs[key].clone()}
        wrong[key][-1, 2, 3] += 8.0
        assert not correctness.judge(expected, wrong).ok


def test_selected_sequences_are_checked_whole(tmp_path):
    problem = Problem(**{**SHAPE, "batch": 6, "kv_heads": 2}, scope="block")
    selected = select(problem, Mode.FWD, 0, 0.0)
    assert [group[1] for group in selected.groups] == [0, 1]
    assert selected.share == pytest.approx(1 / 6)


def test_flops_of_scopes():
    """Counted by hand: t tokens, width w; four projections, and a feed-forward of 8 w^2 a token."""
    problem = Problem(batch=2, heads=4, seq_q=16, head_dim=8)
    t, w = 2 * 16, 32
    core = cost.flops(problem, Mode.FWD)
    assert core == 4 * 2 * 4 * 16 * 16 * 8
    block = Problem(batch=2, heads=4, seq_q=16, head_dim=8, scope="block")
    assert cost.flops(block, Mode.FWD) == core + 2 * 4 * t * w * w
    layers = Problem(batch=2, heads=4, seq_q=16, head_dim=8, scope="layer:3")
    assert cost.flops(layers, Mode.FWD) == 3 * (core + 2 * (4 + 8) * t * w * w)
    both = cost.flops(layers, Mode.FWD_BWD)
    assert both == 3 * (cost.flops(problem, Mode.FWD_BWD) + 3 * 2 * (4 + 8) * t * w * w)
    decoder = Problem(batch=2, heads=4, seq_q=16, seq_kv=24, head_dim=8, scope="layer")
    inner = 4 * 2 * 4 * (16 * 17 // 2) * 8
    cross = 4 * 2 * 4 * 16 * 24 * 8
    matrices = 2 * w * w * (t * (4 + 2 + 8) + 2 * 24 * 2)
    assert cost.flops(decoder, Mode.FWD) == inner + cross + matrices
    counted = FlopCounterMode(display=False)
    drawn = inputs.make(layers, 0)
    with counted:
        case = Case(problem=layers, backend="naive")
        scope.prepare(backends.load("naive"), case, "cpu").call(drawn.q, drawn.k, drawn.v)
    assert counted.get_total_flops() == cost.flops(layers, Mode.FWD)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"scope": "blok"}, "block"),
        ({"scope": "layer:0"}, "at least one"),
        ({"scope": "block:2"}, "takes no number"),
        ({"scope": "block", "returns": "lse"}, "use scope=core"),
        ({"scope": "layer", "dropout": 0.1}, "use scope=core"),
        ({"scope": "layer", "head_dim_v": 4}, "equal widths"),
        ({"scope": "layer", "requests": "q9_q3"}, "equal lengths"),
    ],
)
def test_invalid_scopes_are_refused(fields, hint):
    with pytest.raises((ProblemError, UnknownNameError), match=hint):
        Problem(**SHAPE, **fields)


def test_weights_preserve_the_variance_of_tokens():
    matrix = dict(scopes.matrices(Problem(heads=8, head_dim=32, seq_q=4, scope="block")))["q"]
    x = torch.randn(100, 256, dtype=torch.float64)
    assert float((x @ matrix).std() / x.std()) == pytest.approx(1.0, abs=0.05)
    assert math.isclose(float(matrix.std()), 256**-0.5, rel_tol=0.05)
