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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from attnbench import arm, backends, protocol, verify
from attnbench.attention import inputs as made
from attnbench.attention.problem import Mode, Returns
from attnbench.backends import Backend, Layout
from attnbench.case import Case
from attnbench.protocol import Failed
from attnbench.result import Environment, Procedure, Status

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.device import Instrument, Pace

TRACE_LINES = 30
POISONED_COPIES, POISONED_BYTES = 8, 64 * 1024**2
SPINNING_CORES = 0.5  # an idle worker that burns more than this disturbs the others


class Loaded:
    """One case ready to run: inputs in the backend's layout, and the call that is timed."""

    def __init__(self, case: Case, procedure: Procedure, backend: Backend, instrument: Instrument) -> None:
        self.case, self.procedure, self.backend, self.instrument = case, procedure, backend, instrument
        self.sign = 1  # inputs are negated between blocks; so are out and gradients, exactly
        self.outputs: Any = None
        self.pace: Pace | None = None
        self.expected: verify.Expected | None = None
        given = made.make(case.problem, procedure.seed, procedure.inputs)
        self.digest = made.digest(given)
        self.q, self.k, self.v, self.dout = (self.place(t) for t in (given.q, given.k, given.v, given.dout))
        self.prepared = backend.prepare(case, instrument.torch_device)
        if case.mode.needs_grad:
            for tensor in (self.q, self.k, self.v):
                tensor.requires_grad_()
        self.call = self._build()

    def place(self, tensor: Tensor) -> Tensor:
        """On the device, in the backend's layout, contiguous there."""
        turned = tensor.transpose(1, 2).contiguous() if self.backend.layout is Layout.BSHD else tensor
        return turned.to(self.instrument.torch_device)

    def _build(self) -> Callable[[], Any]:
        """The timed call. It gives its outputs back, and keeps those of the last call for `Check`."""
        import torch

        call, inputs = self.prepared.call, (self.q, self.k, self.v)

        def forward() -> Any:
            with torch.no_grad():
                self.outputs = call(*inputs), ()
            return self.outputs

        def both() -> Any:
            out = call(*inputs)
            self.outputs = out, torch.autograd.grad(_first(out), inputs, self.dout)
            return self.outputs

        def backward() -> Any:
            self.outputs = self._out, torch.autograd.grad(_first(self._out), inputs, self.dout, retain_graph=True)
            return self.outputs[1]

        if self.case.mode is Mode.BWD:
            self._out = call(*inputs)
        return {Mode.FWD: forward, Mode.FWD_BWD: both, Mode.BWD: backward}[self.case.mode]

    def fill(self, distribution: str) -> None:
        """Put other inputs into the same tensors."""
        given = made.make(self.case.problem, self.procedure.seed, distribution)
        self._rewrite(lambda tensor, fresh: tensor.copy_(self.place(fresh)), given)
        self.sign = 1

    def negate(self) -> None:
        """Turn the sign of every input, in place: a cached output would now be wrong."""
        self._rewrite(lambda tensor, _: tensor.neg_(), None)
        self.sign = -self.sign

    def _rewrite(self, change: Callable[[Tensor, Any], Any], given: made.Inputs | None) -> None:
        import torch

        self.outputs = None
        with torch.no_grad():
            for name in ("q", "k", "v", "dout"):
                change(getattr(self, name), getattr(given, name) if given else None)
        if self.case.mode is Mode.BWD:
            self._out = self.prepared.call(self.q, self.k, self.v)
        self.instrument.synchronize()

    def named_outputs(self) -> dict[str, Tensor]:
        """out, lse, dq, dk, dv of the last call, as [batch, heads, seq, dim], as far as the case gives them."""
        import torch

        outputs, gradients = self.outputs
        named: dict[str, Any] = {"out": outputs}
        if self.case.problem.returns is Returns.LSE:
            if not (isinstance(outputs, tuple) and len(outputs) == 2):
                raise TypeError(f"the backend was asked for (out, lse) and gave {_describe(outputs)}")
            named = {"out": outputs[0], "lse": outputs[1]}
        named.update(zip(("dq", "dk", "dv"), gradients, strict=False))
        for name, tensor in named.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} is {_describe(tensor)}, not a tensor")
            if name != "lse" and self.backend.layout is Layout.BSHD and tensor.ndim == 4:
                named[name] = tensor.transpose(1, 2)
        return named


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
        if not message.backend:
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
        self.backend = backends.load(message.backend)
        unavailable = self._unavailable(device.kind)
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
        prepared_at = time.perf_counter()
        loaded.call()
        self.instrument.synchronize()
        first_call_s = time.perf_counter() - prepared_at
        self.loaded = loaded
        facts = dict(loaded.prepared.facts)
        late = loaded.prepared.late_facts() if loaded.prepared.late_facts else {}
        seconds = {"prepare": prepared_at - started, "first_call": first_call_s, **loaded.prepared.seconds}
        if (compile_s := late.pop("compile_s", None)) is not None:
            seconds["compile"] = compile_s
        facts.update(late, input_digest=loaded.digest, layout=self.backend.layout.value)
        return protocol.Prepared(seconds=seconds, facts=facts)

    def on_verify(self, message: protocol.Verify) -> protocol.Reply:
        """Peaked inputs, then the procedure's own, then these negated: three calls, each judged."""
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
        if not verdict.ok:
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
            if not _same(tensor, loaded.place(getattr(plain, name))):
                return f"{name} was changed by the call"
        return ""

    def _spinning(self) -> float:
        from attnbench.device.cpu import busy_threads

        return busy_threads()

    def on_settle(self, message: protocol.Settle) -> protocol.Reply:
        loaded = self._case()
        loaded.pace = loaded.instrument.settle(loaded.call, loaded.procedure)
        return protocol.Settled(call_s=loaded.pace.call_s, settled=loaded.pace.settled, seconds=loaded.pace.settle_s)

    def on_time(self, message: protocol.Time) -> protocol.Reply:
        loaded = self._case()
        assert loaded.pace
        loaded.negate()
        reading = loaded.instrument.block(loaded.call, loaded.pace, loaded.procedure)
        return protocol.Timed(values=reading.values, calls=reading.calls, tags=reading.tags, facts=reading.facts)

    def on_check(self, message: protocol.Check) -> protocol.Reply:
        loaded = self._case()
        assert loaded.expected
        return _verified(self._judge_outputs(loaded, loaded.expected), "last timed call: ")

    def on_measure(self, message: protocol.Measure) -> protocol.Reply:
        loaded = self._case()
        loaded.outputs = None
        memory = loaded.instrument.memory(loaded.call)
        return protocol.Measured(peak=memory.peak, total=memory.total, facts=memory.facts)

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


def _first(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _same(tensor: Tensor, other: Tensor) -> bool:
    """Equal bytes, so that fp8 and NaN compare too."""
    import torch

    return torch.equal(tensor.detach().view(torch.uint8), other.view(torch.uint8))


def _describe(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


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
