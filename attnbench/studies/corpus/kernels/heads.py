"""Wrong maps from query heads to key heads."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

GROUPED = Problem(seq_q=32, heads=4, kv_heads=2, head_dim=32, mask="causal")
SEPARATE = Problem(seq_q=32, heads=4, head_dim=32, mask="causal")


def _by_key_head(problem: Problem, q: Tensor, k: Tensor, v: Tensor, key_heads: Tensor) -> Output:
    """Attention with the key head of every query head."""
    separate = Problem(seq_q=problem.seq_q, seq_kv=problem.seq_kv, heads=problem.heads, head_dim=problem.head_dim)
    masked = formula.logits(separate, q, k[:, key_heads]).masked_fill(~formula.visible(problem), formula.HIDDEN)
    return formula.finish(separate, masked, v[:, key_heads])


@kernel("gqa-tiled", GROUPED, elsewhere=SEPARATE)
def gqa_tiled(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Query head h uses key head h modulo their number."""
    return _by_key_head(problem, q, k, v, torch.arange(problem.heads) % problem.kv_heads)


@kernel("gqa-square-map", Problem(seq_q=32, heads=8, kv_heads=4, head_dim=32, mask="causal"), elsewhere=GROUPED)
def gqa_square_map(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Blocks are mapped to heads with the group size as modulus and as stride; some heads are never written."""
    group, blocks = problem.heads // problem.kv_heads, torch.arange(problem.heads)
    written = (blocks % group) * group + blocks // group
    out = formula.right(problem, q, k, v)
    assert isinstance(out, Tensor)
    return out.masked_fill(~torch.isin(blocks, written)[:, None, None], 0.0)


@kernel(
    "gqa-tile-crosses-group",
    Problem(seq_q=1, seq_kv=40, heads=12, kv_heads=2, head_dim=32),
    elsewhere=Problem(seq_q=1, seq_kv=40, heads=8, kv_heads=2, head_dim=32),
)
def gqa_tile_crosses_group(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """A tile of 4 query heads uses the key head of its first."""
    first = torch.arange(problem.heads) // 4 * 4
    return _by_key_head(problem, q, k, v, first // (problem.heads // problem.kv_heads))


@kernel("head-zero-for-all", SEPARATE, elsewhere=Problem(seq_q=32, heads=1, head_dim=32, mask="causal"))
def head_zero_for_all(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The offset of a head is rounded down to 0."""
    return _by_key_head(problem, q, k, v, torch.zeros(problem.heads, dtype=torch.long))


@kernel("gqa-gradient-not-summed", GROUPED, mode="fwd_bwd", elsewhere=SEPARATE)
def gqa_gradient_not_summed(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The last query head of a group overwrites the gradients of the others."""

    def backward(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_heads, group = formula.gradients(problem, q, k, v, dout), problem.heads // problem.kv_heads
        return of_heads.dq, of_heads.dk[:, group - 1 :: group], of_heads.dv[:, group - 1 :: group]

    return formula.with_backward(lambda *qkv: formula.right(problem, *qkv), backward)(q, k, v)
