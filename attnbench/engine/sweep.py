"""One sweep from request to stored run: what `attnbench run` does, callable from Python."""

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from attnbench import suite
from attnbench._version import __version__
from attnbench.attention import inputs
from attnbench.attention.choices import Dtype
from attnbench.engine import interpreters, plan
from attnbench.engine.calibration import PARTS
from attnbench.engine.candidates import PlanLimits
from attnbench.engine.forecast import smallest_budget_s
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.interpreters import Pythons
from attnbench.engine.plan import Plan, Rest
from attnbench.engine.request import Request as Request
from attnbench.engine.request import settings_of
from attnbench.engine.request import shown_metrics as shown_metrics
from attnbench.engine.runner import Ending, Observer, PlanRunner
from attnbench.engine.side_by_side import local_runner
from attnbench.errors import UsageError
from attnbench.machine import hardware, identity, resources
from attnbench.records import ceilings, run_directory, run_writer, speeds
from attnbench.records.arm import Arm, Device, parse_device
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Facts, Key, Result
from attnbench.suite import Cell, Impossible, Suite
from attnbench.suite.keys import with_flag
from attnbench.units import words
from attnbench.worker import probes

DEFAULT_SUITE = "quick"
LENGTHS = frozenset({"seq", "seq_q", "lengths", "requests"})  # axes of which one makes a suite of options
StartRunner = Callable[
    [Plan, RunSettings, Callable[[Sequence[Result]], None], Observer, frozenset[Key], Path | None], PlanRunner
]
COUNTED = 5000  # problems of a plan between two reports of its state
DEFAULT_DTYPE = {"cpu": Dtype.FP32, "cuda": Dtype.BF16}
OF_ISAS = ("matmul", "exp")  # bandwidth does not depend on the instruction set


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of a sweep, as the manifest describes it."""

    card: Facts
    fingerprint: str
    ceilings: dict[str, Ceilings]  # by device


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its plan and the settings of the run."""

    request: Request
    name: str
    devices: tuple[Device, ...]
    cells: tuple[tuple[Cell, Sequence[Arm]], ...]  # what is planned: each problem with its arms
    plan: Plan
    settings: RunSettings
    machine: Machine | None = None  # None: this machine


class FinishedSweep(msgspec.Struct, frozen=True, kw_only=True):
    """The stored run of a sweep, and how the run ended."""

    run: run_directory.Run
    ending: Ending
    unmeasured: int = 0  # cases that a resume would measure
    smallest_budget_s: float = 0.0  # within which it measures one of them, by prediction
    idle: bool = False  # nothing was measured, though cases were left
    already_measured: bool = False  # the run held every case before


def prepare(
    request: Request,
    *,
    interpreted: bool = False,
    default_suite: str = DEFAULT_SUITE,
    suites: Sequence[Suite] = (),
    step: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Read suites and options, inspect the machine, and plan. Loads no torch. Raises UsageError and its subclasses.

    `interpreted`: on a CPU, a backend that cannot be timed there runs in its interpreter. `suites` replace those of the
    request. `step` is called with the state of a long plan.
    """
    devices = devices_of(request.device)
    if not (suites or request.suites or LENGTHS & set(request.axes)):
        request = msgspec.structs.replace(request, suites=(default_suite,))  # stored, so that a resume repeats it
    suites = suites or suites_of(request)
    kinds = list(dict.fromkeys(device.kind for device in devices))
    settings = settings_of(request, suites, kinds)
    cells, impossible = _cells(request, suites, devices, interpreted, step)
    inputs.check_fits(request.inputs, [cell.problem for cell, _ in cells], "--inputs")
    settings = msgspec.structs.replace(settings, reference=_reference(request, cells, settings))
    planned = plan.make(_counted(cells, step), plan_limits(settings), impossible)
    if not planned.cases:
        filters = [name for name in ("only", "skip", "shard") if getattr(request, name)]
        if filters:
            named, verb = " and ".join(f"--{name}" for name in filters), "excludes" if len(filters) == 1 else "exclude"
            raise UsageError(f"nothing is left to run: {named} {verb} every case")
        if request.backend == "libraries":
            raise UsageError(f"--backend libraries: none is installed for {', '.join(kinds)}: see attnbench doctor")
        raise UsageError(f"suite {suites[0].name} has no table for {', '.join(kinds)}")
    if not planned.groups and not planned.refusals:
        text, reason = impossible[0]
        reason = with_flag(reason, request.axes)
        raise UsageError(f"{request.suites[0]}: {reason} ({text})" if request.suites else reason)
    share = suite.parse_shrink(request.shrink)
    name = "+".join(each.name for each in suites) + (f"-shrunk-{share:g}" if share < 1 else "")
    return Sweep(
        request=request, name=name, devices=tuple(devices), cells=tuple(cells), plan=planned, settings=settings
    )


def _counted(cells: Sequence[tuple[Cell, list[Arm]]], step: Callable[[str], None]) -> Iterator[tuple[Cell, list[Arm]]]:
    for number, cell in enumerate(cells):
        if number % COUNTED == 0:
            step(f"planning: {number:,} of {len(cells):,} problems")
        yield cell


def replan(sweep: Sweep, cells: Iterable[tuple[Cell, Sequence[Arm]]]) -> Sweep:
    """The sweep with these cells and arms in place of its own."""
    cells = tuple(cells)
    return msgspec.structs.replace(sweep, cells=cells, plan=plan.make(cells, plan_limits(sweep.settings)))


def plan_limits(settings: RunSettings) -> PlanLimits:
    """The limits of a plan, from the settings of the run and the GPUs of this machine."""
    gpus = {gpu.index: gpu for gpu in hardware.gpus()} if "cuda" in settings.procedures else {}
    return PlanLimits(
        memory_bytes=settings.memory_bytes,
        procedures=settings.procedures,
        reference=settings.reference,
        speeds=settings.speeds,
        probes=len(probes.parts(settings.probes)),
        gpu_memory_bytes={index: int(gpu.memory_bytes * 0.9) for index, gpu in gpus.items()},
        capability={index: gpu.capability for index, gpu in gpus.items()},
    )


def rest(sweep: Sweep, directory: Path | None = None, retry_failed: bool = False) -> Rest:
    """What a run of the sweep into this directory measures."""
    settings = sweep.settings
    done = run_directory.stored_keys(directory, retry_failed) if directory else frozenset()
    left = sweep.plan.rest(done, range(settings.restarts), settings.speeds)
    if settings.budget_s is None or left.seconds <= settings.budget_s:
        return left
    planned = sweep.plan.left(done, range(settings.restarts))
    fitting, every = (
        sum(len(group.arms) for group in groups)
        for groups in (planned.within(settings.budget_s, settings.speeds), planned.groups)
    )
    return left._replace(within=fitting if fitting < every else None)


def run(
    sweep: Sweep,
    observer: Observer,
    *,
    directory: Path | None = None,
    retry_failed: bool = False,
    force: bool = False,
    fail_fast: bool = False,
    watch: Callable[[PlanRunner], None] | None = None,
    command: Sequence[str] = (),
    start: StartRunner = local_runner,
) -> FinishedSweep:
    """Measure what a run directory lacks of a sweep. `start` makes the runner, which `watch` is called with."""
    now = datetime.now(UTC)
    path = directory or new_directory(sweep, now)
    profile = str((path / "profile").absolute()) if sweep.request.profile else ""
    with run_writer.RunWriter(path, manifest(sweep, now, command), force=force) as writer:
        stored, known = writer.run, writer.manifest.ceilings
        settings = msgspec.structs.replace(sweep.settings, fail_fast=fail_fast, profile=profile, ceilings=known)
        done = run_directory.done_keys(stored, retry_failed)
        left = sweep.plan.rest(done, range(settings.restarts), settings.speeds)
        already_measured = bool(stored.results and sweep.plan.groups) and not left.cases
        planned = sweep.plan.continued(f"{now:%Y%m%dT%H%M%S}") if stored.results else sweep.plan
        refusals = [refusal for refusal in sweep.plan.refusals if refusal.key not in done]
        writer.append(refusals)
        for refusal in refusals:
            observer.result(refusal, left.seconds)
        store = _Store(writer)
        store.runner = runner = start(planned, settings, store.append, observer, done, path / "logs")
        if watch:
            watch(runner)
        try:
            ending = runner.run()
        finally:
            writer.update(runner.environments, dict(runner.spent), runner.nodes, runner.ceilings)
            if sweep.machine is None:
                speeds.save(writer.manifest.fingerprint, runner.forecast.speeds)
    finished = FinishedSweep(run=run_directory.read(path), ending=ending, already_measured=already_measured)
    return _with_rest(finished, sweep.plan, runner, done | {refusal.key for refusal in refusals})


class _Store:
    """Stores results as they come, after what became known of their arms and nodes: a run that is killed has both."""

    def __init__(self, writer: run_writer.RunWriter) -> None:
        self._writer, self._known = writer, (0, 0)
        self.runner: PlanRunner | None = None

    def append(self, results: Sequence[Result]) -> None:
        if self.runner and self.runner.known != self._known:
            self._known = self.runner.known
            self._writer.update(self.runner.environments, {}, self.runner.nodes, self.runner.ceilings)
        self._writer.append(results)


def _with_rest(
    finished: FinishedSweep, planned: Plan, runner: PlanRunner, done_before: Collection[Key]
) -> FinishedSweep:
    """With what a resume would measure. `done_before`: the keys that were not to be measured."""
    done = run_directory.done_keys(finished.run, retry_failed=False)
    groups = planned.without(done, range(runner.settings.restarts))
    budget_s = smallest_budget_s(groups, runner.forecast, len(resources.available_cores()))
    unmeasured = sum(len(group.arms) for group in groups)
    idle = bool(unmeasured) and done <= frozenset(done_before)
    return msgspec.structs.replace(finished, unmeasured=unmeasured, smallest_budget_s=budget_s, idle=idle)


def new_directory(sweep: Sweep, now: datetime) -> Path:
    """Make a run directory for a sweep that starts now."""
    return run_directory.new_directory(run_directory.results_root(), sweep.name, sweep.devices[0].text, now)


def manifest(sweep: Sweep, now: datetime, command: Sequence[str]) -> run_directory.Manifest:
    """The manifest of a run before its first result."""
    machine = sweep.machine or this_machine({device.text for device in sweep.devices})
    return run_directory.Manifest(
        schema_version=run_directory.VERSION,
        attnbench=__version__,
        created_at=now.isoformat(timespec="seconds"),
        suite=sweep.name,
        command=run_writer.anonymous(shlex.join(command)),
        request=msgspec.to_builtins(sweep.request),
        procedures=sweep.settings.procedures,
        arms=sweep.plan.arms,
        machine=machine.card,
        fingerprint=machine.fingerprint,
        ceilings=machine.ceilings,
        commit=identity.commit(Path()),
        planned=sweep.plan.cases,
        impossible=sweep.plan.impossible,
        tags=sweep.request.tags,
    )


def this_machine(devices: Iterable[str]) -> Machine:
    """The machine that this process runs on, with the ceilings of these devices."""
    fingerprint = identity.fingerprint()[0]
    return Machine(card=identity.machine_card(), fingerprint=fingerprint, ceilings=calibrated(devices, fingerprint))


def calibrated(devices: Iterable[str], fingerprint: str) -> dict[str, Ceilings]:
    """The ceilings of these devices, where this machine was calibrated with the installed torch."""
    torch = identity.packages().get("torch", "")
    loaded = {device: ceilings.load(fingerprint, device, torch) for device in sorted(devices)}
    return {device: measured for device, measured in loaded.items() if measured}


def devices_of(text: str) -> list[Device]:
    """Parse a comma list of devices. The default is the first GPU, else the CPU with all cores less one.

    Raises UsageError for a device that this machine lacks.
    """
    names = words(text, "--device") if text else (("cuda:0",) if hardware.gpus() else ("cpu",))
    devices = []
    for name in names:
        device = parse_device(name)
        if objection := hardware.check_device(device):
            raise UsageError(f"--device {name}: {objection}")
        if device.kind == "cpu" and not device.threads:
            device = msgspec.structs.replace(device, threads=len(device.cores) or resources.default_threads())
        devices.append(device)
    return devices


def devices_to_calibrate(text: str) -> list[tuple[Device, tuple[str, ...]]]:
    """Devices and what to measure of each; by default those of `run`, and its CPU with each instruction set."""
    chosen = devices_of(text)
    isas = hardware.cpu_isas() if not text and chosen[0].kind == "cpu" else ()
    of_isas = [(msgspec.structs.replace(chosen[0], isa=isa), OF_ISAS) for isa in isas]
    return [*((device, tuple(PARTS)) for device in chosen), *of_isas]


def _reference(request: Request, cells: Sequence[tuple[Cell, Sequence[Arm]]], settings: RunSettings) -> str:
    """The backend that speed-ups are relative to. Raises UsageError for one that is not measured."""
    if not request.reference:
        return plan.reference_of(cells, plan_limits(settings))
    measured = dict.fromkeys(arm.backend for _, arms in cells for arm in arms)
    if measured and request.reference not in measured:
        plan.named_backends(request.reference, "--reference")
        raise interpreters.not_measured(f"--reference {request.reference}", measured)
    return request.reference


def suites_of(request: Request) -> list[Suite]:
    """The named suites; without a name, a suite of the axes."""
    if not request.suites:
        return [suite.from_flags(request.axes)]
    return [suite.override(suite.load(name), request.axes) for name in request.suites]


def _cells(
    request: Request, suites: Sequence[Suite], devices: Sequence[Device], interpreted: bool, step: Callable[[str], None]
) -> tuple[list[tuple[Cell, list[Arm]]], list[tuple[str, str]]]:
    """Every cell of the shard with its arms, after the filters; and the impossible combinations with their reasons."""
    if request.backend_python:
        step(f"waiting for the interpreters of {interpreters.OPTION}")
    pythons = interpreters.checked(request.backend_python)
    only, skip = ([_filter(text) for text in texts] for texts in (request.only, request.skip))
    selected = suite.parse_shard(request.shard)
    cells: list[tuple[Cell, list[Arm]]] = []
    impossible: list[tuple[str, str]] = []
    for number, (cell, arms) in enumerate(_distinct(request, suites, devices, interpreted, pythons)):
        if not selected(number):
            continue
        if isinstance(cell, Impossible):
            impossible.append((cell.text, cell.reason))
            continue
        if only or skip:
            arms = [arm for arm in arms if _passes(cell, arm, only, skip)]
        if arms:
            cells.append((cell, arms))
    interpreters.check_used(pythons, {arm.backend for _, arms in cells for arm in arms})
    return cells, impossible


def _distinct(
    request: Request, suites: Sequence[Suite], devices: Sequence[Device], interpreted: bool, pythons: Pythons
) -> Iterator[tuple[Cell | Impossible, list[Arm]]]:
    """Every cell with its arms. A problem that several suites have is repeated only with arms that are new."""
    share = suite.parse_shrink(request.shrink)
    named = plan.named_backends(request.backend)
    seen: dict[object, list[Arm]] = {}
    for kind in dict.fromkeys(device.kind for device in devices):
        arms_by_names: dict[tuple[str, ...], list[Arm]] = {}
        of_kind = [device for device in devices if device.kind == kind]
        for each in suites:
            expanded = suite.expand(each, kind=kind, dtype=DEFAULT_DTYPE[kind])
            for cell in suite.shrunk(expanded, share) if share < 1 else expanded:
                if isinstance(cell, Impossible):
                    if cell not in seen:
                        seen[cell] = []
                        yield cell, []
                    continue
                names = tuple(plan.backend_names(named or cell.backends or ("auto",), kind, cell, pythons))
                if names not in arms_by_names:
                    arms_by_names[names] = plan.arms_of(names, of_kind, interpreted, pythons)
                arms, key = arms_by_names[names], (cell.problem, cell.mode)
                if before := seen.get(key):
                    arms = [arm for arm in arms if arm not in before]
                    seen[key] = [*before, *arms]
                else:
                    seen[key] = arms
                yield cell, arms


def _passes(cell: Cell, arm: Arm, only: Sequence[suite.Filter], skip: Sequence[suite.Filter]) -> bool:
    values = cell.problem, cell.mode, arm.backend, arm.device
    return all(each.matches(*values) for each in only) and not any(each.matches(*values) for each in skip)


def _filter(text: str) -> suite.Filter:
    parsed = suite.parse_filter(text)
    if parsed.key == "backend":
        for name in parsed.words:
            plan.named_backends(name)
    return parsed
