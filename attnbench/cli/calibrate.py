"""`attnbench calibrate`: the peak rates of a device, and its noise floor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request
    from attnbench.records.arm import Device


@options.with_options(options.DEVICE)
def calibrate(
    context: typer.Context,
    request: Request,
    floor: Annotated[
        bool, typer.Option("--floor", help="Measure the noise floor instead: identical arms over worker restarts.")
    ] = False,
    budget: Annotated[str, typer.Option(help="Time limit of --floor: 5m or 1h.", metavar="TIME")] = "5m",
    show: Annotated[bool, typer.Option("--show", help="Print the stored values without measuring.")] = False,
    json: options.Json = False,
) -> int:
    """Measure the peak rates of this machine, or its noise floor.

    Peak rates are those of matrix products, memory, exp and kernel launches. `attnbench run` compares with them.
    """
    from attnbench.studies import calibrate as study

    devices = study.devices(request.device)
    quiet = options.global_options(context).quiet
    if floor:
        return _floor(devices[0][0], budget, show=show, as_json=json, quiet=quiet)
    return _ceilings(devices, show=show, as_json=json, quiet=quiet)


def _ceilings(devices: list[tuple[Device, tuple[str, ...]]], show: bool, as_json: bool, quiet: bool) -> int:
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.machine import identity
    from attnbench.records import ceilings
    from attnbench.report.terminal import ceilings as report
    from attnbench.studies import calibrate as study

    fingerprint, _ = identity.fingerprint()
    torch = identity.packages().get("torch", "")
    measured = 0
    for device, parts in devices:
        name = device.text
        if not show and not quiet:
            print(f"calibrating {name} ...", file=sys.stderr, flush=True)
        result = ceilings.load(fingerprint, name, torch) if show else study.measure(device, parts)
        if result is None:
            print(f"{name}: not calibrated yet: attnbench calibrate --device {name}", file=sys.stderr)
            continue
        if isinstance(result, str):
            print(f"{name}: {result}", file=sys.stderr)
            continue
        measured += 1
        path = None if show else ceilings.save(fingerprint, result)
        output.lines((report.record(result),), (*report.text(result), ""), as_json)
        if path and not quiet:
            print(f"saved: {path}", file=sys.stderr)
    return Exit.OK if measured else Exit.NOTHING_MEASURED


def _floor(device: Device, budget: str, show: bool, as_json: bool, quiet: bool) -> int:
    import msgspec

    from attnbench.analysis import noise_floor
    from attnbench.analysis.noise_floor import KernelKind
    from attnbench.cli import output
    from attnbench.cli.running import watched
    from attnbench.errors import Exit
    from attnbench.machine import identity
    from attnbench.report.terminal import ceilings as report
    from attnbench.studies import calibrate as study

    fingerprint, _ = identity.fingerprint()
    if not show:
        with watched("none" if quiet else "auto", study.floor_cases(device)) as (watcher, watch):
            new = study.equal_arms(device, budget, watcher, watch)
        path = noise_floor.add(fingerprint, new)
        print(f"{len(new)} pairs of equal arms added to {path}", file=sys.stderr)
    pairs = noise_floor.load(fingerprint, device.text)
    user = noise_floor.load(fingerprint, device.text, KernelKind.USER)
    records = (
        {"type": "floor", "device": device.text, "kernel": kind.value, **msgspec.to_builtins(group)}
        for kind, of_kind in ((KernelKind.LIBRARY, pairs), (KernelKind.USER, user))
        for group in noise_floor.classes(of_kind)
    )
    output.lines(records, report.noise_floor(device.text, pairs, user), as_json)
    return Exit.OK if pairs or user else Exit.NOTHING_MEASURED
