"""torch's SDPA over a padded batch: requests are gathered, padded to the longest and masked, all inside the call."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnbench.attention import cost, layouts
from attnbench.attention.problem import Problem
from attnbench.backends import FLOATS, Backend, Limits, Prepared, planned
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_MASKS = frozenset({"causal", "window", "prefix", "document", "blind_rows"})
_FEATURES = _MASKS | {"requests", "empty", "paged", "gqa", "cross", "scale", "head_dim_v"}


class _Plan(NamedTuple):
    """What a batch of requests needs besides its tokens; the same for all layers of a model."""

    q_places: NDArray[np.int64]  # [batch * longest], the packed query of each padded row; 0 beyond a request
    kv_places: NDArray[np.int64]  # the same of keys, among the packed ones or those of all pages
    rows: NDArray[np.int64]  # [tokens], the padded row of each packed query
    visible: NDArray[np.bool_]  # [batch, 1, seq_q, seq_kv]


def plan(problem: Problem) -> _Plan:
    """Find the places of the tokens in the padded batch, and build its mask.

    A row beyond a request sees key 0: softmax over no key is not a number in some kernels.
    """
    batch = problem.sequences
    visible = np.zeros((batch, 1, problem.seq_q, problem.seq_kv), dtype=bool)
    places = [np.zeros((batch, longest), dtype=np.int64) for longest in (problem.seq_q, problem.seq_kv)]
    for b, (part, spans) in enumerate(zip(problem.parts, problem.spans, strict=True)):
        visible[b, 0, : part.seq_q, : part.seq_kv] = part.visible()[0]
        visible[b, 0, part.seq_q :, 0] = True
        for place, span in zip(places, spans, strict=True):
            place[b, : span.stop - span.start] = np.arange(span.start, span.stop)
    kv_places = places[1].ravel()
    if problem.page_size:
        kv_places = layouts.slots(problem)[kv_places]
    rows = np.flatnonzero(np.arange(problem.seq_q) < np.array([[part.seq_q] for part in problem.parts]))
    return _Plan(places[0].ravel(), kv_places, rows, visible)


def prepare(case: Case, device: str) -> Prepared:
    """Plan the batch; the call gathers q, k and v, pads, computes and packs the output."""
    import torch

    problem = case.problem
    tables, seconds = planned(partial(plan, problem), lambda tables: _on(device, tables), device)
    q_places, kv_places, rows, mask = tables
    attend = partial(
        torch.nn.functional.scaled_dot_product_attention,
        attn_mask=mask, scale=problem.scale, enable_gqa=problem.heads > problem.kv_heads,
    )  # fmt: skip

    def padded(tokens: Tensor, places: Tensor) -> Tensor:
        """[tokens, heads, width] -> [batch, heads, longest, width]."""
        return tokens.index_select(0, places).view(problem.sequences, -1, *tokens.shape[1:]).transpose(1, 2)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (kv.flatten(0, 1) if problem.page_size else kv[0].transpose(0, 1) for kv in (k, v))
        out = attend(padded(q[0].transpose(0, 1), q_places), padded(keys, kv_places), padded(values, kv_places))
        return out.transpose(1, 2).flatten(0, 1).index_select(0, rows).transpose(0, 1)[None]

    keys = sum(part.seq_kv for part in problem.parts)
    return Prepared(
        call=call,
        seconds=seconds,
        facts={"requests": "padded", "padding": 1 - keys / (problem.sequences * problem.seq_kv)},
        stored=partial(layouts.paged, problem) if problem.page_size else None,
    )


def _on(device: str, tables: _Plan) -> list[Tensor]:
    import torch

    return [torch.from_numpy(table).to(device) for table in tables]


def scratch_bytes(case: Case) -> int:
    """The padded q, k, v and out, the packed out, and the mask as booleans and as numbers."""
    problem, number = case.problem, case.problem.dtype.bytes
    rows, keys = problem.sequences * problem.seq_q, problem.sequences * problem.seq_kv
    width = problem.head_dim + problem.head_dim_v
    padded = (rows * problem.heads + keys * problem.kv_heads) * width * number
    mask = problem.sequences * problem.seq_q * problem.seq_kv * (1 + 2 * number)
    return (2 if case.mode.needs_grad else 1) * padded + mask + cost.output_bytes(problem, case.mode)


BACKENDS = {
    "sdpa:padded": Backend(
        name="sdpa:padded",
        summary="torch SDPA over requests padded to the longest",
        limits=dict.fromkeys(("cpu", "cuda"), Limits(dtypes=FLOATS, features=_FEATURES)),
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        pads=True,
        refuses=lambda case: [] if case.problem.requests else ["only a batch of requests is padded: use sdpa"],
    )
}
