"""The child process of one arm: prepare, verify, settle, time, measure. It answers on a pipe of its own.

It keeps one case at a time. Whatever the backend raises becomes a `Failed` message: this loop is the one place where
every exception is caught. What it cannot catch (a crash, a hang) the runner sees from outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from attnbench import arm, backends, protocol, verify
from attnbench.attention import inputs as made
from attnbench.backends import Backend
from attnbench.errors import UnknownNameError
from attnbench.loaded import Loaded
from attnbench.protocol import Failed
from attnbench.result import Environment, Status

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.device import Instrument, Reading

TRACE_LINES = 30
POISONED_COPIES, POISONED_BYTES = 8, 64 * 1024**2
SPINNING_CORES = 0.5  # an idle worker that burns more than this disturbs the others


class Session:
    """What this process is and holds between messages."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.instrument: Instrument | None = None
        self.loaded: Loaded | None = None

    def answer(self, message: protocol.Request) -> protocol.Reply:
        """Do what the message asks for."""
        return getattr(self, "on_" + type(message).__name__.lower())(message)  # type: ignore[no-any-return]

    def on_open(self, message: protocol.Open) -> protocol.Reply:
        """Import everything, look at the device, and say whether the backend can run on it."""
        if message.version != protocol.VERSION:
            return protocol.Opened(unavailable=f"speaks protocol {protocol.VERSION}, was asked for {message.version}")
        if not message.device:
            import torch

            torch.set_num_threads(len(message.cpus) or 1)
            return protocol.Opened()
        from attnbench.device import instrument

        device = arm.parse_device(message.device)
        try:
            self.instrument = instrument(device)
        except RuntimeError as error:
            return protocol.Opened(unavailable=str(error))
        if message.memory_bytes and device.kind == "cpu":
            resource.setrlimit(resource.RLIMIT_DATA, (message.memory_bytes, resource.RLIM_INFINITY))
        try:
            self.backend = backends.load(message.backend) if message.backend else None
        except UnknownNameError as error:  # another tree may lack what this one has
            return protocol.Opened(unavailable=str(error))
        unavailable = self._unavailable(device.kind) if self.backend else ""
        started = time.perf_counter()
        self.instrument.warm()
        warm_s = time.perf_counter() - started
        _pin(message.cpus)  # not before: workers that start together import on all cores
        return protocol.Opened(
            environment=self._environment(),
            capability=self.instrument.capability,
            unavailable=unavailable,
            warm_s=warm_s,
        )

    def _environment(self) -> Environment:
        assert self.instrument
        return self.instrument.environment()

    def _unavailable(self, kind: str) -> str:
        assert self.backend
        assert self.instrument
        if kind not in self.backend.limits:
            return f"runs on {', '.join(self.backend.limits)}, not on {kind}"
        for module in self.backend.requires:
            try:
                __import__(module)
            except Exception as error:  # a broken package may raise anything; it is unavailable, and says why
                hint = f" (install: {self.backend.install})" if self.backend.install else ""
                return f"import {module}: {_one_line(error)}{hint}"
        if self.backend.probe is None:
            return ""
        return self.backend.probe(self.instrument.torch_device) or ""

    def on_expect(self, message: protocol.Expect) -> protocol.Reply:
        started = time.perf_counter()
        expected = verify.expect(
            message.problem, message.mode, message.seed, message.inputs, Path(message.directory), message.budget_s
        )
        return protocol.Expected(share=expected.share, seconds=time.perf_counter() - started)

    def on_prepare(self, message: protocol.Prepare) -> protocol.Reply:
        assert self.backend
        assert self.instrument
        self._forget()
        kind = self.instrument.torch_device.partition(":")[0]
        if objections := self.backend.objections(message.case, kind, self.instrument.capability):
            return Failed(status=Status.UNSUPPORTED, reason="; ".join(objections))
        if reason := self.instrument.refuses(message.procedure.timing):
            return Failed(status=Status.UNAVAILABLE, reason=reason)
        started = time.perf_counter()
        loaded = Loaded(message.case, message.procedure, self.backend, self.instrument)
        self.instrument.synchronize()
        held = self.instrument.allocated()
        prepared_at = time.perf_counter()
        loaded.call()
        self.instrument.synchronize()
        first_call_s = time.perf_counter() - prepared_at
        self.loaded = loaded
        facts = dict(loaded.prepared.facts)
        if held is not None:
            loaded.outputs = None  # what stays is no result: workspaces that libraries keep
            facts["memory_first_kept"] = (self.instrument.allocated() or 0) - held
        late = loaded.prepared.late_facts() if loaded.prepared.late_facts else {}
        seconds = {"prepare": prepared_at - started, "first_call": first_call_s, **loaded.prepared.seconds}
        if (compile_s := late.pop("compile_s", None)) is not None:
            seconds["compile"] = compile_s
        facts.update(late, input_digest=loaded.digest, layout=self.backend.layout.value)
        return protocol.Prepared(seconds=seconds, facts=facts)

    def on_verify(self, message: protocol.Verify) -> protocol.Reply:
        """Peaked inputs, then the procedure's own, then these negated: three calls, each judged. In brief: one."""
        loaded = self._case()
        if message.peaked_directory:
            loaded.fill("peaked")
            verdict = self._judge(loaded, verify.load(Path(message.peaked_directory)))
            if not verdict.ok:
                return _verified(verdict, "peaked inputs: ")
            loaded.fill(loaded.procedure.inputs)
        loaded.expected = verify.load(Path(message.directory))
        if loaded.expected.digest != loaded.digest:
            digests = f"{loaded.digest} here, {loaded.expected.digest} for the reference"
            return Failed(status=Status.ERROR, reason=f"inputs differ from those of the reference: digest {digests}")
        verdict = self._judge(loaded, loaded.expected)
        if not verdict.ok or message.brief:
            return _verified(verdict)
        if misuse := self._misuse(loaded):
            return protocol.Verified(ok=False, reason=misuse, errors=_figures(verdict))
        loaded.negate()
        again = self._judge(loaded, loaded.expected)
        if not again.ok:
            return _verified(again, "second call, with negated inputs: ")
        loaded.outputs = None
        if (spinning := self._spinning()) > SPINNING_CORES:
            reason = f"keeps {spinning:.1f} cores busy while idle: threads of it spin after the call"
            return Failed(status=Status.ERROR, reason=reason)
        return _verified(verdict)

    def _judge(self, loaded: Loaded, expected: verify.Expected) -> verify.Judgement:
        assert self.instrument
        self._poison(loaded)
        loaded.call()
        self.instrument.synchronize()
        return self._judge_outputs(loaded, expected)

    def _judge_outputs(self, loaded: Loaded, expected: verify.Expected) -> verify.Judgement:
        assert self.backend
        outputs = loaded.named_outputs()
        for name, tensor in outputs.items():
            if str(tensor.device.type) != loaded.q.device.type:
                reason = f"{name} is on {tensor.device}, the inputs are on {loaded.q.device}"
                return verify.Judgement(ok=False, reason=reason)
        return verify.judge(expected, outputs, loaded.sign, self.backend.error_factor)

    def _poison(self, loaded: Loaded) -> None:
        """Fill blocks of the outputs' sizes with NaN and free them: what a kernel does not write stays NaN."""
        import torch

        problem = loaded.case.problem
        loaded.outputs = None
        shapes: list[tuple[int, ...]] = [(problem.batch, problem.heads, problem.seq_q, problem.head_dim_v)]
        if loaded.case.mode.needs_grad:
            shapes += [tuple(tensor.shape) for tensor in (loaded.q, loaded.k, loaded.v)]
        dtype = made.torch_dtype(problem.dtype.out)
        blocks = []
        for shape in shapes:
            # An allocator has several free blocks of a small size, and may hand out any of them.
            copies = max(1, min(POISONED_COPIES, POISONED_BYTES // max(1, 4 * math.prod(shape))))
            blocks += [torch.full(shape, float("nan"), dtype=dtype, device=loaded.q.device) for _ in range(copies)]
        del blocks

    def _misuse(self, loaded: Loaded) -> str:
        """What a right output can still hide: inputs changed, or given back."""
        inputs = {"q": loaded.q, "k": loaded.k, "v": loaded.v}
        owners = {tensor.untyped_storage().data_ptr(): name for name, tensor in inputs.items()}
        for name, tensor in loaded.named_outputs().items():
            if owner := owners.get(tensor.untyped_storage().data_ptr()):
                return f"{name} shares the memory of {owner}: a result must not alias an input"
        plain = made.make(loaded.case.problem, loaded.procedure.seed, loaded.procedure.inputs)
        for name, tensor in inputs.items():
            if not _same(tensor, loaded.place(getattr(plain, name), name)):
                return f"{name} was changed by the call"
        return ""

    def _spinning(self) -> float:
        from attnbench.device.cpu import busy_threads

        return busy_threads()

    def on_probe(self, message: protocol.Probe) -> protocol.Reply:
        from attnbench import probes

        return protocol.Probed(figures=probes.run(message.names, self._case()))

    def on_settle(self, message: protocol.Settle) -> protocol.Reply:
        loaded = self._case()
        loaded.pace = loaded.instrument.settle(loaded.call, loaded.procedure)
        return protocol.Settled(call_s=loaded.pace.call_s, settled=loaded.pace.settled, seconds=loaded.pace.settle_s)

    def on_time(self, message: protocol.Time) -> protocol.Reply:
        loaded = self._case()
        assert loaded.pace
        loaded.negate()
        return _timed(loaded.instrument.block(loaded.call, loaded.pace, loaded.procedure))

    def on_check(self, message: protocol.Check) -> protocol.Reply:
        loaded = self._case()
        assert loaded.expected
        return _verified(self._judge_outputs(loaded, loaded.expected), "last timed call: ")

    def on_measure(self, message: protocol.Measure) -> protocol.Reply:
        loaded = self._case()
        loaded.outputs = None
        memory = loaded.instrument.memory(loaded.call)
        facts = memory.facts
        if loaded.case.mode.needs_grad:
            # What autograd keeps is there between the passes alone: a call that holds both shows it as scratch.
            facts = {**facts, "saved": loaded.instrument.memory(loaded.forward).facts["saved"]}
        return protocol.Measured(peak=memory.peak, total=memory.total, facts=facts)

    def on_energize(self, message: protocol.Energize) -> protocol.Reply:
        from attnbench.device import energy

        loaded = self._case()
        assert loaded.pace
        found = energy.measure(loaded.instrument, loaded.call, loaded.pace.call_s)
        return protocol.Energized(**found) if isinstance(found, dict) else protocol.Energized(absent=found)

    def on_retime(self, message: protocol.Retime) -> protocol.Reply:
        loaded = self._case()
        if absent := loaded.instrument.refuses(message.timing):
            return protocol.Retimed(absent=absent)
        procedure = msgspec.structs.replace(loaded.procedure, timing=message.timing)
        try:
            pace = loaded.instrument.settle(loaded.call, procedure)
            readings = [loaded.instrument.block(loaded.call, pace, procedure) for _ in range(message.blocks)]
        except RuntimeError as error:  # a graph that cannot be captured says nothing against the case
            return protocol.Retimed(absent=_one_line(error))
        return protocol.Retimed(blocks=tuple(map(_timed, readings)))

    def on_profile(self, message: protocol.Profile) -> protocol.Reply:
        from attnbench.device import profiling

        loaded = self._case()
        if message.bare:
            profiling.bare(loaded.instrument, loaded.call)
            return protocol.Profiled(figures={})
        found = profiling.look(loaded.instrument, loaded.call, Path(message.directory))
        return protocol.Profiled(figures=found)

    def on_calibrate(self, message: protocol.Calibrate) -> protocol.Reply:
        from attnbench.device import ceilings

        assert self.instrument
        facts = self.instrument.environment().facts
        return protocol.Calibrated(**ceilings.calibrate(self.instrument.torch_device, facts, message.parts))

    def on_release(self, message: protocol.Release) -> protocol.Reply:
        self._forget()
        assert self.instrument
        self.instrument.release()
        return protocol.Done()

    def _case(self) -> Loaded:
        if self.loaded is None:
            raise RuntimeError("no case is prepared")
        return self.loaded

    def _forget(self) -> None:
        self.loaded = None


def _pin(cpus: tuple[int, ...]) -> None:
    """Every thread of this process: those that a library has started keep else where they may run."""
    if cpus and hasattr(os, "sched_setaffinity"):
        tasks = Path("/proc/self/task")
        for thread in [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)


def _same(tensor: Tensor, other: Tensor) -> bool:
    """Equal bytes, so that fp8 and NaN compare too."""
    import torch

    return torch.equal(tensor.detach().view(torch.uint8), other.view(torch.uint8))


def _timed(reading: Reading) -> protocol.Timed:
    return protocol.Timed(values=reading.values, calls=reading.calls, tags=reading.tags, facts=reading.facts)


def _verified(judgement: verify.Judgement, prefix: str = "") -> protocol.Verified:
    reason = prefix + judgement.reason if judgement.reason else ""
    return protocol.Verified(ok=judgement.ok, reason=reason, errors=_figures(judgement))


def _figures(judgement: verify.Judgement) -> dict[str, dict[str, float | None]]:
    return {name: msgspec.structs.asdict(error) for name, error in judgement.errors.items()}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def failure(error: BaseException, phase: str) -> Failed:
    """What an exception of the backend means. Out of memory is told from an error by its class and its words."""
    words = str(error).lower()
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    out_of_memory |= "can't allocate memory" in words or "not enough memory" in words or "out of memory" in words
    trace = "".join(traceback.format_exception(error)[-TRACE_LINES:])
    status = Status.OOM if out_of_memory else Status.ERROR
    return Failed(status=status, reason=f"{phase}: {_one_line(error)}", trace=trace)


def guard() -> None:
    """Die with the parent, even in a C loop, and be the first to go when memory runs out. Linux only."""
    parent = os.getppid()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        with contextlib.suppress(OSError):  # some containers forbid it; the memory limit still holds
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        os._exit(1)


def serve(channel: protocol.Channel) -> None:
    """Answer until the other side goes."""
    session = Session()
    while True:
        try:
            message = channel.receive()
        except protocol.ClosedError:
            return
        try:
            reply: protocol.Reply = session.answer(message)
        except BaseException as error:
            reply = failure(error, type(message).__name__.lower())
        channel.send(reply)


def main() -> None:
    """Entry of `python -m attnbench.worker READ_FD WRITE_FD`."""
    guard()
    read_fd, write_fd = int(sys.argv[1]), int(sys.argv[2])
    serve(protocol.Channel(read_fd, write_fd, protocol.Request))


if __name__ == "__main__":
    main()
