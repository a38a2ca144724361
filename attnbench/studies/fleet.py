"""Which machine is slow: nodes of one hardware model on the cases that they share, and what explains a slow one."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

from attnbench import units
from attnbench.analysis import readings
from attnbench.analysis.node_effects import MIN_CASES, NodeEffect, node_effects
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import COMPARISON_KEY, Facts, Result, Sample, Status
from attnbench.records.run_directory import Run
from attnbench.studies.fleet_causes import LOST, SHARES, NodeCondition, causes_of, not_recorded

MARGIN = 0.03  # by which nodes may differ
RATES = ("sm_clock_hz", "frequency_hz", "memory_clock_hz", "temperature_c")  # facts of timed blocks


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """One node among those of its hardware model."""

    node: str
    cases: int  # that it shares with others
    restarts: int
    change: float  # of its times relative to the others: 0.05 is 5 % slower
    low: float | None = None  # of an interval that holds for all nodes at once, None where it is unbounded
    high: float | None = None
    verdict: str = ""  # slow, fast; empty: like the others, or not known
    by_backend: dict[str, float] = {}  # the change for the cases of each backend
    causes: tuple[str, ...] = ()  # of a slow one
    not_recorded: tuple[str, ...] = ()  # causes that cannot be judged
    failed: int = 0  # cases that failed here and were measured elsewhere

    @property
    def sentences(self) -> list[str]:
        """What is unusual about the node, and what explains it."""
        backends = ", ".join(f"{name} {units.change(change)}" for name, change in self.by_backend.items())
        texts = [f"{self.node} is {self.verdict}" + (f" ({backends})" if backends else "")] if self.verdict else []
        if self.verdict == "slow":
            texts.append(f"why: {'; '.join(self.causes) or 'nothing that is recorded explains it'}")
        if self.not_recorded:
            texts.append(f"not recorded: {', '.join(self.not_recorded)}")
        if self.failed:
            texts.append(f"{self.node}: {units.counted(self.failed, 'case')} failed here and not on other nodes")
        return texts


class HardwareModel(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes of one hardware model."""

    model: str
    nodes: tuple[NodeReport, ...]  # the slowest first
    alone: tuple[str, ...] = ()  # nodes that share no case with another one
    classes: tuple[str, ...] = ()  # of hardware in a cluster, as --hardware names them
    alike: int = 0  # nodes that are runs without a tag, with one fingerprint: they may be one machine

    @property
    def spread(self) -> float | None:
        """How much slower the slowest node is than the fastest, as a share; None for fewer than two nodes."""
        changes = [each.change for each in self.nodes]
        if len(changes) == 2:  # each is relative to the other one
            return max(changes)
        return (1 + max(changes)) / (1 + min(changes)) - 1 if len(changes) > 1 else None


def relative_to(models: Sequence[HardwareModel]) -> str:
    """What the change of a node is relative to."""
    return "the median node of its model" if any(len(model.nodes) > 2 for model in models) else "the other node"


class _Unit:
    """One device of one node: its times and readings by case and restart."""

    def __init__(self, node: str, model: str, index: int) -> None:
        self.node, self.model, self.index = node, model, index
        self.fingerprint = ""  # where nothing else identifies the machine
        self.hardware: set[str] = set()
        self.times: dict[str, dict[str, float]] = {}
        self.rates: dict[str, dict[str, dict[str, float]]] = {name: {} for name in RATES}
        self.tags: Counter[str] = Counter()
        self.blocks = self.noisy = 0
        self.lost_s: dict[str, float] = defaultdict(float)  # by fact of a block
        self.timed_s: dict[str, float] = defaultdict(float)  # in which that was read, of all threads
        self.loads: list[float] = []
        self.failed: set[str] = set()
        self.backends: dict[str, str] = {}  # by case
        self.ceilings: Ceilings | None = None
        self.facts: Facts = {}

    def add(self, result: Result, restart: str) -> None:
        case = _case(result)
        self.hardware.update({result.arm.parsed_device.hardware} - {""})
        self.backends[case] = result.arm.backend
        sample = result.samples.get("time")
        seconds = readings.location(readings.block_medians(sample)) if sample else None
        if result.status is not Status.OK or sample is None or not seconds or seconds <= 0:
            if result.status.failed:
                self.failed.add(case)
            return
        self.times.setdefault(case, {})[restart] = seconds
        self.noisy += readings.is_noisy(sample)
        self.blocks += len(sample.blocks)
        self._add_load(sample, max(result.arm.parsed_device.threads, 1))
        self.tags.update(tag for block in sample.blocks for tag in block.tags)
        for name in RATES:
            values = [block.facts[name] for block in sample.blocks if block.facts.get(name, 0.0) > 0]
            if values:
                self.rates[name].setdefault(case, {})[restart] = sum(values) / len(values)

    def _add_load(self, sample: Sample, threads: int) -> None:
        for block in sample.blocks:
            for name in LOST.keys() & block.facts.keys():
                self.lost_s[name] += block.facts[name]
                self.timed_s[name] += threads * block.facts.get("seconds", 0.0)
            self.loads += [block.facts["load"]] if "load" in block.facts else []


def fleet(runs: Iterable[Run], margin: float = MARGIN, *, by_fingerprint: bool = False) -> list[HardwareModel]:
    """The nodes of the runs by hardware model. A node is flagged if its interval lies beyond the margin.

    A run on a cluster names the node of each result. Any other run is of the machine that its tag `node` names, else of
    the one with its GPUs, else of one of its own; `by_fingerprint`: of the one with its fingerprint, as runs of two
    versions of a kernel are.
    """
    models: dict[str, list[_Unit]] = {}
    for unit in _units(runs, by_fingerprint):
        models.setdefault(unit.model, []).append(unit)
    return [_judged(model, _labelled(devices), margin) for model, devices in models.items()]


def _units(runs: Iterable[Run], by_fingerprint: bool) -> Iterable[_Unit]:
    """A run is read once, and not kept."""
    devices: dict[tuple[str, str, int], _Unit] = {}
    paths: dict[str, Path] = {}  # of the first run of each node without a name, by a mark that stands for the name
    for number, run in enumerate(runs):
        gpus = _gpus(run)
        mark = "\0" + (run.manifest.fingerprint if by_fingerprint else gpus or str(run.path))
        of_run = run.manifest.node or mark
        for result in run.results:
            node = str(result.facts.get("node") or result.facts.get("fingerprint") or of_run)
            if node == mark:
                paths.setdefault(mark, run.path)
            device = result.arm.parsed_device
            key = node, device.kind, device.index
            if key not in devices:
                devices[key] = _Unit(node, _model(run, result, node), device.index)
                devices[key].ceilings, devices[key].facts = _recorded(run, result, node)
                devices[key].fingerprint = run.manifest.fingerprint if node == mark and not gpus else ""
            devices[key].add(result, f"{number}/{result.restart}")
    names = Counter(path.name for path in paths.values())
    for unit in devices.values():
        if path := paths.get(unit.node):
            unit.node = path.name if names[path.name] == 1 else str(path)
    return devices.values()


def _gpus(run: Run) -> str:
    """What identifies the GPUs of its machine; empty where that is not stored, and without a GPU."""
    hashes = [str(gpu.get("uuid_hash", "")) for gpu in run.manifest.machine.get("gpu_details") or ()]
    return ",".join(hashes) if all(hashes) else ""


def _alike(devices: Iterable[_Unit]) -> int:
    """How many machines are told apart by their runs alone, and have the fingerprint of another such machine."""
    fingerprints = {unit.node: unit.fingerprint for unit in devices if unit.fingerprint}
    return sum(count for count in Counter(fingerprints.values()).values() if count > 1)


def _model(run: Run, result: Result, node: str) -> str:
    """The name of the CPU or GPU."""
    there = run.manifest.nodes.get(node)
    environment = run.manifest.environments.get(result.arm.id)
    if environment and environment.device and not there:
        return environment.device
    card = there.get("machine", {}) if there else run.manifest.machine
    gpus = card.get("gpus") or []
    index = result.arm.parsed_device.index
    if result.arm.parsed_device.kind == "cuda":
        return str(gpus[index] if index < len(gpus) else "unknown GPU")
    return str(card.get("cpu") or "unknown CPU")


def _recorded(run: Run, result: Result, node: str) -> tuple[Ceilings | None, Facts]:
    """The ceilings of the device, and constant facts of it: its limits and its software."""
    there, device = run.manifest.nodes.get(node), result.arm.device
    if there is None:
        environment = run.manifest.environments.get(result.arm.id)
        packages = environment.packages if environment else {}
        facts = environment.facts if environment else {}
        return run.manifest.ceilings.get(device), {**facts, **run.manifest.machine, "torch": packages.get("torch")}
    stored = there.get("ceilings", {}).get(device)
    measured = msgspec.convert(stored, Ceilings) if stored else None
    facts = {**there.get("device_facts", {}), **there.get("machine", {})}
    return measured, {**facts, "torch": there.get("packages", {}).get("torch")}


def _case(result: Result) -> str:
    """What is the same on all nodes: the case, the arm without the number of its GPU, and the procedure."""
    procedure = (str(getattr(result.procedure, name)) for name in COMPARISON_KEY if name != "allocator")
    device = re.sub(r"^cuda:\d+", "cuda", result.arm.device)
    return " ".join((result.case.id, result.arm.name, device, *result.arm.settings, *procedure))


def _labelled(devices: Sequence[_Unit]) -> dict[str, _Unit]:
    """The devices by name: that of the node, with the device where a node has several."""
    counts = Counter(unit.node for unit in devices)
    return {f"{unit.node} cuda:{unit.index}" if counts[unit.node] > 1 else unit.node: unit for unit in devices}


def _judged(model: str, devices: Mapping[str, _Unit], margin: float) -> HardwareModel:
    effects = node_effects({name: unit.times for name, unit in devices.items()})
    conditions = _conditions(devices)
    measured = {case for unit in devices.values() for case in unit.times}
    reports = []
    for name, effect in effects.items():
        verdict = _verdict(effect, effects, margin)
        others = [condition for other, condition in conditions.items() if other != name and other in effects]
        slow = verdict == "slow"
        reports.append(
            NodeReport(
                node=name,
                cases=effect.cases,
                restarts=effect.restarts,
                change=math.expm1(effect.log),
                low=math.expm1(effect.low) if math.isfinite(effect.low) else None,
                high=math.expm1(effect.high) if math.isfinite(effect.high) else None,
                verdict=verdict,
                by_backend=_by_backend(name, devices) if verdict else {},
                causes=tuple(causes_of(conditions[name], others, effect.log)) if slow else (),
                not_recorded=tuple(not_recorded(conditions[name], others)) if slow else (),
                failed=len(devices[name].failed & measured),
            )
        )
    reports.sort(key=lambda report: -report.change)
    return HardwareModel(
        model=model,
        nodes=tuple(reports),
        alone=tuple(name for name in devices if name not in effects),
        classes=tuple(sorted({name for unit in devices.values() for name in unit.hardware})),
        alike=_alike(devices.values()),
    )


def _verdict(effect: NodeEffect, effects: Mapping[str, NodeEffect], margin: float) -> str:
    if effect.low > math.log1p(margin):
        return "slow"
    # Of two nodes only their difference is known: the slower one is named.
    return "fast" if effect.high < -math.log1p(margin) and len(effects) > 2 else ""


def _by_backend(name: str, devices: Mapping[str, _Unit]) -> dict[str, float]:
    """The change of a node for the cases of each backend that has enough of them."""
    changes = {}
    for backend in dict.fromkeys(devices[name].backends.values()):
        times = {
            other: {case: each for case, each in unit.times.items() if unit.backends[case] == backend}
            for other, unit in devices.items()
        }
        effect = node_effects(times).get(name)
        if effect and effect.cases >= MIN_CASES:
            changes[backend] = math.expm1(effect.log)
    return changes


def _conditions(devices: Mapping[str, _Unit]) -> dict[str, NodeCondition]:
    """What is recorded of each node. Rates are relative to those of the others on the same cases."""
    relative = {
        rate: {name: math.exp(effect.log) for name, effect in node_effects(_rates(devices, rate)).items()}
        for rate in RATES
        if rate != "temperature_c"
    }
    conditions = {}
    for name, unit in devices.items():
        degrees = [value for each in unit.rates["temperature_c"].values() for value in each.values()]
        conditions[name] = NodeCondition(
            clocks={rate: values[name] for rate, values in relative.items() if name in values},
            temperature_c=median(degrees) if degrees else None,
            shares={tag: unit.tags[tag] / unit.blocks for tag in SHARES} if unit.blocks else {},
            lost={name: unit.lost_s[name] / seconds for name, seconds in unit.timed_s.items() if seconds},
            load=median(unit.loads) if unit.loads else None,
            noisy=unit.noisy / times if (times := sum(map(len, unit.times.values()))) else None,
            memory_bytes_per_s=unit.ceilings.memory if unit.ceilings else None,
            matmul_flop_per_s={name: rate.burst for name, rate in unit.ceilings.matmul.items()}
            if unit.ceilings
            else {},
            facts=unit.facts,
        )
    return conditions


def _rates(devices: Mapping[str, _Unit], name: str) -> dict[str, dict[str, dict[str, float]]]:
    return {node: unit.rates[name] for node, unit in devices.items()}
