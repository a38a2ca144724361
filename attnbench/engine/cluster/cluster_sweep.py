"""A sweep on a cluster: the plans of its classes of hardware, each made on a node that has it, as one."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from attnbench.engine.cluster import nodes
from attnbench.engine.cluster.cluster_runner import ClusterRunner, Homes, class_of
from attnbench.engine.cluster.nodes import CPU, ClusterDevice, ClusterNode
from attnbench.engine.cluster.processes import Cluster, ProcessLostError
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.plan import Plan
from attnbench.engine.request import Request
from attnbench.engine.sweep import DEFAULT_SUITE, Machine, StartRunner, Sweep
from attnbench.errors import UsageError
from attnbench.records.arm import Arm, Device, parse_device
from attnbench.suite import Cell
from attnbench.units import words

MIN_SECONDS = 0.001  # predicted, of a group


class ClusterEngine:
    """Plans and runs on the nodes of a cluster. `classes`: the settings of each class of hardware."""

    def __init__(self, cluster: Cluster, classes: Mapping[str, RunSettings]) -> None:
        self._cluster, self._classes = cluster, classes
        self._checked: set[str] = set()  # devices, by all runners
        self._homes: Homes = {}

    @property
    def start(self) -> StartRunner:
        """What makes the runner of a plan."""
        return partial(ClusterRunner, self._cluster, self._classes, checked=self._checked, homes=self._homes)

    def homes(self, ready: Sweep) -> Homes:
        """A device for each case, on which all its restarts run. Every device of a class gets as much work as another.

        It is known by the id of the case and the text of its device.
        """
        there = nodes.devices(self._cluster.nodes())
        loads = {device.name: 0.0 for device in there}
        by_class = {name: [each.name for each in there if each.node.hardware == name] for name in self._classes}
        homes = {}
        for group in sorted(ready.plan.groups, key=lambda group: -group.seconds):
            hardware = class_of(group.arms[0].parsed_device.hardware, self._classes)
            for arm in group.arms:
                home = min(by_class[hardware], key=lambda name: (loads[name], name), default="")
                homes[group.case(arm).id, arm.device] = home
                loads[home] += max(group.seconds, MIN_SECONDS) / len(group.arms)
        self._homes = homes
        return homes

    def together(self, cells: Sequence[tuple[Cell, Sequence[Arm]]], settings: RunSettings) -> Plan:
        """A plan of one group for each cell, made on a node of its class of hardware."""
        plans = {}
        for hardware in self._classes:
            of_class = [
                (cell, arms)
                for cell, arms in cells
                if class_of(arms[0].parsed_device.hardware, self._classes) == hardware
            ]
            node = next(node for node in self._cluster.nodes() if node.hardware == hardware)
            reply = _reply_of(self._cluster, node, "together", of_class, self._classes[hardware])
            assert isinstance(reply, Plan)
            plans[hardware] = reply
        return _joined(plans)


def prepare(
    cluster: Cluster,
    request: Request,
    *,
    interpreted: bool = False,
    default_suite: str = DEFAULT_SUITE,
    cpu: str = "cpu",
) -> tuple[Sweep, ClusterEngine]:
    """Plan a request on the cluster, as `sweep.prepare` does here; and what runs the plan.

    `cpu`: the device of a node without GPU where the request names none.
    """
    if request.profile:
        raise UsageError("--profile: traces would stay on their nodes; profile with --engine local")
    named = words(request.hardware, "--hardware") if request.hardware else ()
    there = cluster.nodes()
    classes = nodes.chosen(there, named)
    first_nodes = {hardware: next(node for node in there if node.hardware == hardware) for hardware in classes}
    _check_devices(request, first_nodes.values())
    sweeps = {}
    for hardware, node in first_nodes.items():
        mark = hardware if named and hardware != CPU else ""
        devices = [replace(device, hardware=mark).text for device in _devices(request, node) or [parse_device(cpu)]]
        marked = replace(request, device=",".join(devices), hardware="")
        sweeps[hardware] = _planned(cluster, node, marked, interpreted, default_suite)
    settings = {hardware: planned.settings for hardware, planned in sweeps.items()}
    return joined(request, sweeps), ClusterEngine(cluster, settings)


def nodes_of(cluster: Cluster, request: Request) -> list[ClusterNode]:
    """The nodes of the classes of a request; without one, all. Raises UsageError."""
    there = cluster.nodes()
    every = sorted({node.hardware for node in there})
    classes = nodes.chosen(there, words(request.hardware, "--hardware") if request.hardware else every)
    chosen = [node for node in there if node.hardware in classes]
    _check_devices(request, chosen)
    return chosen


def device_of(request: Request, node: ClusterNode) -> str:
    """The devices of a request that a node of this kind has; empty for its default ones."""
    return ",".join(device.text for device in _devices(request, node))


def _devices(request: Request, node: ClusterNode) -> list[Device]:
    if node.kind == "cuda":
        return [Device(kind="cuda")]
    named = map(parse_device, words(request.device, "--device")) if request.device else ()
    return [device for device in named if device.kind == "cpu"]


def _check_devices(request: Request, chosen: Iterable[ClusterNode]) -> None:
    """Raise UsageError for a device that no chosen node has: a node's GPU is always its cuda:0."""
    kinds = {node.kind for node in chosen}
    for word in words(request.device, "--device") if request.device else ():
        device = parse_device(word)
        if device.kind not in kinds or device.index:
            raise UsageError(f"--device {word}: with --engine ray, --hardware chooses GPUs, and --device CPU threads")


def _planned(cluster: Cluster, node: ClusterNode, *arguments: object) -> Sweep:
    reply = _reply_of(cluster, node, "plan", *arguments)
    assert isinstance(reply, Sweep)
    return reply


def _reply_of(cluster: Cluster, node: ClusterNode, method: str, *arguments: object) -> object:
    """The reply of a process on a node that ends afterwards. Raises UsageError, also with the text of a reply."""
    process = cluster.start(ClusterDevice(node=node))
    try:
        call = cluster.call(process, method, *arguments)
        if not cluster.ready([call], PLAN_S):
            raise UsageError(f"--engine ray: {node.name} is used by another job, or does not answer ({PLAN_S:.0f} s)")
        reply = cluster.reply(call)
    except ProcessLostError as error:
        raise UsageError(f"--engine ray: {node.name} cannot plan: {error}") from error
    finally:
        cluster.end(process)
    if isinstance(reply, str):
        raise UsageError(reply)
    return reply


PLAN_S = 180.0  # for the files to arrive, and the plan of a large suite


def joined(request: Request, sweeps: Mapping[str, Sweep]) -> Sweep:
    """The sweeps of several classes as one. Its request is that of the user, which a resume repeats."""
    first = next(iter(sweeps.values()))
    procedures = {kind: each for planned in sweeps.values() for kind, each in planned.settings.procedures.items()}
    return Sweep(
        request=replace(first.request, hardware=request.hardware, device=request.device),
        name=first.name,
        devices=tuple(dict.fromkeys(device for planned in sweeps.values() for device in planned.devices)),
        cells=tuple(cell for planned in sweeps.values() for cell in planned.cells),
        plan=_joined({hardware: planned.plan for hardware, planned in sweeps.items()}),
        settings=replace(first.settings, procedures=procedures),
        machine=_machine(sweeps),
    )


def _joined(plans: Mapping[str, Plan]) -> Plan:
    first = next(iter(plans.values()))
    groups = [
        replace(group, id=f"{hardware}-{group.id}") if len(plans) > 1 else group
        for hardware, plan in plans.items()
        for group in plan.groups
    ]
    return replace(
        first,
        groups=tuple(groups),
        refusals=tuple(refusal for plan in plans.values() for refusal in plan.refusals),
        arms=tuple({arm.id: arm for plan in plans.values() for arm in plan.arms}.values()),
        impossible=tuple(dict.fromkeys(cell for plan in plans.values() for cell in plan.impossible)),
    )


def _machine(sweeps: Mapping[str, Sweep]) -> Machine:
    """The first node of each class. The fingerprint names classes: a resume may find other nodes of them."""
    machines = {hardware: planned.machine for hardware, planned in sweeps.items() if planned.machine}
    first = next(iter(machines.values()))
    models = {name: [each.card.get("cpu"), each.card.get("gpus")] for name, each in machines.items()}
    gpus = [gpu for each in machines.values() for gpu in each.card.get("gpus") or ()]
    known = {device: rates for each in machines.values() for device, rates in each.ceilings.items()}
    digest = hashlib.sha256(msgspec.json.encode(models, order="sorted")).hexdigest()[:12]
    return Machine(card={**first.card, "gpus": gpus}, fingerprint=digest, ceilings=known)
