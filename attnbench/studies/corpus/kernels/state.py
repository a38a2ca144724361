"""Wrong because of what an earlier call or tile left, because of changed inputs, or because of strides."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

TILE = 16
CAUSAL = Problem(seq_q=64, heads=2, head_dim=32, mask="causal")


@kernel("window-accumulator-stale", Problem(seq_q=64, heads=2, head_dim=32, mask="causal+window:16"), elsewhere=CAUSAL)
def window_accumulator_stale(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """A tile of rows whose first tile of keys is not tile 0 adds to what the tile of rows before it has."""
    scores, out = formula.scores(problem, q, k), []
    state: list[formula.SplitPart] = []
    for rows in formula.tiles(problem.seq_q, TILE):
        columns = scores[..., rows, :].amax(-2).ne(formula.HIDDEN).nonzero()[:, -1]
        first = int(columns.min()) // TILE * TILE
        state = ([] if first == 0 else state) + [formula.attended(scores[..., rows, first:], v[..., first:, :])]
        out.append(formula.merge(state).out)
    return torch.cat(out, -2)


@kernel(
    "metadata-of-last-shape",
    Problem(seq_q=33, batch=2, heads=2, head_dim=32, mask="padding:0.2"),
    Problem(seq_q=33, batch=2, heads=2, head_dim=32, mask="padding:0.5"),
)
def metadata_of_last_shape(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The lengths of the first problem with that batch size are used for later ones."""
    seen = formula.KEPT.setdefault(problem.batch, formula.visible(problem))
    return formula.finish(problem, formula.logits(problem, q, k).masked_fill(~seen, formula.HIDDEN), v)


@kernel("gradient-accumulator-kept", CAUSAL, mode="fwd_bwd")
def gradient_accumulator_kept(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The buffer of dq is not cleared between calls."""

    def backward(*qkv_dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = formula.gradients(problem, *qkv_dout).of_groups(problem)
        formula.KEPT["dq"] = dq = dq + formula.KEPT.get("dq", 0.0)
        return dq.clone(), dk, dv

    return formula.with_backward(lambda *qkv: formula.right(problem, *qkv), backward)(q, k, v)


@kernel("race", CAUSAL)
def race(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """In every eighth call one tile is read before it is written."""
    formula.KEPT["calls"] = calls = formula.KEPT.get("calls", 0) + 1
    scores = formula.scores(problem, q, k)
    if calls % 8 == 0:
        scores[:, 0, :TILE, :TILE] = scores[:, 0, TILE : 2 * TILE, :TILE]
    return formula.finish(problem, scores, v)


@kernel("keys-smoothed-in-place", Problem(seq_q=64, heads=2, head_dim=32))
def keys_smoothed_in_place(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The mean of the keys, which changes no weight, is subtracted from the tensor of the caller."""
    k.sub_(k.mean(-2, keepdim=True))
    return formula.right(problem, q, k, v)


@kernel(
    "strides-of-values",
    Problem(requests="q2s20_q5s33", batch=2, seq_q=5, seq_kv=33, heads=2, head_dim=32),
    elsewhere=CAUSAL,
)
def strides_of_values(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The values of a batch are read in the order of memory."""
    strides = torch.empty(v.shape).stride()
    v = torch.as_strided(v, v.shape, strides, v.storage_offset())
    if not problem.requests:
        return formula.right(problem, q, k, v)
    out = [
        formula.right(part, q[:, :, rows], k[:, :, keys], v[:, :, keys])
        for part, (rows, keys) in zip(problem.parts, problem.spans, strict=True)
    ]
    return torch.cat([each for each in out if isinstance(each, Tensor)], 2)
