"""Checks of a case before any timing and after the last timed call.

Outputs are compared with expected values. Faults that a correct output can hide are looked for as well: unwritten
elements, aliased or changed inputs, threads left spinning.
"""

import math
from pathlib import Path

from msgspec.structs import asdict, replace

from attnbench.attention import inputs
from attnbench.records.result import Status
from attnbench.worker import correctness, expected_values
from attnbench.worker.correctness import OutputVerdict
from attnbench.worker.expected_values import ExpectedValues
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.protocol import CaseVerified, RequestFailed, VerifyCase

POISONED_COPIES, POISONED_BYTES = 8, 64 * 1024**2
SPINNING_CORES = 0.5  # an idle worker that uses more CPU time than this disturbs the other arms


def verify(case: PreparedCase, request: VerifyCase) -> CaseVerified | RequestFailed:
    """Judge three calls: peaked inputs, the procedure's inputs, and these negated; with `brief`, only the second."""
    if request.peaked_directory:
        case.fill("peaked")
        judgement = _judge_call(case, expected_values.load(Path(request.peaked_directory)))
        if not judgement.ok:
            return _verdict(judgement, "peaked inputs: ")
        case.fill(case.procedure.inputs)
    case.expected = expected_values.load(Path(request.directory))
    if case.expected.digest != case.digest:
        digests = f"{case.digest} here, {case.expected.digest} for the reference"
        return RequestFailed(status=Status.ERROR, reason=f"inputs differ from those of the reference: digest {digests}")
    judgement = _judge_call(case, case.expected)
    if not judgement.ok or request.brief:
        return _verdict(judgement)
    if misuse := _misused_inputs(case):
        return _verdict(replace(judgement, ok=False, reason=misuse))
    case.negate()
    negated = _judge_call(case, case.expected)
    if not negated.ok:
        return _verdict(negated, "second call, with negated inputs: ")
    case.outputs = None
    if spinning := _spinning_threads():
        return RequestFailed(status=Status.ERROR, reason=spinning)
    return _verdict(judgement)


def check_last_output(case: PreparedCase) -> CaseVerified:
    """Judge the output of the last timed call."""
    assert case.expected
    return _verdict(_judge_outputs(case, case.expected), "last timed call: ")


def _judge_call(case: PreparedCase, expected: ExpectedValues) -> OutputVerdict:
    _poison_freed_memory(case)
    case.call()
    case.instrument.synchronize()
    return _judge_outputs(case, expected)


def _judge_outputs(case: PreparedCase, expected: ExpectedValues) -> OutputVerdict:
    outputs = case.named_outputs()
    for name, tensor in outputs.items():
        if tensor.device.type != case.q.device.type:
            reason = f"{name} is on {tensor.device}, the inputs are on {case.q.device}"
            return OutputVerdict(ok=False, reason=reason)
    return correctness.judge(expected, outputs, case.sign, case.backend.error_factor)


def _verdict(judgement: OutputVerdict, prefix: str = "") -> CaseVerified:
    reason = prefix + judgement.reason if judgement.reason else ""
    errors = {name: asdict(figures) for name, figures in judgement.errors.items()}
    return CaseVerified(ok=judgement.ok, reason=reason, errors=errors)


def _poison_freed_memory(case: PreparedCase) -> None:
    """Fill blocks of the outputs' sizes with NaN and free them, so that elements the kernel does not write stay NaN."""
    import torch

    problem = case.problem
    case.outputs = None
    shapes: list[tuple[int, ...]] = [(problem.batch, problem.heads, problem.seq_q, problem.head_dim_v)]
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


def _spinning_threads() -> str:
    """Why this idle process disturbs the other arms; empty if it does not."""
    from attnbench.machine.device.cpu import busy_threads

    if (cores := busy_threads()) <= SPINNING_CORES:
        return ""
    return f"keeps {cores:.1f} cores busy while idle: its threads spin after the call"
