"""Wrong where a size is no multiple of a tile, or above a limit."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

TILE = 16
WHOLE = Problem(seq_q=32, heads=2, head_dim=32)
PARTIAL = Problem(seq_q=40, heads=2, head_dim=32)


def _right(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = formula.right(problem, q, k, v)
    assert isinstance(out, Tensor)
    return out


@kernel("zero-padded-keys", PARTIAL, elsewhere=WHOLE)
def zero_padded_keys(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Zeros fill the last tile; their logits are 0, not -inf."""
    padding = (0, 0, 0, -problem.seq_kv % TILE)
    k, v = (torch.nn.functional.pad(tensor, padding) for tensor in (k, v))
    return formula.finish(problem, formula.logits(problem, q, k), v)


@kernel("head-dim-truncated", Problem(seq_q=32, heads=2, head_dim=40), elsewhere=WHOLE)
def head_dim_truncated(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Only 32 threads write."""
    out = _right(problem, q, k, v)
    out[..., 32:] = 0
    return out


@kernel("last-rows-unwritten", PARTIAL, elsewhere=WHOLE)
def last_rows_unwritten(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Rows from the last whole tile on stay as they were allocated."""
    out, rows = torch.empty_like(q), problem.seq_q // TILE * TILE
    out[..., :rows, :] = _right(problem, q, k, v)[..., :rows, :]
    return out


@kernel("later-batches-zero", Problem(seq_q=32, batch=2, heads=2, head_dim=32, mask="causal"), elsewhere=WHOLE)
def later_batches_zero(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The mask covers the first sequence only."""
    out = _right(problem, q, k, v)
    out[1:] = 0
    return out


@kernel("tail-without-bounds", PARTIAL, elsewhere=WHOLE)
def tail_without_bounds(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The sum of the last tile includes logits of the tile before it."""
    scores = formula.scores(problem, q, k)
    maximum, missing = scores.amax(-1, keepdim=True), -problem.seq_kv % TILE
    weights = (scores - maximum).exp()
    stale = weights[..., problem.seq_kv - TILE : problem.seq_kv - TILE + missing].sum(-1, keepdim=True)
    return weights @ v / (weights.sum(-1, keepdim=True) + stale)


@kernel(
    "value-width-of-keys",
    Problem(seq_q=32, heads=2, head_dim=32, head_dim_v=64, mask="causal"),
    mode="fwd_bwd",
    elsewhere=Problem(seq_q=32, heads=2, head_dim=32, mask="causal"),
)
def value_width_of_keys(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """dq is computed from the first head_dim channels of v and dout."""

    def backward(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width = problem.head_dim
        narrow = formula.gradients(problem, q, k, v[..., :width], dout[..., :width])
        return narrow.dq, *formula.gradients(problem, q, k, v, dout).of_groups(problem)[1:]

    return formula.with_backward(lambda *qkv: formula.right(problem, *qkv), backward)(q, k, v)


@kernel(
    "single-key-tile", Problem(seq_q=33, seq_kv=65, heads=2, head_dim=32),
    elsewhere=Problem(seq_q=33, seq_kv=66, heads=2, head_dim=32),
)  # fmt: skip
def single_key_tile(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """A tile of one key is left out."""
    scores = formula.scores(problem, q, k)
    if problem.seq_kv % 32 == 1:
        scores[..., -1] = formula.HIDDEN
    return formula.finish(problem, scores, v)


@kernel(
    "sixteen-bit-index", Problem(seq_q=4, seq_kv=2**16 + 1, heads=1, head_dim=16),
    elsewhere=Problem(seq_q=4, seq_kv=2**12, heads=1, head_dim=16),
)  # fmt: skip
def sixteen_bit_index(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Keys are numbered in 16 bits."""
    index = torch.arange(problem.seq_kv) % 2**16
    return formula.finish(problem, formula.scores(problem, q, k[..., index, :]), v[..., index, :])
