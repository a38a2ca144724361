"""Checks of a case before any timing and after the last timed call.

Outputs are compared with expected values. Faults that a correct output can hide are looked for as well: unwritten
elements, aliased or changed inputs, threads left spinning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import asdict, replace

from attnbench.attention import cost, inputs
from attnbench.records.result import Status
from attnbench.worker import expected_values
from attnbench.worker.correctness import OutputVerdict
from attnbench.worker.expected_values import ExpectedValues
from attnbench.worker.output_checks import REPEATED, EarlierOutputs, OutputChecks, judge_outputs
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.protocol import CaseVerified, CheckNewInputs, CheckOutput, RequestFailed, VerifyCase
from attnbench.worker.unfinished_outputs import call_and_judge

if TYPE_CHECKING:
    from torch import Tensor

POISONED_COPIES, POISONED_BYTES = 8, 64 * 1024**2
MAX_RENEWED_BYTES = 1024**3  # of inputs: a kernel that keeps tensors does so for smaller ones too
KEPT = "the kernel reads tensors of an earlier call, which it has kept"
SPINNING_CORES = 0.5  # an idle worker that uses more CPU time than this disturbs the other arms


def verify(case: PreparedCase, request: VerifyCase) -> tuple[CaseVerified | RequestFailed, OutputChecks | None]:
    """Judge calls with stressing inputs, the procedure's inputs, and these transformed; with `brief`, only the second.

    Stressing inputs are the reason where the procedure's inputs are right.

    The checks go on after the verification, if that got as far as the procedure's inputs.
    """
    reply, checks = _verify(case, request)
    if isinstance(reply, CaseVerified) and not reply.ok and case.prepared.hint:
        reply = msgspec.structs.replace(reply, reason=f"{reply.reason}; {case.prepared.hint}")
    return reply, checks


def _verify(case: PreparedCase, request: VerifyCase) -> tuple[CaseVerified | RequestFailed, OutputChecks | None]:
    peaked = {"peaked": request.peaked_directory} if request.peaked_directory else {}
    stressing = peaked | request.further_directories
    earlier = EarlierOutputs(case)
    renews = bool(stressing) and cost.input_bytes(case.problem) <= MAX_RENEWED_BYTES
    old = case.renew_inputs() if renews else ()

    def judge(distribution: str) -> OutputVerdict:
        case.fill(distribution)
        values = expected_values.load(Path(stressing[distribution]))
        return _judge_call(case, partial(judge_outputs, case, values, earlier))

    verdicts = ((distribution, judge(distribution)) for distribution in stressing)
    failing, stressed = next(((name, verdict) for name, verdict in verdicts if not verdict.ok), ("", None))
    if stressing:
        case.fill(case.procedure.inputs)
    expected = expected_values.load(Path(request.directory))
    if objection := _other_inputs(case.digest, expected):
        return objection, None
    checks = OutputChecks(case, expected, earlier)
    judgement = _judge_call(case, checks.judge)
    if judgement.ok and not stressed:
        if request.brief:
            return _verdict(judgement), checks
        return _verify_further(case, checks, judgement, request.seed, old), checks
    checks.transform_inputs(request.seed)  # values that no earlier call has seen: a cache then repeats its output
    _judge_call(case, checks.judge)
    if not judgement.ok or not stressed:
        return _verdict(earlier.explained(judgement)), checks
    return _judged_again(earlier.explained(stressed), failing, lambda: judge(failing).ok, case, old), None


def _judged_again(
    stressed: OutputVerdict, failing: str, is_right: Callable[[], bool], case: PreparedCase, old: Sequence[Tensor]
) -> CaseVerified:
    """The verdict on a kernel that is wrong on these inputs alone; `is_right`: whether another call on them is."""
    if REPEATED not in stressed.reason:
        if is_right():
            return _verdict(stressed, f"some calls, as one on {failing} inputs that is right when it is repeated: ")
        stressed = _explained(stressed, is_right, case, old)
    return _verdict(stressed, f"{failing} inputs: ")


def _explained(
    wrong: OutputVerdict, is_right: Callable[[], bool], case: PreparedCase, old: Sequence[Tensor]
) -> OutputVerdict:
    """The verdict, which says if another call is right once the old tensors hold the present numbers."""
    for tensor, new in zip(old, case.qkv, strict=False):
        tensor.data.copy_(new.data)
    return replace(wrong, reason=f"{wrong.reason}; {KEPT}") if old and is_right() else wrong


def _verify_further(
    case: PreparedCase, checks: OutputChecks, judgement: OutputVerdict, seed: int, old: Sequence[Tensor]
) -> CaseVerified | RequestFailed:
    """Look for faults that the right output of one call can hide."""
    from attnbench.machine.device.cpu import busy_threads

    if misuse := _misused_inputs(case):
        return _verdict(replace(judgement, ok=False, reason=misuse))
    checks.transform_inputs(seed)
    transformed = _judge_call(case, checks.judge)
    if not transformed.ok:
        if REPEATED not in transformed.reason:
            transformed = _explained(transformed, lambda: _judge_call(case, checks.judge).ok, case, old)
        return _verdict(transformed, "second call, with transformed inputs: ")
    checks.check_after_verification()
    if checks.wrong:
        return _verdict(checks.wrong)
    case.outputs = None
    idle_cores = busy_threads()
    if idle_cores > SPINNING_CORES:
        reason = f"keeps {idle_cores:.1f} cores busy while idle: its threads spin after the call"
        return RequestFailed(status=Status.ERROR, reason=reason)
    return msgspec.structs.replace(_verdict(judgement), idle_cores=idle_cores)


def check_after_rounds(checks: OutputChecks, request: CheckOutput) -> CaseVerified:
    """Judge a call of the last block, and check further calls; an earlier timed call that was wrong counts as well."""
    judgement = checks.wrong or checks.judge_again()
    if not judgement.ok:
        return _verdict(judgement, "" if checks.wrong else "timed call of the last block: ")
    checks.check_after_rounds(request.seed, request.brief)
    return _verdict(checks.wrong or judgement)


def check_new_inputs(case: PreparedCase, checks: OutputChecks, request: CheckNewInputs) -> CaseVerified | RequestFailed:
    """Judge a call on inputs of another seed, and compare the times of calls on new and on seen inputs."""
    values = case.fill(request.inputs, request.seed)
    expected = expected_values.load(Path(request.directory))
    if objection := _other_inputs(inputs.digest(values), expected):
        return objection
    judgement = _judge_call(case, lambda: judge_outputs(case, expected))
    if judgement.ok and (reason := checks.memory.objection(request.seed, suspected=True)):
        judgement = replace(judgement, ok=False, reason=reason)
    case.fill(case.procedure.inputs)
    return _verdict(judgement, "new inputs: ")


def _other_inputs(digest: str, expected: ExpectedValues) -> RequestFailed | None:
    """A failure if the expected values are those of other inputs."""
    if expected.digest == digest:
        return None
    reason = f"inputs differ from those of the reference: digest {digest} here, {expected.digest} for the reference"
    return RequestFailed(status=Status.ERROR, reason=reason)


def _judge_call(case: PreparedCase, judge: Callable[[], OutputVerdict]) -> OutputVerdict:
    _poison_freed_memory(case)
    return call_and_judge(case, case.state.backend_code(), judge)


def _verdict(judgement: OutputVerdict, prefix: str = "") -> CaseVerified:
    reason = prefix + judgement.reason if judgement.reason else ""
    errors = {name: asdict(figures) for name, figures in judgement.errors.items()}
    return CaseVerified(ok=judgement.ok, reason=reason, errors=errors)


def _poison_freed_memory(case: PreparedCase) -> None:
    """Fill blocks of the outputs' sizes with NaN and free them, so that elements the kernel does not write stay NaN."""
    import torch

    problem = case.problem
    case.outputs = None
    shapes: list[tuple[int, ...]] = [(*problem.shape_q, problem.head_dim_v)]
    if case.mode.needs_grad:
        shapes += [tuple(tensor.shape) for tensor in case.qkv]
    dtype = inputs.torch_dtype(problem.dtype.out)
    blocks = []
    for shape in shapes:
        # An allocator keeps several free blocks of a small size and may return any of them.
        copies = max(1, min(POISONED_COPIES, POISONED_BYTES // max(1, 4 * math.prod(shape))))
        blocks += [torch.full(shape, float("nan"), dtype=dtype, device=case.q.device) for _ in range(copies)]
    del blocks


def _misused_inputs(case: PreparedCase) -> str:
    """Why the last call misused its inputs: an output aliases one, or one was changed. Empty if neither."""
    import torch

    tensors = dict(zip("qkv", case.qkv, strict=True))
    owners = {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors.items()}
    for name, tensor in case.named_outputs().items():
        if owner := owners.get(tensor.untyped_storage().data_ptr()):
            return f"{name} shares the memory of {owner}: a result must not alias an input"
    originals = inputs.make(case.problem, case.procedure.seed, case.procedure.inputs)
    for name, tensor in tensors.items():
        original = case.place(getattr(originals, name), name)
        # Compared as bytes, which works for fp8 and NaN too.
        if not tensor.detach().view(torch.uint8).equal(original.view(torch.uint8)):
            return f"{name} was changed by the call"
    return ""
