"""Infinities in a bias tensor: keys hidden by -inf, a row of -inf alone, and +inf.

A row of -inf alone sees no key: its output is 0. A logit of +inf is the limit of a growing one: the output is the value
of its key. The plain formula gives NaN for both; that is an outcome of its own if nothing else of the output changes.
"""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from attnbench.attention.biases import BiasedProblem, Constant
from attnbench.attention.choices import Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.records.case import Case
from attnbench.worker.probes import outcome
from attnbench.worker.probes.outcome import Judged, NotApplicableError, Reaction, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.worker.prepared_case import PreparedCase

EVERY = 3  # rows of which one has infinities alone


class Infinities(StrEnum):
    """Where a bias is infinite."""

    HALF = "half"  # -inf for half of the keys: the first half in even rows, the second one in odd rows
    ROW = "row"  # -inf for every key of some rows
    KEY = "key"  # +inf for the middle key of these rows
    LIMIT = "limit"  # -inf for every key of these rows but the middle one


class InfiniteBias(Constant, frozen=True, kw_only=True):
    """A bias of 0 and infinities."""

    word = "dense_bias"
    infinities: Infinities

    def values(self, problem: BiasedProblem, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        import torch

        rows, keys, middle = i[:, None], j[None, :], problem.seq_kv // 2
        chosen = rows % EVERY == 0
        infinite = {
            Infinities.HALF: (keys < middle) == (rows % 2 == 0),
            Infinities.ROW: chosen.expand(-1, len(j)),
            Infinities.KEY: chosen & (keys == middle),
            Infinities.LIMIT: chosen & (keys != middle),
        }[self.infinities]
        bias = torch.zeros(1, len(i), len(j), dtype=torch.float64, device="cpu")
        return bias.masked_fill(infinite, float("inf") if self.infinities is Infinities.KEY else float("-inf"))


class InfinitelyBiased(Problem, frozen=True, kw_only=True):
    """A problem whose bias has infinities."""

    infinities: Infinities

    @property
    def bias(self) -> InfiniteBias:
        return InfiniteBias(dense=True, infinities=self.infinities)


def _infinite(case: PreparedCase, infinities: Infinities) -> Judged:
    problem = case.problem
    if problem.requests or problem.page_size or problem.returns is not Returns.OUT or problem.weighting != "softmax":
        raise NotApplicableError("made for the output of softmax, with sequences of one length")
    if problem.seq_kv < 2:
        raise NotApplicableError("more than one key is needed")
    fields = asdict(problem) | {"mask": "none"}
    other = Case(problem=InfinitelyBiased(**fields, infinities=infinities), backend=case.case.backend, mode=Mode.FWD)
    if objections := case.backend.objections(other, case.q.device.type, case.instrument.capability):
        raise NotApplicableError("; ".join(objections))
    expected = InfinitelyBiased(**fields, infinities=Infinities.LIMIT if infinities is Infinities.KEY else infinities)
    tensors = outcome.own_inputs(case)
    judged = outcome.judged(case, tensors, lambda: outcome.other_call(case, other, tensors), expected)
    if judged.outcome is not Reaction.WRONG or infinities is Infinities.HALF:
        return judged
    rows = case.named_outputs()["out"][:, :, ::EVERY]
    if not rows.isnan().all():
        return judged
    values = tensors.v[:, :, problem.seq_kv // 2, None].repeat_interleave(problem.heads // problem.kv_heads, 1)
    rows.copy_(values if infinities is Infinities.KEY else values.new_zeros(()))
    assert case.outputs
    judged = outcome.judge_output(case, case.outputs[0], tensors, expected)
    return Judged(Reaction.NAN) if judged.outcome is Reaction.RIGHT else judged


def _variant(infinities: Infinities, what: str, *sources: str) -> Variant:
    return Variant(what=what, run=partial(_infinite, infinities=infinities), sources=sources)


VARIANTS = {
    "bias_half": _variant(
        Infinities.HALF,
        "a bias of -inf hides half of the keys of each row, whole tiles at either end among them",
        "https://github.com/pytorch/pytorch/issues/127055",
    ),
    "bias_row": _variant(
        Infinities.ROW,
        "a bias of -inf for every key of some rows, whose output is then 0",
        "https://github.com/ROCm/TransformerEngine/pull/556",
        "https://github.com/flashinfer-ai/flashinfer/pull/4401",
    ),
    "bias_key": _variant(
        Infinities.KEY,
        "a bias of +inf for one key of some rows, whose output is then the value of that key",
        "https://github.com/lucidrains/memory-compressed-attention/issues/2",
    ),
}
