"""What is known of the noise of this machine when a gate begins, and what the gate adds to it."""

import time
from collections.abc import Sequence

from attnbench.analysis import noise_floor
from attnbench.analysis.noise_floor import ControlPair, DurationNoise, KernelKind
from attnbench.gate import evidence
from attnbench.gate.record import GateRecord, MachineNoise
from attnbench.machine import identity
from attnbench.records.arm import Arm
from attnbench.records.run_directory import Run


def machine_noise(fingerprint: str, arms: Sequence[Arm]) -> MachineNoise:
    """What is known of the noise of this machine, on the devices of these arms and for the kinds of their kernels."""
    devices = dict.fromkeys(arm.device for arm in arms)
    factors = [noise_floor.factor(noise_floor.load(fingerprint, device)) for device in devices]
    factor, runs = max(factors, default=(0.0, 0))
    names = dict.fromkeys(arm.backend for arm in arms)
    user_backends = tuple(name for name in names if noise_floor.kernel_kind(name) is KernelKind.USER)
    user: dict[float, DurationNoise] = {}  # the noisiest device counts, as for the machine
    for device in devices if user_backends else ():
        for entry in noise_floor.factors(noise_floor.load(fingerprint, device, KernelKind.USER)):
            before = user.setdefault(entry.shortest_s, entry)
            user[entry.shortest_s] = max(before, entry, key=lambda noise: (noise.factor, noise.runs))
    return MachineNoise(
        factor=factor, runs=runs, resolution_s=time.get_clock_info("perf_counter").resolution,
        user_backends=user_backends, user=tuple(user.values()),
    )  # fmt: skip


def add(run: Run, gate: GateRecord) -> None:
    """Add the A/A controls of this run, and head where it equals base, to what is known of the machine."""
    torch, measured_at = _torch(run), run.manifest.created_at
    pairs: list[ControlPair] = []
    for pair in evidence.pairings(run.results):
        for control in (pair.control, pair.head if gate.base == gate.head else None):
            if control and pair.base:
                effects = evidence.effects(control, pair.base)
                pairs += filter(None, [noise_floor.of_effects(control, effects, measured_at, torch)])
    if pairs:
        noise_floor.add(run.manifest.fingerprint, pairs)


def _torch(run: Run) -> str:
    """The version of torch that the arms of a run had."""
    versions = (environment.packages.get("torch") for environment in run.manifest.environments.values())
    return next(filter(None, versions), "") or identity.packages().get("torch", "")
