"""From the options of `attnbench predict` to cells, arms and devices."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from attnbench import suite
from attnbench.analysis.roofline import ceilings_by_device
from attnbench.analysis.rows import Row, problem_of
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import plan, sweep
from attnbench.engine.sweep import LENGTHS, Request
from attnbench.errors import UnknownNameError, UsageError
from attnbench.machine import datasheet, identity
from attnbench.records.ceilings import Ceilings, Point, Rate
from attnbench.records.run_directory import Run
from attnbench.studies.predict import Prediction, Predictor, with_common_commands
from attnbench.suite import AXES, Cell, Impossible, readers
from attnbench.suite.keys import with_flag
from attnbench.units import words

# Axes that are never taken from the run: lengths, and what others imply.
_NOT_OF_RUN = LENGTHS | {"shared_prefix", "seq_kv", "tokens", "tp", "scale", "softcap", "temperature"}
_ANY_BACKEND = {"auto", "all", "libraries"}


class _Measured(NamedTuple):
    """An arm of the run, by one of its rows, and the device to predict for if it is another one."""

    row: Row
    target: Ceilings | None = None


def predictions(run: Run, rows: Sequence[Row], request: Request, extrapolate: bool) -> list[Prediction]:
    """What is predicted of each requested case on each arm. Raises UsageError where nothing is requested."""
    predictor = Predictor(rows, ceilings_by_device(run.manifest))
    arms = _arms([*predictor.arms.values()], run, request)
    if not (request.suites or LENGTHS & set(request.axes)):
        raise UsageError("predict: no lengths to predict: give --seq 3000, other axes of `run`, or --suite; or --check")
    kinds = [arm.row.device.partition(":")[0] for arm in arms]
    cells = {kind: _cells(rows, request, kind) for kind in dict.fromkeys(kinds)}
    predicted: list[Prediction] = []
    for cell in dict.fromkeys(cell for of_kind in cells.values() for cell in of_kind):
        of_cell = [
            (predictor.predict(cell, arm.row, target=arm.target, extrapolate=extrapolate), arm.row)
            for arm, kind in zip(arms, kinds, strict=True)
            if cell in cells[kind]
        ]
        predicted += with_common_commands(cell, of_cell, run.manifest.request.get("backend_python", ()))
    return predicted


def measured_rows(run: Run, rows: Sequence[Row]) -> list[Row]:
    """The rows with a time. Raises UsageError if there is none."""
    timed = [row for row in rows if row.time_s and not row.impossible]
    if not timed:
        raise UsageError(f"{run.path}: no case of this run has a time: measure some with `attnbench run`")
    return timed


def _arms(known: Sequence[Row], run: Run, request: Request) -> list[_Measured]:
    """The arms of the requested backends on the requested devices."""
    backends = plan.named_backends(request.backend)
    if not _ANY_BACKEND.isdisjoint(backends):
        backends = ()
    for name in backends:
        if not any(name in (row.arm_name, row.backend) for row in known):
            measured = dict.fromkeys(row.arm_name for row in known)
            raise UnknownNameError("backend of this run", name, measured, where="--backend")
    rows = [row for row in known if not backends or row.arm_name in backends or row.backend in backends]
    if not request.device:
        return [_Measured(row) for row in rows]
    arms: list[_Measured] = []
    for name in words(request.device, "--device"):
        here = [row for row in rows if row.device == name or row.device.startswith(f"{name}:")]
        if here:
            arms += [_Measured(row) for row in here]
        else:
            target = _other_device(name, run, [row.device for row in known])
            arms += [_Measured(row, target) for row in {row.arm_name: row for row in reversed(rows)}.values()]
    return arms


def _other_device(name: str, run: Run, measured: Sequence[str]) -> Ceilings:
    """The ceilings of a device: of the run, of this machine's calibration, or of a data sheet."""
    if known := run.manifest.ceilings.get(name) or sweep.calibrated({name}, identity.fingerprint()[0]).get(name):
        return known
    named = datasheet.sheets_named(name)
    if len(named) == 1:
        return _ceilings_of(named[0])
    if named:
        raise UsageError(f"--device {name}: several data sheets: name one of {', '.join(each.name for each in named)}")
    raise UsageError(
        f"--device {name}: neither a device of this run ({', '.join(dict.fromkeys(measured))}), nor calibrated here "
        f"(attnbench calibrate), nor a device with a data sheet ({', '.join(each.name for each in datasheet.SHEETS)})"
    )


def _ceilings_of(sheet: datasheet.Sheet) -> Ceilings:
    rates = {dtype: Rate(burst=rate, sustained=rate, size=0) for dtype, rate in sheet.flop_per_s.items()}
    memory: dict[str, tuple[Point, ...]] = {"data sheet": (Point(bytes=0, rate=sheet.bytes_per_s),)}
    return Ceilings(
        version=1, device=sheet.name, name=sheet.name, measured_at="", seconds=0.0, torch="", matmul=rates,
        bandwidth=memory,
    )  # fmt: skip


def _cells(rows: Sequence[Row], request: Request, kind: str) -> dict[Cell, None]:
    """The requested cells for one kind of device, in order."""
    if not request.suites:
        of_kind = [row for row in rows if row.device.partition(":")[0] == kind]
        request = replace(request, axes=axes_like_run(of_kind, request.axes))
    cells: dict[Cell, None] = {}
    impossible: list[Impossible] = []
    for each in sweep.suites_of(request):
        for cell in suite.expand(each, kind=kind, dtype=sweep.DEFAULT_DTYPE[kind]):
            if isinstance(cell, Impossible):
                impossible.append(cell)
            else:
                cells[Cell(cell.problem, cell.mode)] = None
    if impossible and not (cells and request.suites):
        raise UsageError(with_flag(impossible[0].reason, request.axes))
    return cells


def axes_like_run(rows: Iterable[Row], typed: Mapping[str, str]) -> dict[str, str]:
    """The typed axes, and those on which all measured cases of the run agree."""
    measured = {(problem_of(row), row.mode) for row in rows if row.time_s}
    decided = {*typed, *_NOT_OF_RUN, *(name for key in typed if key in AXES for name in AXES[key].replaces)}
    axes, plain = dict(typed), Problem(seq_q=1)
    for axis in AXES.values():
        if axis.name in decided or axis.follows in typed:
            continue
        of_mode = axis.name == "mode"
        values = {mode.value if of_mode else axis.of(problem) for problem, mode in measured}
        # The default of dtype depends on the device.
        usual = (
            "" if axis.name == "dtype" else axis.usual or readers.spell(Mode.FWD.value if of_mode else axis.of(plain))
        )
        follows = {axis.follows and AXES[axis.follows].of(problem) == axis.of(problem) for problem, _ in measured}
        if len(values) == 1 and follows != {True} and (text := readers.spell(values.pop()) or "none") != usual:
            axes[axis.name] = text
    return axes
