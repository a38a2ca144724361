"""Right: sums and tiles in another order, heads by another way."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.choices import Dtype, Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.formula import HIDDEN
from attnbench.studies.corpus.registry import kernel

CAUSAL = Problem(seq_q=70, heads=2, head_dim=32, mask="causal")
CHUNK = Problem(seq_q=24, seq_kv=70, heads=2, head_dim=32, mask="causal")
GROUPED = Problem(seq_q=40, heads=6, kv_heads=2, head_dim=32, dtype=Dtype.BF16, mask="causal")


@kernel("keys-reversed", CAUSAL)
def keys_reversed(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Scores and values are flipped along the keys."""
    return formula.finish(problem, formula.scores(problem, q, k).flip(-1), v.flip(-2))


@kernel("keys-in-chunks", CAUSAL)
def keys_in_chunks(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Partial sums of 7 keys are added."""
    weights, spans = formula.scores(problem, q, k).softmax(-1), formula.tiles(problem.seq_kv, 7)
    return torch.stack([weights[..., span] @ v[..., span, :] for span in spans]).sum(0)


@kernel("keys-permuted", CHUNK)
def keys_permuted(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """A fixed random order."""
    order = torch.randperm(problem.seq_kv, generator=torch.Generator().manual_seed(0))
    return formula.finish(problem, formula.scores(problem, q, k)[..., order], v[..., order, :])


def _online(problem: Problem, q: Tensor, k: Tensor, v: Tensor, spans: list[slice]) -> Output:
    part = formula.online(formula.scores(problem, q, k), formula.expanded(problem, v), spans)
    return formula.returned(problem, part, v.dtype)


@kernel("online-one-key", Problem(seq_q=24, seq_kv=70, heads=2, head_dim=32, mask="causal", returns=Returns.LSE))
def online_one_key(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Tiles of 1."""
    return _online(problem, q, k, v, formula.tiles(problem.seq_kv, 1))


@kernel("online-tile-48", Problem(seq_q=70, heads=2, head_dim=32, dtype=Dtype.FP16, mask="causal"))
def online_tile_48(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Tiles of 48."""
    return _online(problem, q, k, v, formula.tiles(problem.seq_kv, 48))


@kernel("online-right-to-left", Problem(seq_q=70, seq_kv=50, heads=2, head_dim=32, mask="causal", returns=Returns.LSE))
def online_right_to_left(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The last tile first; rows may see no key."""
    return _online(problem, q, k, v, formula.tiles(problem.seq_kv, 16)[::-1])


@kernel("online-lazy-rescale", CAUSAL)
def online_lazy_rescale(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The maximum that is subtracted may be up to 8 below the true one."""
    scores = formula.scores(problem, q, k)
    subtracted = scores[..., :16].amax(-1, keepdim=True)
    total, out = torch.zeros_like(subtracted), torch.zeros_like(q)
    for span in formula.tiles(problem.seq_kv, 16):
        highest = scores[..., span].amax(-1, keepdim=True)
        above = highest.where(highest > subtracted + 8, subtracted)
        factor, weights = (subtracted - above).exp(), (scores[..., span] - above).exp()
        total, out, subtracted = (
            total * factor + weights.sum(-1, keepdim=True),
            out * factor + weights @ v[..., span, :],
            above,
        )
    return out / total


@kernel("causal-tiles-skipped", CHUNK)
def causal_tiles_skipped(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Only tiles with a visible key are computed."""
    scores, out = formula.scores(problem, q, k), []
    for rows in formula.tiles(problem.seq_q, 16):
        spans = [span for span in formula.tiles(problem.seq_kv, 16) if scores[0, 0, rows, span].amax() > HIDDEN]
        out.append(formula.online(scores[..., rows, :], v, spans).out)
    return torch.cat(out, -2)


@kernel("gqa-folded", GROUPED)
def gqa_folded(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """[kv_heads, group * seq_q] rows."""
    folded = q.unflatten(1, (problem.kv_heads, -1)).flatten(2, 3).float()
    logits = (folded @ k.float().mT).unflatten(2, (-1, problem.seq_q)).flatten(1, 2) * problem.scale
    weights = logits.masked_fill(~formula.visible(problem), HIDDEN).softmax(-1)
    out = weights.unflatten(1, (problem.kv_heads, -1)).flatten(2, 3) @ v.float()
    return torch.unflatten(out, 2, (-1, problem.seq_q)).flatten(1, 2).to(v.dtype)


@kernel("gqa-by-head", GROUPED)
def gqa_by_head(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """One head after the other."""
    hidden, group = ~formula.visible(problem)[:, 0], problem.heads // problem.kv_heads
    out = torch.empty_like(q)
    for head in range(problem.heads):
        logits = (q[:, head].float() @ k[:, head // group].float().mT * problem.scale).masked_fill(hidden, HIDDEN)
        out[:, head] = (logits.softmax(-1) @ v[:, head // group].float()).to(v.dtype)
    return out


@kernel("gqa-einsum", GROUPED)
def gqa_einsum(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """No copy of the keys."""
    grouped = q.unflatten(1, (problem.kv_heads, -1)).float()
    logits = torch.einsum("bgnid,bgjd->bgnij", grouped, k.float()) * problem.scale
    weights = logits.masked_fill(~formula.visible(problem)[:, :, None], HIDDEN).softmax(-1)
    out: Tensor = torch.einsum("bgnij,bgjd->bgnid", weights, v.float())
    return out.to(v.dtype).flatten(1, 2)
