"""A sweep on a cluster: the plans of its classes of hardware, each made on a node that has it, as one."""

import hashlib
from collections.abc import Mapping
from functools import partial

import msgspec
from msgspec.structs import replace

from attnbench.engine.cluster import nodes
from attnbench.engine.cluster.cluster_runner import ClusterRunner
from attnbench.engine.cluster.nodes import CPU, ClusterDevice, ClusterNode
from attnbench.engine.cluster.processes import Cluster, ProcessLostError
from attnbench.engine.request import Request
from attnbench.engine.sweep import DEFAULT_SUITE, Machine, StartRunner, Sweep
from attnbench.errors import UsageError
from attnbench.records.arm import Device, parse_device
from attnbench.units import words


def prepare(
    cluster: Cluster, request: Request, *, interpreted: bool = False, default_suite: str = DEFAULT_SUITE
) -> tuple[Sweep, StartRunner]:
    """Plan a request on the cluster, as `sweep.prepare` does here; and what makes the runner of the plan."""
    if request.profile:
        raise UsageError("--profile: traces would stay on their nodes; profile with --engine local")
    named = words(request.hardware, "--hardware") if request.hardware else ()
    there = cluster.nodes()
    classes = nodes.chosen(there, named)
    sweeps = {}
    for hardware in classes:
        node = next(node for node in there if node.hardware == hardware)
        mark = hardware if named and hardware != CPU else ""
        marked = replace(request, device=_device(request, node, mark), hardware="")
        sweeps[hardware] = _planned(cluster, node, marked, interpreted, default_suite)
    _check_devices(request, sweeps)
    settings = {hardware: planned.settings for hardware, planned in sweeps.items()}
    return joined(request, sweeps), partial(ClusterRunner, cluster, settings)


def _device(request: Request, node: ClusterNode, mark: str) -> str:
    """The devices of a request that a node of this kind has, marked with its class of hardware."""
    if node.kind == "cuda":
        devices = [Device(kind="cuda")]
    else:
        named = map(parse_device, words(request.device, "--device")) if request.device else ()
        devices = [device for device in named if device.kind == "cpu"] or [Device(kind="cpu")]
    return ",".join(replace(device, hardware=mark).text for device in devices)


def _check_devices(request: Request, sweeps: Mapping[str, Sweep]) -> None:
    """Raise UsageError for a device that no chosen node has: a node's GPU is always its cuda:0."""
    kinds = {device.kind for planned in sweeps.values() for device in planned.devices}
    for word in words(request.device, "--device") if request.device else ():
        device = parse_device(word)
        if device.kind not in kinds or device.index:
            raise UsageError(f"--device {word}: with --engine ray, --hardware chooses GPUs, and --device CPU threads")


def _planned(cluster: Cluster, node: ClusterNode, *arguments: object) -> Sweep:
    process = cluster.start(ClusterDevice(node=node))
    try:
        call = cluster.call(process, "plan", *arguments)
        if not cluster.ready([call], PLAN_S):
            raise UsageError(f"--engine ray: {node.name} is used by another job, or does not answer ({PLAN_S:.0f} s)")
        reply = cluster.reply(call)
    except ProcessLostError as error:
        raise UsageError(f"--engine ray: {node.name} cannot plan: {error}") from error
    finally:
        cluster.end(process)
    if isinstance(reply, str):
        raise UsageError(reply)
    assert isinstance(reply, Sweep)
    return reply


PLAN_S = 180.0  # for the files to arrive, and the plan of a large suite


def joined(request: Request, sweeps: Mapping[str, Sweep]) -> Sweep:
    """The sweeps of several classes as one. Its request is that of the user, which a resume repeats."""
    first = next(iter(sweeps.values()))
    several = len(sweeps) > 1
    plans = {hardware: planned.plan for hardware, planned in sweeps.items()}
    groups = [
        replace(group, id=f"{hardware}-{group.id}") if several else group
        for hardware, planned in plans.items()
        for group in planned.groups
    ]
    procedures = {kind: each for planned in sweeps.values() for kind, each in planned.settings.procedures.items()}
    return Sweep(
        request=replace(first.request, hardware=request.hardware, device=request.device),
        name=first.name,
        devices=tuple(dict.fromkeys(device for planned in sweeps.values() for device in planned.devices)),
        cells=tuple(cell for planned in sweeps.values() for cell in planned.cells),
        plan=replace(
            first.plan,
            groups=tuple(groups),
            refusals=tuple(refusal for planned in plans.values() for refusal in planned.refusals),
            arms=tuple({arm.id: arm for planned in plans.values() for arm in planned.arms}.values()),
            impossible=tuple(dict.fromkeys(cell for planned in plans.values() for cell in planned.impossible)),
        ),
        settings=replace(first.settings, procedures=procedures),
        machine=_machine(sweeps),
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
