"""Judges outputs of a case: of its verification, of the last call of every block, and of calls in a row.

A judgement against the reference costs more than most calls. An output with the bits of one that was judged right needs
no further judgement, so that most checks cost two sums over the outputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.worker import correctness
from attnbench.worker.correctness import OutputVerdict
from attnbench.worker.expected_values import ExpectedValues
from attnbench.worker.prepared_case import PreparedCase

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnbench.machine.device.instrument import BlockReading, Pace

# Calls in a row: at least as many as find a kernel that is wrong in every eighth call (docs/method.md).
MIN_IN_A_ROW, MAX_IN_A_ROW = 8, 64
VERIFYING_S = 0.02  # limit of the calls in a row that follow the verification
CHECKS_S, TIMING_SHARE = 0.01, 0.05  # the same after the rounds, beside a share of the seconds in settling and timing
MAX_KEPT = 4  # fingerprints; a kernel with more is not deterministic


class OutputChecks:
    """The outputs of one case that were judged right, by fingerprint, and the first wrong one."""

    def __init__(self, case: PreparedCase, expected: ExpectedValues) -> None:
        self.expected, self._case = expected, case
        self.wrong: OutputVerdict | None = None
        self.calls = 0  # that were checked
        self._in_a_row = 0
        self._right: dict[int, list[Fingerprint]] = {1: [], -1: []}  # by sign of the inputs
        self._timed_s = self._judging_s = 0.0  # judging: beyond the first judgement for each sign

    def judge(self) -> OutputVerdict:
        """Compare the outputs of a new call with the reference."""
        self._count()
        return self.judge_again()

    def judge_again(self) -> OutputVerdict:
        """Compare the outputs of a call that was checked before with the reference."""
        verdict = judge_outputs(self._case, self.expected)
        right = self._right[self._case.sign]
        if verdict.ok and len(right) < MAX_KEPT:
            right.append(Fingerprint(self._case.named_outputs()))
        return verdict

    def check_settled(self, pace: Pace) -> None:
        """Check the last call before the rounds."""
        self._timed_s += pace.settle_s
        if pace.settle_calls > 1:
            self._in_a_row = 0
        self.check_call("call before the rounds: ")

    def check_block(self, block: BlockReading) -> None:
        """Check the last call of a timed block."""
        self._timed_s += sum(block.values) * block.calls
        if block.calls * len(block.values) > 1:
            self._in_a_row = 0
        self.check_call("timed call: ")

    def check_call(self, place: str) -> None:
        """Check the outputs of the last call; of outputs whose bits differ, as many as the time allows."""
        if self.wrong or self._is_known():
            return
        is_first = not self._right[self._case.sign]
        if is_first or self._judging_s < self._limit_s:
            started = time.perf_counter()
            verdict = self.judge()
            self._judging_s += 0.0 if is_first else time.perf_counter() - started
            if not verdict.ok:
                self.wrong = replace(verdict, reason=place + verdict.reason)

    def check_after_verification(self) -> None:
        """Call and check up to MIN_IN_A_ROW times, where calls are short."""
        self._check_calls("further call: ", 0, MIN_IN_A_ROW, VERIFYING_S)

    def check_after_rounds(self) -> None:
        """Call and check from MIN_IN_A_ROW to MAX_IN_A_ROW times."""
        self._check_calls("call after the rounds: ", MIN_IN_A_ROW, MAX_IN_A_ROW, self._limit_s)

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
            self.check_call(place)
            if self.calls == checked:  # the bits differ, and the time for judging is used up
                return

    def _is_known(self) -> bool:
        """Whether the outputs of the last call have the bits of outputs that were judged right."""
        right = self._right[self._case.sign]
        known = bool(right) and right[0].fits(outputs := self._case.named_outputs()) and Fingerprint(outputs) in right
        if known:
            self._count()
        return known

    def _count(self) -> None:
        self.calls += 1
        self._in_a_row += 1


class Fingerprint:
    """Sums of the bits over the rows and over the columns of each output: small, exact, and fast to compute."""

    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        import torch

        self._kinds = _kinds(outputs)
        self._sums: list[Tensor] = []
        for tensor in outputs.values():
            # A copy: a view as integers refuses odd strides of dimensions of size 1, and odd offsets.
            rows = tensor.detach().clone(memory_format=torch.contiguous_format)
            wide = rows.shape[-1] * rows.element_size() % 8 == 0
            bits = rows.view(torch.int64) if wide else rows.view(torch.uint8).to(torch.int64)
            self._sums += [bits.sum(-1), bits.sum(-2)]

    def fits(self, outputs: Mapping[str, Tensor]) -> bool:
        """Whether these outputs have the same names, shapes, dtypes and devices."""
        return self._kinds == _kinds(outputs)

    def __eq__(self, other: object) -> bool:
        import torch

        return isinstance(other, Fingerprint) and all(map(torch.equal, self._sums, other._sums))

    __hash__ = None  # type: ignore[assignment]


def judge_outputs(case: PreparedCase, expected: ExpectedValues) -> OutputVerdict:
    """Judge the outputs of the last call, which must be on the device of the inputs."""
    outputs = case.named_outputs()
    for name, tensor in outputs.items():
        if tensor.device.type != case.q.device.type:
            reason = f"{name} is on {tensor.device}, the inputs are on {case.q.device}"
            return OutputVerdict(ok=False, reason=reason)
    return correctness.judge(expected, outputs, case.sign, case.backend.error_factor)


def _kinds(outputs: Mapping[str, Tensor]) -> list[tuple[str, torch.Size, torch.dtype, torch.device]]:
    return [(name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in outputs.items()]
