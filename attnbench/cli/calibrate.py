"""`attnbench calibrate`: what this machine can do at most, and how far equal arms seem to differ on it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.arm import Device
    from attnbench.ceilings import Ceilings


def calibrate(
    context: typer.Context,
    device: options.DeviceOption = None,
    floor: Annotated[
        bool, typer.Option("--floor", help="The noise floor instead: equal arms over relaunched workers.")
    ] = False,
    budget: Annotated[str, typer.Option(help="Time for --floor: 5m, 1h.", metavar="TIME")] = "5m",
    show: Annotated[bool, typer.Option("--show", help="Print what is stored; measure nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a device.")] = False,
) -> int:
    """Measure the ceilings of a device: matrix products, memory, exp, launches. `run` then tells how near it comes."""
    from attnbench.studies import calibrate as study

    chosen = study.devices(device or "")
    if floor:
        return _floor(chosen[0][0], budget, show=show, as_json=json_, quiet=context.obj["quiet"])
    return _ceilings(chosen, show=show, as_json=json_, quiet=context.obj["quiet"])


def _ceilings(chosen: list[tuple[Device, tuple[str, ...]]], show: bool, as_json: bool, quiet: bool) -> int:
    from attnbench import ceilings, host
    from attnbench.errors import Exit
    from attnbench.studies import calibrate as study

    fingerprint, _ = host.fingerprint()
    torch = host.packages().get("torch", "")
    measured = 0
    for one, parts in chosen:
        if not show and not quiet:
            print(f"calibrating {one.text} ...", file=sys.stderr, flush=True)
        found = ceilings.load(fingerprint, one.text, torch) if show else study.measure(one, parts)
        if found is None:
            print(f"{one.text}: not calibrated yet: attnbench calibrate --device {one.text}", file=sys.stderr)
            continue
        if isinstance(found, str):
            print(f"{one.text}: {found}", file=sys.stderr)
            continue
        measured += 1
        path = None if show else ceilings.save(fingerprint, found)
        _print(found, as_json)
        if path and not quiet:
            print(f"kept: {path}", file=sys.stderr)
    return Exit.OK if measured else Exit.NOTHING_MEASURED


def _print(found: Ceilings, as_json: bool) -> None:
    import msgspec

    from attnbench.report import ceilings as report

    if as_json:
        print(msgspec.json.encode(report.record(found)).decode())
    else:
        print("\n".join(report.text(found)), end="\n\n")


def _floor(device: Device, budget: str, show: bool, as_json: bool, quiet: bool) -> int:
    import msgspec

    from attnbench import floor, host
    from attnbench.cli import progress
    from attnbench.cli.running import interruptible
    from attnbench.errors import Exit
    from attnbench.report import ceilings as report
    from attnbench.runner import Runner
    from attnbench.studies import calibrate as study

    fingerprint, _ = host.fingerprint()
    if not show:
        runners: list[Runner] = []
        watcher = progress.observer("none" if quiet else "auto", study.floor_cases(device))
        with watcher as seen, interruptible(runners):
            new = study.equal_arms(device, budget, seen, runners.append)
        path = floor.add(fingerprint, new)
        print(f"{len(new)} pairs of equal arms added to {path}", file=sys.stderr)
    twins = floor.load(fingerprint, device.text)
    for line in report.floor_text(device.text, twins) if not as_json else ():
        print(line)
    for one in floor.classes(twins) if as_json else ():
        print(msgspec.json.encode({"type": "floor", "device": device.text, **msgspec.to_builtins(one)}).decode())
    return Exit.OK if twins else Exit.NOTHING_MEASURED
