"""One sweep from request to stored run: what `attnbench run` does, callable from Python."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from attnbench import __version__, backends, ceilings, host, metrics, plan, store, suite
from attnbench.arm import Arm, Device, parse_device
from attnbench.attention import inputs
from attnbench.attention.problem import Dtype
from attnbench.ceilings import Ceilings
from attnbench.errors import UsageError
from attnbench.plan import Plan
from attnbench.ranges import words
from attnbench.result import Cache, Procedure, Record, Timing
from attnbench.runner import Ending, Observer, Runner
from attnbench.runner import Terms as RunTerms
from attnbench.suite import Cell, Impossible, Suite
from attnbench.units import parse_bytes, parse_seconds, parse_share

DEFAULT_SUITE = "quick"
DEFAULT_BUDGET = "5m"
ALL_TIMINGS = "all"  # each case by the usual mode, then once by every other one
DEFAULT_DTYPE = {"cpu": Dtype.FP32, "cuda": Dtype.BF16}


class Request(Record, frozen=True, kw_only=True):
    """What a user asked for, as typed; stored in the manifest, so that a resume can ask for it again."""

    suites: tuple[str, ...] = ()
    axes: dict[str, str] = {}
    backend: str = ""  # comma list; empty: as the suite says, else auto
    device: str = ""  # comma list; empty: cuda:0 where there is a GPU, else cpu
    reference: str = plan.DEFAULT_REFERENCE
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    shard: str = ""
    shrink: str = ""  # lengths and batches at that share
    budget: str = ""
    rounds: str = "5..30"
    launches: int = 1
    timeout: str = "60s"
    mem_limit: str = "80%"
    timing: str = ""
    cache: str = ""
    rel_ci: str = "2%"
    seed: int = 0
    tags: dict[str, str] = {}
    metrics: str = ""  # comma list, shown after the table; what they need is measured
    inputs: str = "normal"
    profile: bool = False  # look at each case after its rounds


class Sweep(msgspec.Struct, kw_only=True):
    """A request made ready: its plan and the limits that hold."""

    request: Request
    name: str
    devices: list[Device]
    asked: list[tuple[Cell, list[Arm]]]  # what the plan was made of
    plan: Plan
    terms: RunTerms


class Outcome(msgspec.Struct, kw_only=True):
    """A sweep that ended: where it lies, and how it went."""

    directory: Path
    run: store.Run
    ending: Ending
    planned: int


def ready(request: Request, *, interpreted: bool = False, default_suite: str = DEFAULT_SUITE) -> Sweep:
    """Read suites and options, look at the machine, and plan. Raises UsageError and its kinds; loads no torch.

    `interpreted`: what cannot be timed on a CPU runs in its interpreter there.
    """
    devices = devices_of(request.device)
    chosen = suites_of(request, default_suite)
    kinds = list(dict.fromkeys(device.kind for device in devices))
    terms = _terms(request, chosen, kinds)
    impossible: list[tuple[str, str]] = []
    asked = list(_asked(request, chosen, devices, impossible, interpreted))
    made = plan.make(asked, plan_terms(terms))
    made.impossible.extend(impossible)
    if not made.cases:
        chosen_by = [name for name in ("only", "skip", "shard") if getattr(request, name)]
        if chosen_by:
            raise UsageError(f"nothing is left to run: --{', --'.join(chosen_by)} exclude every case")
        raise UsageError(f"suite {chosen[0].name} has no table for {', '.join(kinds)}")
    if not made.groups and not made.refusals:
        raise UsageError(f"no case is possible: {impossible[0][0]}: {impossible[0][1]}")
    share = suite.parse_shrink(request.shrink)
    name = "+".join(one.name for one in chosen) + (f"-shrunk-{share:g}" if share < 1 else "")
    return Sweep(request=request, name=name, devices=devices, asked=asked, plan=made, terms=terms)


def plan_terms(terms: RunTerms) -> plan.Terms:
    """What a plan goes by, of the limits of a run and of the GPUs that are there."""
    gpus = {gpu.index: gpu for gpu in host.gpus()} if "cuda" in terms.procedures else {}
    return plan.Terms(
        memory_bytes=terms.memory_bytes,
        procedures=terms.procedures,
        reference=terms.reference,
        gpu_memory_bytes={index: int(gpu.memory_bytes * 0.9) for index, gpu in gpus.items()},
        capability={index: gpu.capability for index, gpu in gpus.items()},
    )


def run(
    request: Request,
    observer: Observer,
    *,
    directory: Path | None = None,
    retry_failed: bool = False,
    force: bool = False,
    fail_fast: bool = False,
    watch: Callable[[Runner], None] | None = None,
    sweep: Sweep | None = None,
    command: Sequence[str] = (),
) -> Outcome:
    """Measure a request into a run directory, going on where it stopped. `watch` is given the runner before it runs."""
    sweep = sweep or ready(request)
    now = datetime.now(UTC)
    where = directory or store.new_directory(store.results_root(), sweep.name, sweep.devices[0].text, now)
    profile = str((where / "profile").absolute()) if sweep.request.profile else ""
    terms = msgspec.structs.replace(sweep.terms, fail_fast=fail_fast, profile=profile)
    with store.RunWriter(where, manifest(sweep, now, command), force=force) as writer:
        done = store.done_keys(writer.run, retry_failed)
        refusals = [refusal for refusal in sweep.plan.refusals if refusal.key not in done]
        writer.append(refusals)
        for refusal in refusals:
            observer.result(refusal, sweep.plan.seconds)
        runner = Runner(sweep.plan, terms, writer.append, observer, done, where / "logs")
        if watch:
            watch(runner)
        try:
            ending = runner.run()
        finally:
            writer.update(environments=runner.environments, seconds=dict(runner.spent))
    return Outcome(directory=where, run=store.read(where), ending=ending, planned=sweep.plan.cases)


def manifest(sweep: Sweep, now: datetime, command: Sequence[str]) -> store.Manifest:
    """Everything about a run but its results, before it begins."""
    fingerprint, _ = host.fingerprint()
    return store.Manifest(
        schema_version=store.VERSION,
        attnbench=__version__,
        created_at=now.isoformat(timespec="seconds"),
        suite=sweep.name,
        command=store.anonymous(shlex.join(command)),
        request=msgspec.to_builtins(sweep.request),
        procedures=sweep.terms.procedures,
        arms=tuple(sweep.plan.arms),
        machine=host.machine_card(),
        fingerprint=fingerprint,
        ceilings=calibrated({device.text for device in sweep.devices}, fingerprint),
        commit=host.commit(Path()),
        planned=sweep.plan.cases,
        impossible=tuple(sweep.plan.impossible),
        tags=sweep.request.tags,
    )


def calibrated(devices: Iterable[str], fingerprint: str) -> dict[str, Ceilings]:
    """The ceilings of those of these devices that were calibrated on this machine with this torch."""
    torch = host.packages().get("torch", "")
    found = {device: ceilings.load(fingerprint, device, torch) for device in sorted(devices)}
    return {device: one for device, one in found.items() if one}


def devices_of(text: str) -> list[Device]:
    """A comma list of devices, all of them there; by default the GPU, or else the CPU with all cores less one."""
    names = words(text, "--device") if text else (("cuda:0",) if host.gpus() else ("cpu",))
    devices = []
    for name in names:
        device = parse_device(name)
        if objection := host.check_device(device):
            raise UsageError(f"--device {name}: {objection}")
        if device.kind == "cpu" and not device.threads:
            device = msgspec.structs.replace(device, threads=host.default_threads())
        devices.append(device)
    return devices


def suites_of(request: Request, default: str) -> list[Suite]:
    """The named suites; without a name a suite of the options, or the default one where they give no length."""
    if not request.suites and {"seq", "seq_q", "lengths"} & set(request.axes):
        return [suite.from_flags(request.axes)]
    return [suite.override(suite.load(name), request.axes) for name in request.suites or (default,)]


def _asked(
    request: Request,
    chosen: Sequence[Suite],
    devices: Sequence[Device],
    impossible: list[tuple[str, str]],
    interpreted: bool,
) -> Iterator[tuple[Cell, list[Arm]]]:
    """Every cell with its arms, after the filters; cells that are no problem go to `impossible`."""
    only, skip = ([_filter(text) for text in texts] for texts in (request.only, request.skip))
    share = suite.parse_shrink(request.shrink)
    named = _named_backends(request.backend)
    arms_of: dict[tuple[tuple[str, ...], str], list[Arm]] = {}
    for kind in dict.fromkeys(device.kind for device in devices):
        own = [device for device in devices if device.kind == kind]
        for one in chosen:
            cells = suite.expand(one, kind=kind, dtype=DEFAULT_DTYPE[kind], shard=request.shard)
            for cell in suite.shrunk(cells, share) if share < 1 else cells:
                if isinstance(cell, Impossible):
                    impossible.append((cell.text, cell.reason))
                    continue
                names = named or cell.backends or ("auto",)
                if (names, kind) not in arms_of:
                    arms_of[names, kind] = plan.arms_of(_expand_names(names, kind), own, interpreted)
                arms = [
                    arm
                    for arm in arms_of[names, kind]
                    if all(f.matches(cell.problem, cell.mode, arm.backend, arm.device) for f in only)
                    and not any(f.matches(cell.problem, cell.mode, arm.backend, arm.device) for f in skip)
                ]
                if arms:
                    yield cell, arms


def _filter(text: str) -> suite.Filter:
    found = suite.parse_filter(text)
    if found.key == "backend":
        for name in found.words:
            _named_backends(name)
    return found


def _named_backends(text: str) -> tuple[str, ...]:
    names = words(text, "--backend") if text else ()
    for name in names:
        if backends.is_file(name):
            from attnbench.backends import plugin

            plugin.check(name)
        elif name not in ("auto", "all"):
            backends.load(name)
    return names


def _expand_names(names: tuple[str, ...], kind: str) -> list[str]:
    expanded: list[str] = []
    for name in names:
        expanded += {"auto": plan.auto(kind), "all": backends.names()}.get(name, (name,))
    return expanded


def _terms(request: Request, chosen: Sequence[Suite], kinds: Sequence[str]) -> RunTerms:
    low, _, high = request.rounds.partition("..")
    if not (low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low)):
        raise UsageError(f"--rounds: not a range of rounds: {request.rounds!r} (try 5..30 or 10)")
    if request.launches < 1:
        raise UsageError(f"--launches: {request.launches}: at least 1")
    inputs.check(request.inputs, "--inputs")
    limit = parse_bytes(request.mem_limit, "--mem-limit")
    budget = parse_seconds(request.budget or chosen[0].budget or DEFAULT_BUDGET, "--budget")
    timeout_s = parse_seconds(request.timeout, "--timeout")
    common: dict[str, Any] = {
        "seed": request.seed,
        "inputs": request.inputs,
        "launches": request.launches,
        "rounds_least": int(low),
        "rounds_most": int(high or low),
        "rel_ci": parse_share(request.rel_ci, "--rel-ci"),
        "timeout_s": timeout_s,
        "allocator": host.allocator(),
    }
    timing = {kind: _timing(request, kind) for kind in kinds}
    cache = {kind: _cache(request, kind) for kind in kinds}
    return RunTerms(
        procedures={kind: Procedure(timing=timing[kind], cache=cache[kind], **common) for kind in kinds},
        launches=request.launches,
        seed=request.seed,
        timeout_s=timeout_s,
        budget_s=budget or None,
        memory_bytes=limit if isinstance(limit, int) else int(limit * host.memory_free_bytes()),
        reference=request.reference,
        extras=_extras(request),
    )


def shown_metrics(request: Request) -> tuple[str, ...]:
    """What is shown after the table: what was named, and with all timing modes their times."""
    names = metrics.named(request.metrics)
    return names if request.timing != ALL_TIMINGS else tuple(dict.fromkeys((*names, *metrics.GROUPS["timers"])))


def _extras(request: Request) -> tuple[str, ...]:
    """What is measured of each case beyond time and memory."""
    return metrics.needs(shown_metrics(request))


def _timing(request: Request, kind: str) -> Timing:
    default = Timing.EVENTS if kind == "cuda" else Timing.WALL
    if not request.timing or request.timing == ALL_TIMINGS:
        return default
    if request.timing not in tuple(Timing):
        raise UsageError(f"--timing: no mode {request.timing!r}; there are {', '.join(Timing)}, {ALL_TIMINGS}")
    if kind == "cpu" and request.timing != Timing.WALL:
        raise UsageError(f"--timing {request.timing}: a CPU has only wall")
    return Timing(request.timing)


def _cache(request: Request, kind: str) -> Cache:
    if not request.cache:
        return Cache.COLD if kind == "cuda" else Cache.WARM
    if request.cache not in tuple(Cache):
        raise UsageError(f"--cache: no state {request.cache!r}; there are {', '.join(Cache)}")
    if kind == "cpu" and request.cache != Cache.WARM:
        raise UsageError("--cache cold: a CPU is measured with warm caches")
    return Cache(request.cache)
