"""The state of a worker between requests, and the step that answers each request."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import asdict, replace

from attnbench import backends
from attnbench.attention import scores
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, installation
from attnbench.errors import UnknownNameError
from attnbench.records.arm import parse_device
from attnbench.records.result import Status
from attnbench.worker import expected_values, probes, process, protocol, verification
from attnbench.worker.failures import one_line
from attnbench.worker.output_checks import OutputChecks
from attnbench.worker.prepared_case import PreparedCase, prepare
from attnbench.worker.process_state import ProcessState
from attnbench.worker.protocol import AnyReply, AnyRequest, RequestFailed, WorkerOpened

if TYPE_CHECKING:
    from attnbench.machine.device.instrument import Instrument


class WorkerSession:
    """The device and the backend of a worker, and at most one prepared case."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._instrument: Instrument | None = None
        self._state: ProcessState | None = None  # once the device is open
        self._case: PreparedCase | None = None
        self._checks: OutputChecks | None = None  # of a verified case

    def answer(self, request: AnyRequest) -> AnyReply:
        """Do what the request says. Raises whatever the backend raises."""
        match request:
            case protocol.OpenWorker():
                return self._open(request)
            case protocol.ComputeExpected():
                return self._compute_expected(request)
            case protocol.PrepareCase():
                return self._prepare(request)
            case protocol.VerifyCase():
                reply, self._checks = verification.verify(self._prepared_case(), request)
                return with_changed_state(reply, self._prepared_case())
            case protocol.CheckOutput():
                if self._checks is None:
                    raise RuntimeError("no case is verified")
                reply = verification.check_after_rounds(self._checks, request)
                return with_changed_state(reply, self._prepared_case())
            case protocol.CheckNewInputs():
                if self._checks is None:
                    raise RuntimeError("no case is verified")
                return verification.check_new_inputs(self._prepared_case(), self._checks, request)
            case protocol.ProbeCase():
                return protocol.CaseProbed(figures=probes.run(request.names, self._prepared_case()))
            case protocol.SettleCase():
                return settle(self._prepared_case(), self._checks, request.call_s)
            case protocol.TimeBlock():
                return time_block(self._prepared_case(), self._checks, request.seed)
            case protocol.MeasureMemory():
                return measure_memory(self._prepared_case())
            case protocol.MeasureEnergy():
                return measure_energy(self._prepared_case())
            case protocol.RetimeCase():
                return retime(self._prepared_case(), request)
            case protocol.ProfileCase():
                return profile(self._prepared_case(), request)
            case protocol.CalibrateDevice():
                return self._calibrate(request)
            case protocol.ReleaseCase():
                return self._release()

    def _open(self, request: protocol.OpenWorker) -> WorkerOpened:
        """Import everything and open the device. A reply with `unavailable` says why the backend cannot run on it."""
        if request.version != protocol.VERSION:
            return WorkerOpened(unavailable=f"speaks protocol {protocol.VERSION}, not {request.version}")
        if not request.device:
            import torch

            torch.set_num_threads(len(request.cpus) or 1)
            self._state = ProcessState()
            return WorkerOpened()
        from attnbench.machine.device import open_instrument

        device = parse_device(request.device)
        try:
            self._instrument = open_instrument(device)
        except RuntimeError as error:
            return WorkerOpened(unavailable=str(error))
        if request.memory_bytes and device.kind == "cpu":
            process.limit_data(request.memory_bytes)
        self._state = ProcessState()
        try:
            with self._state.backend_code():
                self._backend = backends.load(request.backend) if request.backend else None
                unavailable = _unavailable(self._backend, request, self._instrument) if self._backend else ""
            self._state.intended = self._backend.sets if self._backend else frozenset()
        except UnknownNameError as error:  # another version of attnbench may lack a backend of this one
            return WorkerOpened(unavailable=str(error))
        warm_s = _warm(self._instrument, request.gradients)
        process.pin(request.cpus)  # not earlier: workers that start together import on all cores
        self._state.imported()
        return WorkerOpened(
            environment=self._instrument.environment(),
            capability=self._instrument.capability,
            unavailable=unavailable,
            checks_new_inputs=True,
            changes_backend=True,
            warm_s=warm_s,
        )

    def _prepare(self, request: protocol.PrepareCase) -> protocol.CasePrepared | RequestFailed:
        assert self._backend
        assert self._instrument
        assert self._state
        self._case = self._checks = None
        name = request.case.backend
        if name != self._backend.name and {name, self._backend.name} <= backends.ONE_PROCESS:
            self._backend = backends.load(name)
            self._state.change_owner(self._backend.sets)
        self._load_score(request.case.problem)
        kind = self._instrument.torch_device.partition(":")[0]
        if objections := self._backend.objections(request.case, kind, self._instrument.capability):
            return RequestFailed(status=Status.UNSUPPORTED, reason="; ".join(objections))
        if reason := self._instrument.timing_objection(request.procedure.timing):
            return RequestFailed(status=Status.UNAVAILABLE, reason=reason)
        self._case, reply = prepare(request.case, request.procedure, self._backend, self._instrument, self._state)
        return reply

    def _compute_expected(self, request: protocol.ComputeExpected) -> protocol.ExpectedComputed:
        self._load_score(request.problem)
        expected = expected_values.compute(
            request.problem, request.mode, request.seed, request.inputs, Path(request.directory), request.budget_s
        )
        return protocol.ExpectedComputed(share=expected.share, seconds=expected.seconds)

    def _load_score(self, problem: Problem) -> None:
        """Import the file of a user's score function, for backends and for the reference, without its settings."""
        if problem.score.function and self._state:
            with self._state.other_code():
                scores.load_function(problem.score.function)

    def _calibrate(self, request: protocol.CalibrateDevice) -> protocol.DeviceCalibrated:
        from attnbench.machine.device import ceilings, counters

        assert self._instrument
        facts = self._instrument.environment().facts
        finish = counters.watch_others(tuple(facts.get("cores", ())))
        calibration = ceilings.calibrate(self._instrument.torch_device, facts, request.parts)
        return protocol.DeviceCalibrated(**calibration._asdict(), foreign_load=finish())

    def _release(self) -> protocol.CaseReleased:
        assert self._instrument
        self._case = self._checks = None
        self._instrument.release()
        return protocol.CaseReleased()

    def _prepared_case(self) -> PreparedCase:
        if self._case is None:
            raise RuntimeError("no case is prepared")
        return self._case


def _warm(instrument: Instrument, gradients: bool) -> float:
    """Do one-time work; return its seconds. `gradients`: import what torch needs for a first backward pass."""
    import torch

    started = time.perf_counter()
    if gradients:
        x = torch.ones(1, requires_grad=True)
        torch.autograd.grad(x * x, x, torch.ones(1))
    instrument.warm()
    return time.perf_counter() - started


def _unavailable(backend: Backend, request: protocol.OpenWorker, instrument: Instrument) -> str:
    """Why the backend cannot run on this device; empty if it can."""
    kind = parse_device(request.device).kind
    if kind not in backend.limits:
        return f"runs on {', '.join(backend.limits)}, not on {kind}"
    if wrong := installation.version_objection(backend, python=request.python):
        return wrong
    for module in backend.requires:
        try:
            __import__(module)
        except Exception as error:  # a broken package may raise anything
            command = installation.install_command(backend, request.python)
            hint = f" (install: {command})" if command else ""
            return f"import {module}: {one_line(error)}{hint}"
    return (backend.probe(instrument.torch_device) or "") if backend.probe else ""


def with_changed_state(
    reply: protocol.CaseVerified | RequestFailed, case: PreparedCase
) -> protocol.CaseVerified | RequestFailed:
    """The reply with what the backend's code changed in this process; a failure if the times cannot be compared."""
    state = case.state
    state.take_back()
    if state.objection and (isinstance(reply, RequestFailed) or reply.ok):  # it may be the cause of a failure
        failure = f"; {reply.reason}" if isinstance(reply, RequestFailed) else ""
        return RequestFailed(status=Status.ERROR, reason=state.objection + failure)
    if isinstance(reply, RequestFailed) or not state.changes:
        return reply
    reason = "" if reply.ok else reply.reason
    if reason and backends.is_file(case.case.backend):  # changes by libraries are not reported
        reason += f"; its code changed settings of the process: {'; '.join(state.changes)}"
    return replace(reply, reason=reason, changed_state=tuple(state.changes))


def settle(case: PreparedCase, checks: OutputChecks | None, call_s: float = 0.0) -> protocol.CaseSettled:
    """Call until the pace of the blocks is known, and keep it. `call_s`: of a call in an earlier restart."""
    with case.state.timed_calls():
        case.pace = case.instrument.settle(case.call, case.procedure, call_s)
    if checks:
        checks.check_settled(case.pace)
    return protocol.CaseSettled(call_s=case.pace.call_s, settled=case.pace.settled, seconds=case.pace.settle_s)


def time_block(case: PreparedCase, checks: OutputChecks | None, seed: int) -> protocol.BlockTimed:
    """Time one block, on inputs transformed by a draw from the seed; then check the outputs of a call drawn by it."""
    from attnbench.machine.device.instrument import Spot

    assert case.pace
    if checks:
        checks.change_inputs(seed)
    else:
        case.change(seed, moves=False, reorder=False)
    source = random.Random(seed)
    spot = Spot(source.randrange(case.pace.readings), source.randint(1, case.pace.calls), case.keep)
    with case.state.timed_calls():
        block = case.instrument.block(case.call, case.pace, case.procedure, spot)
    case.take_kept()
    if checks:
        checks.check_block(block)
    return protocol.BlockTimed(**asdict(block))


def measure_memory(case: PreparedCase) -> protocol.MemoryMeasured:
    """Measure the memory of one call."""
    from attnbench.machine.device.process_memory import METHOD

    case.outputs = None
    with case.state.timed_calls():
        outside = case.instrument.process_memory(case.call) if case.backend.outside_torch else None
        memory = outside or case.instrument.memory(case.call)
        facts: dict[str, int | str] = {**memory.facts, **({"method": METHOD} if outside else {})}
        if case.mode.needs_grad and not outside:
            # Autograd's saved tensors exist only between the passes: a call with both shows them as workspace.
            facts = {**facts, "saved": case.instrument.memory(case.forward).facts["saved"]}
    return protocol.MemoryMeasured(peak=memory.peak, total=memory.total, facts=facts)


def measure_energy(case: PreparedCase) -> protocol.EnergyMeasured:
    """Measure the energy of a call, or say why there is no figure."""
    from attnbench.machine.device import energy

    assert case.pace
    with case.state.timed_calls():
        energy_of_call = energy.measure(case.instrument, case.call, case.pace.call_s)
    if isinstance(energy_of_call, str):
        return protocol.EnergyMeasured(absent=energy_of_call)
    return protocol.EnergyMeasured(**energy_of_call._asdict())


def retime(case: PreparedCase, request: protocol.RetimeCase) -> protocol.CaseRetimed:
    """Time blocks in another timing mode."""
    if absent := case.instrument.timing_objection(request.timing):
        return protocol.CaseRetimed(absent=absent)
    procedure = replace(case.procedure, timing=request.timing)
    try:
        with case.state.timed_calls():
            pace = case.instrument.settle(case.call, procedure)
            readings = [case.instrument.block(case.call, pace, procedure) for _ in range(request.blocks)]
    except RuntimeError as error:  # a graph that cannot be captured is no fault of the case
        return protocol.CaseRetimed(absent=one_line(error))
    return protocol.CaseRetimed(blocks=tuple(protocol.BlockTimed(**asdict(reading)) for reading in readings))


def profile(case: PreparedCase, request: protocol.ProfileCase) -> protocol.CaseProfiled:
    """Profile the case into a directory, or only call it for an external profiler."""
    from attnbench.machine.device import profiling

    directory = Path(request.directory).absolute()  # the backend may work in another one
    with case.state.timed_calls():
        if request.bare:
            profiling.call_in_ranges(case.instrument, case.call)
            return protocol.CaseProfiled(figures={})
        return protocol.CaseProfiled(figures=profiling.profile_call(case.instrument, case.call, directory))
