"""`attnbench calibrate`: the peak rates of a device, and its noise floor."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import engine_options, options
from attnbench.cli.checks import duration
from attnbench.cli.engine_options import EngineOptions

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request
    from attnbench.records.arm import Device


@options.with_options(options.DEVICE, options.HARDWARE)
def calibrate(
    context: typer.Context,
    request: Request,
    how: EngineOptions,
    floor: Annotated[
        bool, typer.Option("--floor", help="Measure the noise floor instead: identical arms over worker restarts.")
    ] = False,
    budget: Annotated[
        str,
        options.option(
            help="Time limit of --floor, and of measuring disturbed parts again: 5m, 1h.",
            metavar="TIME",
            check=duration,
        ),
    ] = "5m",
    force: Annotated[
        bool, typer.Option("--force", help="Store disturbed rates even where undisturbed ones are stored.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the stored values without measuring.")] = False,
    json: options.Json = False,
) -> int:
    """Measure the peak rates of this machine, or its noise floor.

    Peak rates are those of matrix products, memory, exp and kernel launches. `attnbench run` compares with them.
    """
    from attnbench.engine import sweep
    from attnbench.units import parse_seconds

    quiet, budget_s = options.global_options(context).quiet, parse_seconds(budget, "--budget") or math.inf
    if floor:
        engine_options.refuse(how, "--floor", "measures the noise of this machine")
    if how.engine != "local":
        return _nodes(request, how, () if show else (budget_s, force), as_json=json, quiet=quiet)
    engine_options.check_local(how, request)
    devices = sweep.devices_to_calibrate(request.device)
    if floor:
        return _floor(devices[0][0], budget, show=show, as_json=json, quiet=quiet)
    if show:
        return _show(devices, as_json=json)
    return _ceilings(devices, time.monotonic() + budget_s, force=force, as_json=json, quiet=quiet)


def _show(devices: list[tuple[Device, tuple[str, ...]]], as_json: bool) -> int:
    from attnbench.cli import output
    from attnbench.engine import sweep
    from attnbench.errors import Exit
    from attnbench.machine import identity
    from attnbench.report.terminal import ceilings as report

    stored = sweep.calibrated([device.text for device, _ in devices], identity.fingerprint()[0])
    for device, _ in devices:
        if ceilings := stored.get(device.text):
            output.lines((report.record(ceilings),), (*report.text(ceilings), ""), as_json)
        else:
            print(f"{device.text}: not calibrated yet: attnbench calibrate --device {device.text}", file=sys.stderr)
    return Exit.OK if stored else Exit.NOTHING_MEASURED


def _ceilings(
    devices: list[tuple[Device, tuple[str, ...]]], deadline: float, force: bool, as_json: bool, quiet: bool
) -> int:
    from attnbench.cli import output
    from attnbench.engine import calibration
    from attnbench.errors import Exit
    from attnbench.machine import identity, resources
    from attnbench.report.terminal import ceilings as report

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    fingerprint, _ = identity.fingerprint()
    if resources.busy():
        say(f"busy: load {resources.load():.1f} on {len(resources.available_cores())} cores; rates may be too low")
    measured = 0
    for device, parts in devices:
        say(f"calibrating {device.text} ...")
        result = calibration.measure(device, parts, deadline, say)
        if isinstance(result, str):
            print(f"{device.text}: {result}", file=sys.stderr)
            continue
        measured += 1
        # Printed first: rates that cannot be stored are not lost.
        output.lines((report.record(result),), (*report.text(result), ""), as_json)
        say(calibration.save(fingerprint, result, force))
    return Exit.OK if measured else Exit.NOTHING_MEASURED


def _nodes(request: Request, how: EngineOptions, limits: tuple[object, ...], as_json: bool, quiet: bool) -> int:
    """The nodes of a cluster; `limits` of the calibration, without which stored rates are shown."""
    from attnbench.cli import output
    from attnbench.engine.cluster import cluster_calibration
    from attnbench.errors import Exit
    from attnbench.report.terminal import ceilings as report

    devices = 0
    with engine_options.cluster(how, request) as cluster:
        for node in cluster_calibration.calibrate(cluster, request, "calibrate" if limits else "calibrated", *limits):
            if node.problem:
                print(f"{node.name}: {node.problem}", file=sys.stderr)
            for rates in node.rates:
                if measured := rates.ceilings:
                    devices += 1
                    record = {**report.record(measured), "node": node.name, "hardware": node.hardware}
                    output.lines((record,), (node.name, *report.text(measured), ""), as_json)
                if rates.note and not (quiet and rates.ceilings):
                    print(f"{node.name}: {rates.device}: {rates.note}", file=sys.stderr)
    return Exit.OK if devices else Exit.NOTHING_MEASURED


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
