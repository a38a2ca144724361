"""Whether a table was measured on a device like the one of a call, and with the same software."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from attnbench.machine import hardware, identity
from attnbench.records.arm import parse_device
from attnbench.studies.dispatch_table import DeviceOrigin, Origin

# Packages whose other version may make another backend the fastest; and the driver of a GPU.
VERSIONS = ("attnbench", "torch", "triton", "xformers", "flash-attn", "flash-attn-4", "driver")


class StaleTableWarning(UserWarning):
    """A dispatch table was measured with other software or too long ago, or on another device."""


class Match(NamedTuple):
    """The device of a table whose measurements hold for a device of this process."""

    device: str  # as the table has it; empty: none
    objection: str = ""  # why there is none
    changes: tuple[str, ...] = ()  # since the table was measured
    remedy: str = "measure again with attnbench run, and attnbench recommend -o"


def current(kind: str, index: int) -> DeviceOrigin:
    """The device of this process, as a table would state it."""
    import torch

    versions = identity.packages()
    if kind != "cuda":
        threads, isa = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
        return DeviceOrigin(model=hardware.cpu_model() or "", threads=threads, isa=isa, versions=versions)
    drivers = {"driver": gpus[0].driver} if (gpus := hardware.gpus()) else {}  # one driver serves all
    return DeviceOrigin(model=torch.cuda.get_device_name(index), versions=versions | drivers)


def match(origin: Origin, kind: str, here: DeviceOrigin, now: datetime | None = None, fingerprint: str = "") -> Match:
    """The device of the table for a device of that kind: of the same model, and of CPUs with the nearest threads.

    `fingerprint`: of this machine; an empty one, here or in the table, is not compared.
    """
    of_kind = {name: there for name, there in origin.devices.items() if parse_device(name).kind == kind}
    if not of_kind:
        return Match("", f"the table has no measurements on {kind}, but on {', '.join(origin.devices) or 'no device'}")
    of_model = {name: there for name, there in of_kind.items() if there.model == here.model}
    if not of_model:
        models = ", ".join(dict.fromkeys(there.model for there in of_kind.values()))
        return Match("", f"the table was measured on {models}, and this {kind} is {here.model or 'unknown'}")
    device = min(of_model, key=lambda name: _difference(of_model[name], here))
    there = of_model[device]
    changes = (
        *_other_machine(origin.fingerprint, fingerprint), *_changes(origin, there, here, now or datetime.now(UTC))
    )  # fmt: skip
    if not here.threads or there.threads in (None, here.threads):
        return Match(device, changes=changes)
    again = f"measure again with attnbench run --device {kind}:threads={here.threads}, and attnbench recommend -o"
    alike = f"call torch.set_num_threads({there.threads}), or " if len(changes) == 1 else ""
    return Match(device, changes=changes, remedy=alike + again)


def _difference(there: DeviceOrigin, here: DeviceOrigin) -> tuple[bool, float]:
    return there.isa != here.isa, abs(math.log2((there.threads or 1) / (here.threads or 1)))


def _other_machine(there: str, here: str) -> Iterator[str]:
    if there and here and there != here:
        yield (
            f"it was measured on machine {there}, this is {here} "
            "(fingerprint of CPU, usable cores, instruction sets, memory and GPUs)"
        )


def _changes(origin: Origin, there: DeviceOrigin, here: DeviceOrigin, now: datetime) -> Iterator[str]:
    for name in VERSIONS:
        if (then := there.versions.get(name)) and then != (version := here.versions.get(name)):
            yield f"{name} was {then}, it is {version or 'not installed'}"
    for name, before, after in (("threads", there.threads, here.threads), ("isa", there.isa, here.isa)):
        if before and before != after:
            yield f"{name} was {before}, it is {after}"
    if datetime.fromisoformat(origin.expires) < now:
        yield f"it was measured on {origin.created_at[:10]} and expired on {origin.expires[:10]}"
