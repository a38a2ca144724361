"""The float64 reference against a second implementation by einsum and torch's autograd."""

from __future__ import annotations

import math

import pytest
import torch
from msgspec.structs import replace

from attnbench.attention import cost, inputs
from attnbench.attention.blocks import of_group
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.reference import plain_forward, plain_gradients
from attnbench.attention.scores import Score
from tests import reference

SHAPES = ({"seq_q": 19}, {"seq_q": 7, "seq_kv": 23}, {"seq_q": 23, "seq_kv": 7}, {"seq_q": 1, "seq_kv": 11})
MASKS = ("none", "causal", "window:3", "causal+window:4", "prefix:5", "causal+padding:0.4")


def plain(problem: Problem, q, k, v):
    """out and lse by einsum, in the dtype of the arguments."""
    sharing = problem.heads // problem.kv_heads
    k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * problem.scale
    if problem.score.softcap:
        logits = problem.score.softcap * torch.tanh(logits / problem.score.softcap)
    seen = torch.from_numpy(problem.masking.dense(problem.grid)).unsqueeze(1)
    logits = logits.masked_fill(~seen, -1e30)  # finite, so that autograd has no 0 x inf
    weights = logits.softmax(-1) * seen
    out = torch.einsum("bhij,bhjd->bhid", weights, v)
    lse = torch.where(seen.any(-1), logits.logsumexp(-1), torch.tensor(-math.inf, dtype=q.dtype))
    return out, lse


def drawn(problem: Problem):
    drawn = inputs.make(problem, 3)
    return [tensor.double().requires_grad_() for tensor in (drawn.q, drawn.k, drawn.v)], drawn.dout.double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attend_and_gradients_equal_einsum_and_autograd(shape, mask, softcap):
    problem = Problem(
        heads=4, kv_heads=2, head_dim=8, head_dim_v=12, mask=mask, score=Score(scale=0.7, softcap=softcap), **shape
    )
    qkv, dout = drawn(problem)
    out, lse = plain(problem, *qkv)
    forward = reference.attend(problem, *(tensor.detach() for tensor in qkv))
    torch.testing.assert_close(forward.out, out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward.lse, lse.double(), rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(out, qkv, dout)
    gradients = reference.gradients(problem, *(tensor.detach() for tensor in qkv), dout)
    for gradient, truth in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-9)


def test_row_without_keys_is_zero():
    problem = Problem(seq_q=9, seq_kv=4, heads=2, head_dim=8, mask="causal")
    (q, k, v), _ = drawn(problem)
    forward = reference.attend(problem, q.detach(), k.detach(), v.detach())
    assert (forward.out[:, :, :5] == 0).all()
    assert (forward.lse[:, :, :5] == -math.inf).all()
    assert forward.lse[:, :, 5:].isfinite().all()


def test_future_keys_change_nothing_under_causal():
    problem = Problem(seq_q=10, heads=2, head_dim=8, mask="causal")
    (q, k, v), _ = drawn(problem)
    before = reference.attend(problem, q.detach(), k.detach(), v.detach()).out
    k, v = k.detach().clone(), v.detach().clone()
    k[:, :, 6:], v[:, :, 6:] = 50.0, 50.0
    after = reference.attend(problem, q.detach(), k, v).out
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert not torch.equal(before[:, :, 6:], after[:, :, 6:])


def test_negating_all_inputs_negates_all_outputs_but_the_lse():
    problem = Problem(seq_q=10, heads=2, head_dim=8, mask="causal")
    (q, k, v), dout = drawn(problem)
    q, k, v = q.detach(), k.detach(), v.detach()
    forward, negated = reference.attend(problem, q, k, v), reference.attend(problem, -q, -k, -v)
    assert torch.equal(forward.out, -negated.out)
    assert torch.equal(forward.lse, negated.lse)
    pairs = zip(
        reference.gradients(problem, q, k, v, dout), reference.gradients(problem, -q, -k, -v, -dout), strict=True
    )
    assert all(torch.equal(a, -b) for a, b in pairs)


def test_permuting_heads_permutes_the_output():
    problem = Problem(seq_q=6, heads=3, head_dim=8)
    (q, k, v), _ = drawn(problem)
    order = [2, 0, 1]
    out = reference.attend(problem, q.detach(), k.detach(), v.detach()).out
    permuted = reference.attend(problem, q.detach()[:, order], k.detach()[:, order], v.detach()[:, order]).out
    assert torch.equal(permuted, out[:, order])


def test_inputs_repeat_by_seed_and_peaked_scores_are_peaked():
    problem = Problem(seq_q=256, heads=2)
    first, again, other = inputs.make(problem, 1), inputs.make(problem, 1), inputs.make(problem, 2)
    assert torch.equal(first.q, again.q)
    assert inputs.digest(first) == inputs.digest(again) != inputs.digest(other)
    peaked = inputs.make(problem, 1, "peaked")
    spread = (peaked.q @ peaked.k.transpose(-2, -1) * problem.scale).std()
    assert 6 < float(spread) < 10


def test_softmax_is_not_in_flops():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    problem = Problem(seq_q=24, seq_kv=40, heads=3, head_dim=16)
    q, k = torch.randn(1, 3, 24, 16), torch.randn(1, 3, 40, 16)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert counter.get_total_flops() == cost.flops_dense(problem, Mode.FWD)


@pytest.mark.parametrize("dtype", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_several_orders_of_the_channels_are_computed_together_as_one_by_one(dtype, softcap):
    problem = Problem(seq_q=7, seq_kv=13, heads=4, kv_heads=2, head_dim=8, mask="causal", dtype=dtype)
    problem = replace(problem, score=Score(softcap=softcap))
    made = inputs.make(problem, 3)
    q, k, v, dout = of_group(problem, (0, 1), made.q, made.k, made.v, made.dout)
    orders = torch.stack([torch.arange(8), torch.randperm(8, generator=torch.Generator().manual_seed(0))])
    several_q, several_k = (tensor[..., orders].movedim(-2, 0) for tensor in (q, k))
    assert not several_q[0].equal(several_q[1])
    for compute, last in ((plain_forward, ()), (plain_gradients, (dout,))):
        together = compute(problem, 0, several_q, several_k, v, *last)
        for number, order in enumerate(orders):
            alone = compute(problem, 0, q[..., order], k[..., order], v, *last)
            ours = [tensor[number] for part in together for tensor in (part if isinstance(part, tuple) else (part,))]
            theirs = [tensor for part in alone for tensor in (part if isinstance(part, tuple) else (part,))]
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-2 if dtype == "bf16" else 1e-5)
