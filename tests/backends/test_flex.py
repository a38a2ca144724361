"""FlexAttention compiled; the eager one is tested with the other torch backends."""

from __future__ import annotations

import pytest
import torch

from attnbench import backends
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import flex
from attnbench.records.case import Case
from tests import oracle

CASES = (
    Problem(seq_q=40, seq_kv=72, heads=4, kv_heads=2, mask="causal+window:20", score=Score(softcap=5.0)),
    Problem(seq_q=48, heads=2, batch=2, mask="document:3", dtype="bf16"),
    Problem(seq_q=33, heads=2, mask="prefix:9", dtype="fp16"),
)


@pytest.mark.slow
@pytest.mark.parametrize("problem", CASES, ids=lambda problem: f"{problem.mask} {problem.dtype}")
def test_compiled_flex_equals_float64_and_says_how_long_it_compiled(problem):
    prepared = backends.load("flex").prepare(Case(problem=problem, backend="flex"), "cpu")
    qkv, _ = oracle.drawn(problem)
    with torch.no_grad():
        out = prepared.call(*qkv)
    torch.testing.assert_close(out.double(), oracle.attend(problem, *qkv)[0], rtol=0, atol=oracle.WITHIN[problem.dtype])
    assert prepared.late_facts
    assert prepared.late_facts()["compile_s"] > 0
    assert "mask_build" in prepared.seconds


def test_flex_refuses_a_backward_pass_on_a_cpu():
    case = Case(problem=Problem(seq_q=8), backend="flex", mode=Mode.BWD)
    assert backends.load("flex").objections(case, "cpu") == ["backward unsupported"]
    assert backends.load("flex").objections(case, "cuda", (9, 0)) == []


@pytest.mark.parametrize(
    ("lengths", "mask", "percent"),
    [((1, 128), "causal", 0.0), ((32, 32), "causal", 0.0), ((256, 256), "causal", 25.0), ((500, 500), "none", 0.0)],
)
def test_the_share_of_blocks_that_are_not_computed_counts_whole_blocks(
    lengths: tuple[int, int], mask: str, percent: float
) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    def predicate(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query + lengths[1] - lengths[0] >= key if mask == "causal" else key >= 0

    assert flex._sparsity(create_block_mask(predicate, None, None, *lengths, device="cpu")) == percent
