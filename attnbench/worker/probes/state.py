"""States of the process in which a kernel is called: modes of torch, streams, threads, forks, calls in between."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec.structs import replace

from attnbench.attention import inputs
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.inputs import torch_dtype
from attnbench.errors import ProblemError
from attnbench.records.case import Case
from attnbench.worker.prepared_case import PreparedCase, first_output
from attnbench.worker.probes import outcome
from attnbench.worker.probes.outcome import Judged, NotApplicableError, Output, Reaction, Variant

FORK_S = 10.0  # a child that takes longer hangs
SLEEP_CYCLES = 50_000_000  # of a GPU: some 30 ms

Call = Callable[[], Output]


def _judged(case: PreparedCase, around: Callable[[Call], Output]) -> Judged:
    """Judge the outputs of a call on the inputs of the case, made by `around`."""
    tensors = [tensor.detach() for tensor in case.qkv]

    def call() -> Output:
        with case.state.backend_code():
            return around(lambda: case.prepared.call(*tensors))

    return outcome.judged(case, outcome.own_inputs(case), call)


def _inside(case: PreparedCase, context: Callable[[], AbstractContextManager[object]]) -> Judged:
    def around(call: Call) -> Output:
        with context():
            return call()

    return _judged(case, around)


def inference_mode(case: PreparedCase) -> Judged:
    """Under torch.inference_mode."""
    import torch

    return _inside(case, torch.inference_mode)


def no_grad(case: PreparedCase) -> Judged:
    """Under torch.no_grad."""
    import torch

    return _inside(case, torch.no_grad)


def gradients(case: PreparedCase) -> Judged:
    """With inputs that require gradients."""
    import torch

    tensors = [tensor.detach().requires_grad_() for tensor in case.qkv]

    def call() -> Output:
        with torch.enable_grad():
            return case.attend(*tensors)

    return outcome.judged(case, outcome.own_inputs(case), call)


def autocast(case: PreparedCase) -> Judged:
    """Under torch.autocast to bf16, where the output may be bf16."""
    import torch

    original, kind = outcome.own_inputs(case), case.q.device.type
    outputs: list[Output] = []

    def around(call: Call) -> Output:
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16):
            outputs.append(call())
        return outputs[0]

    judged = _judged(case, around)
    if judged.outcome is not Reaction.WRONG or first_output(outputs[0]).dtype is not torch.bfloat16:
        return judged
    lower = replace(case.problem, dtype=Dtype.BF16)
    halves = {name: getattr(original, name).to(torch_dtype(Dtype.BF16)) for name in "qkv"}
    tensors = outcome.changed(original, **halves)
    return outcome.judge_output(case, outputs[0], tensors, lower)


def thread(case: PreparedCase) -> Judged:
    """From another thread than the one that prepared the call."""
    import torch

    def around(call: Call) -> Output:
        outputs: list[Output] = []
        errors: list[Exception] = []

        def target() -> None:
            try:
                with torch.no_grad():
                    outputs.append(call())
            except Exception as error:
                errors.append(error)

        other = threading.Thread(target=target)
        other.start()
        other.join()
        if errors:
            raise errors[0]
        return outputs[0]

    return _judged(case, around)


def fork(case: PreparedCase) -> Judged:
    """In a process that was forked after calls were made."""
    if case.q.device.type != "cpu":
        raise NotApplicableError("CUDA cannot be used after a fork")
    if not hasattr(os, "fork"):
        raise NotApplicableError("this system has no fork")
    with tempfile.TemporaryDirectory(prefix="attnbench-probe-") as folder:
        file = Path(folder) / "outputs.pt"
        return _judged(case, lambda call: _forked(call, file))


def _forked(call: Call, file: Path) -> Output:
    import torch

    child = os.fork()
    if not child:
        try:
            with torch.no_grad():
                torch.save(call(), file)
        finally:
            os._exit(0)
    deadline = time.monotonic() + FORK_S
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"the forked process gave no output within {FORK_S:.0f} s")
        time.sleep(0.005)
    if not file.exists():
        raise RuntimeError("the forked process failed")
    outputs: Output = torch.load(file)
    return outputs


def stream(case: PreparedCase) -> Judged:
    """On another CUDA stream than the default one, which writes the inputs just before the call."""
    import torch

    if case.q.device.type != "cuda":
        raise NotApplicableError("a CPU has no streams")
    right = [tensor.detach() for tensor in case.qkv]
    late = [torch.zeros_like(tensor) for tensor in right]

    def call() -> Output:
        side = torch.cuda.Stream(case.q.device)
        torch.cuda.synchronize(case.q.device)
        with torch.cuda.stream(side):
            torch.cuda._sleep(SLEEP_CYCLES)  # a kernel on the default stream would read zeros meanwhile
            for tensor, values in zip(late, right, strict=True):
                tensor.copy_(values)
            returned = outcome.attend(case, late)
        torch.cuda.synchronize(case.q.device)
        return returned

    return outcome.judged(case, outcome.own_inputs(case), call)


def between(case: PreparedCase) -> Judged:
    """Twice, with a call of other shapes in between."""
    problem = case.problem
    if problem.requests or problem.page_size:
        raise NotApplicableError("sequences of one length are needed")
    try:
        longer = replace(problem, seq_q=problem.seq_q + 3, seq_kv=problem.seq_kv + 3, batch=problem.batch + 1)
    except ProblemError as error:
        raise NotApplicableError(str(error)) from None
    other = Case(problem=longer, backend=case.case.backend, mode=Mode.FWD)
    if objections := case.backend.objections(other, case.q.device.type, case.instrument.capability):
        raise NotApplicableError("; ".join(objections))
    tensors = inputs.make(longer, case.procedure.seed)

    def call() -> Output:
        outcome.attend(case, case.qkv)
        outcome.other_call(case, other, tensors)
        return outcome.attend(case, case.qkv)

    return outcome.judged(case, outcome.own_inputs(case), call)


def _variant(run: Callable[[PreparedCase], Judged], *sources: str) -> Variant:
    return Variant(what=outcome.words(run), run=run, sources=sources)


VARIANTS = {
    "inference_mode": _variant(inference_mode, "https://github.com/unslothai/unsloth/issues/2434"),
    "no_grad": _variant(no_grad, "https://github.com/Dao-AILab/flash-attention/pull/1383"),
    "gradients": _variant(gradients, "https://github.com/Dao-AILab/flash-attention/pull/1383"),
    "autocast": _variant(autocast, "https://github.com/huggingface/diffusers/issues/14104"),
    "thread": _variant(thread, "https://github.com/sgl-project/sglang/pull/12788"),
    "fork": _variant(fork, "https://github.com/pytorch/pytorch/issues/17199"),
    "stream": _variant(
        stream,
        "https://github.com/Dao-AILab/flash-attention/pull/2505",
        "https://github.com/NVIDIA/cudnn-frontend/pull/483",
    ),
    "between": _variant(between, "https://github.com/pytorch/pytorch/issues/139462"),
}
