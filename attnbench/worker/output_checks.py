"""Judges outputs of a case: of its verification, of a call of every block, and of calls in a row.

A judgement against the reference costs more than most calls. An output with the bits of one that was judged right, once
the transformation of its inputs is undone, needs no further judgement: most checks cost a copy and two sums.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.attention.transformations import Transformation
from attnbench.worker import correctness
from attnbench.worker.correctness import OutputVerdict
from attnbench.worker.expected_values import ExpectedValues
from attnbench.worker.memory_of_inputs import MemoryOfInputs
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.unfinished_outputs import call_and_judge, finished, outputs_on_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnbench.machine.device.instrument import BlockReading, Pace

# Calls in a row: at least as many as find a kernel that is wrong in every eighth call (docs/method.md).
MIN_IN_A_ROW, MAX_IN_A_ROW = 8, 64
BRIEF_IN_A_ROW = 3  # for a case whose code was verified in full before, with more calls
VERIFYING_S = 0.02  # limit of the calls in a row that follow the verification
CHECKS_S, TIMING_SHARE = 0.01, 0.05  # the same after the rounds, beside a share of the seconds in settling and timing
MOVES_SHARE = 0.02  # of the same seconds, for transformations that move numbers, and judgements that they cause
STEADY = 4.0  # times the error of the plain formula, that another order of sums may cause
NEAR = 0.1  # of the size of an output: other outputs are judged, whatever time is left
REPEATED = "the output equals that of an earlier call on other inputs: the kernel may cache by address"
MAX_KEPT = 4  # fingerprints; a kernel with more is not deterministic


class OutputChecks:
    """The outputs of one case that were judged right, by fingerprint, and the first wrong one."""

    def __init__(self, case: PreparedCase, expected: ExpectedValues, earlier: EarlierOutputs | None = None) -> None:
        self.expected, self._case, self._earlier = expected, case, earlier or EarlierOutputs(case)
        self.wrong: OutputVerdict | None = None
        self.calls = 0  # that were checked
        self._in_a_row = 0
        self._right: list[Fingerprint] = []  # since the order of sums was changed
        self._order = case.orders
        self._moves_s = self._move_s = 0.0  # in transformations that move numbers, with their judgements; in one
        self._timed_s = self._judging_s = self._judgement_s = 0.0  # judging: beyond the first judgements
        self.memory = MemoryOfInputs(case)

    def judge(self) -> OutputVerdict:
        """Compare the outputs of a new call with the reference."""
        self._count()
        return self.judge_again()

    def judge_again(self) -> OutputVerdict:
        """Compare the outputs of a call that was checked before with the reference."""
        started = time.perf_counter()
        verdict = judge_outputs(self._case, self.expected, self._earlier)
        self._forget_other_orders()
        if verdict.ok and len(self._right) < MAX_KEPT:
            self._right.append(Fingerprint(self._case.named_outputs(), self._case.undo))
        self._judgement_s = time.perf_counter() - started
        return verdict

    @property
    def is_steady(self) -> bool:
        """Whether the order of a sum changes no output by much: with large logits it could break the rule by chance."""
        tolerances = [self.expected.tolerances[name] for name in self.expected.tolerances.keys() - {"lse", "weights"}]
        return all(
            STEADY * each.plain_max <= each.rounding and STEADY * each.plain_rms <= 2 * each.rms_error
            for each in tolerances
        )

    def transform_inputs(self, seed: int) -> None:
        """Transform the inputs in every way that keeps the outputs known."""
        self._case.change(seed, moves=True, reorder=self.is_steady)
        self._move_s = self._case.change_s

    def change_inputs(self, seed: int) -> None:
        """Transform the inputs by more than factors, if time is left for that and for the judgement that follows."""
        reorder = self.is_steady
        moves = self._moves_s + self._move_s + (self._judgement_s if reorder else 0.0) <= MOVES_SHARE * self._timed_s
        self._case.change(seed, moves=moves, reorder=moves and reorder)
        self._moves_s += self._case.change_s if moves else 0.0

    def check_settled(self, pace: Pace) -> None:
        """Check the last call before the rounds."""
        self._timed_s += pace.settle_s
        self._check_timed("call before the rounds: ", pace.settle_calls)

    def check_block(self, block: BlockReading) -> None:
        """Check the call of a timed block that was drawn."""
        self._timed_s += sum(block.values) * block.calls
        self.memory.add_block(block)
        self._check_timed("timed call: ", block.calls * len(block.values))

    def _check_timed(self, place: str, calls: int) -> None:
        self.check_call(place)
        if calls > 1:  # the checked one may be any of them
            self._in_a_row = 0

    def check_call(self, place: str) -> None:
        """Check the outputs of the last call; of outputs whose bits differ, as many as the time allows."""
        if self.wrong or self._is_known():
            return
        is_first = not self._right
        if is_first or self._judging_s < self._limit_s or self._is_far():
            verdict = self.judge()
            if is_first:
                self._moves_s += self._judgement_s
            else:
                self._judging_s += self._judgement_s
            if not verdict.ok:
                verdict = finished(self._case, verdict)
                self.wrong = replace(verdict, reason=place + verdict.reason)

    def check_after_verification(self) -> None:
        """Call and check up to MIN_IN_A_ROW times, where calls are short."""
        self._check_calls("further call: ", 0, MIN_IN_A_ROW, VERIFYING_S)

    def check_after_rounds(self, seed: int, brief: bool = False) -> None:
        """Call and check from MIN_IN_A_ROW to MAX_IN_A_ROW times, and look for a memory of inputs; in brief less."""
        counts = (BRIEF_IN_A_ROW, BRIEF_IN_A_ROW) if brief else (MIN_IN_A_ROW, MAX_IN_A_ROW)
        self._check_calls("call after the rounds: ", *counts, self._limit_s)
        if brief or self.wrong:
            return
        if reason := self.memory.objection(seed):
            self.wrong = OutputVerdict(ok=False, reason=reason)
        else:
            self._check_finished(seed)

    def _check_finished(self, seed: int) -> None:
        """Check a call on changed inputs, which memory of earlier outputs does not fit, as soon as it has returned."""
        self._case.change(seed, moves=False, reorder=False)
        verdict = call_and_judge(self._case, self._case.state.timed_calls(), self._judge_unknown)
        if not verdict.ok:
            self.wrong = replace(verdict, reason=f"call after the rounds: {verdict.reason}")

    def _judge_unknown(self) -> OutputVerdict:
        return OutputVerdict(ok=True) if self._is_known() else self.judge()

    @property
    def _limit_s(self) -> float:
        return CHECKS_S + TIMING_SHARE * self._timed_s

    def _check_calls(self, place: str, minimum: int, maximum: int, limit_s: float) -> None:
        end = time.perf_counter() + limit_s
        while not self.wrong and self._in_a_row < maximum:
            if self._in_a_row >= minimum and time.perf_counter() + self._case.call_s > end:
                return
            checked = self.calls
            self._case.call_once(self._case.state.timed_calls())
            self.memory.add_call(self._case.call_s)
            self.check_call(place)
            if self.calls == checked:  # the bits differ, and the time for judging is used up
                return

    def _is_known(self) -> bool:
        """Whether the outputs of the last call have the bits of outputs that were judged right."""
        self._forget_other_orders()
        right, outputs = self._right, self._case.named_outputs()
        known = bool(right) and right[0].fits(outputs) and Fingerprint(outputs, self._case.undo) in right
        if known:
            self._count()
        return known

    def _forget_other_orders(self) -> None:
        if self._order != self._case.orders:
            self._right, self._order = [], self._case.orders

    def _is_far(self) -> bool:
        """Whether the outputs of the last call are not even near right ones; dropout alone can make them so."""
        right, outputs = self._right[0], self._case.named_outputs()
        if self._case.problem.dropout or not right.fits(outputs):
            return not self._case.problem.dropout
        return not Fingerprint(outputs, self._case.undo).is_near(right)

    def _count(self) -> None:
        self.calls += 1
        self._in_a_row += 1


class Fingerprint:
    """Sums of the bits over the rows and over the columns of each output: small, exact, and fast to compute."""

    def __init__(self, outputs: Mapping[str, Tensor], undo: Transformation) -> None:
        """`undo`: of the transformation of the inputs."""
        import torch

        self._kinds = _kinds(outputs)
        self._sums: list[Tensor] = []
        self._row_sums: list[Tensor] = []  # of the numbers, not of their bits
        for name, tensor in outputs.items():
            # A copy: a view as integers refuses odd strides of dimensions of size 1, and odd offsets.
            rows = undo.applied(name, tensor.detach()).contiguous(memory_format=torch.contiguous_format)
            rows.add_(0.0)  # there is one zero, whatever sign the transformation gave it
            wide = rows.shape[-1] * rows.element_size() % 8 == 0
            bits = rows.view(torch.int64) if wide else rows.view(torch.uint8).to(torch.int64)
            self._sums += [bits.sum(-1), bits.sum(-2)]
            self._row_sums.append(rows.sum(-1, dtype=torch.float32))

    def fits(self, outputs: Mapping[str, Tensor]) -> bool:
        """Whether these outputs have the same names, shapes, dtypes and devices."""
        return self._kinds == _kinds(outputs)

    def is_near(self, other: Fingerprint) -> bool:
        """Whether the sums of rows differ by less than a tenth of their size; infinite ones are left out."""
        pairs = (
            (ours.nan_to_num(posinf=0.0, neginf=0.0), theirs.nan_to_num(posinf=0.0, neginf=0.0))
            for ours, theirs in zip(self._row_sums, other._row_sums, strict=True)
        )
        return all(float((ours - theirs).norm()) <= NEAR * float(theirs.norm()) for ours, theirs in pairs)

    def __eq__(self, other: object) -> bool:
        import torch

        return isinstance(other, Fingerprint) and all(map(torch.equal, self._sums, other._sums))

    __hash__ = None  # type: ignore[assignment]


class EarlierOutputs:
    """Outputs of calls on inputs before and after transformations, which change every output."""

    def __init__(self, case: PreparedCase) -> None:
        self._case, self._repeated = case, False
        self._known: list[tuple[int, Fingerprint]] = []  # with the transformations before

    def add(self) -> None:
        """Note the outputs of the last call."""
        outputs = outputs_on_device(self._case)
        if not outputs or any(tensor.ndim < 2 for tensor in outputs.values()):
            return
        number, new = self._case.inputs_number, Fingerprint(outputs, Transformation(maps={}))
        same = any(other != number and before.fits(outputs) and before == new for other, before in self._known)
        self._repeated |= same and all(bool(tensor.min() < tensor.max()) for tensor in outputs.values())
        if len(self._known) < MAX_KEPT:
            self._known.append((number, new))

    def explained(self, verdict: OutputVerdict) -> OutputVerdict:
        """The verdict; a wrong one says if outputs were repeated."""
        if verdict.ok or not self._repeated or REPEATED in verdict.reason:
            return verdict
        return replace(verdict, reason=f"{verdict.reason}; {REPEATED}")


def judge_outputs(case: PreparedCase, expected: ExpectedValues, earlier: EarlierOutputs | None = None) -> OutputVerdict:
    """Judge the outputs of the last call, which must be on the device of the inputs."""
    verdict = _judge_placed(case, expected)
    if earlier is None:
        return verdict
    earlier.add()
    return earlier.explained(verdict)


def _judge_placed(case: PreparedCase, expected: ExpectedValues) -> OutputVerdict:
    outputs = case.named_outputs()
    for name, tensor in outputs.items():
        if tensor.device.type != case.q.device.type:
            reason = f"{name} is on {tensor.device}, the inputs are on {case.q.device}"
            return OutputVerdict(ok=False, reason=reason)
    return correctness.judge(expected, outputs, case.undo, case.backend.error_factor)


def _kinds(outputs: Mapping[str, Tensor]) -> list[tuple[str, torch.Size, torch.dtype, torch.device]]:
    return [(name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in outputs.items()]
