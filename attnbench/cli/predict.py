"""`attnbench predict`: time and memory of cases that were not measured, from a stored run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import checks, options

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request

BACKEND = options.BACKEND.but(help="Backends of the run; by default all of its arms.")
DEVICE = options.DEVICE.but(
    help="Devices of the run, all by default; or another one, calibrated here or with a data sheet (H100, L4): from "
    "its roofline.",
    check=checks.devices_or_sheets,
)  # fmt: skip


Extrapolate = Annotated[
    bool, typer.Option("--extrapolate", help="Predict also where sizes are more than a factor of 2 outside the range.")
]
Check = Annotated[bool, typer.Option("--check", help="Hide each measured shape, predict it, and print the errors.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Also write JSON Lines to this file.", metavar="FILE")]


@options.with_options(options.PROBLEM, options.SUITE, BACKEND, DEVICE)
def predict(
    request: Request, run: options.RunName = "last", extrapolate: Extrapolate = False, check: Check = False,
    out: Out = None, json: options.Json = False,
) -> int:  # fmt: skip
    """Predict time and memory of shapes from a stored run.

    Fits a law to the measured cases of each backend; axes that are not given are those of the run. Prints intervals and
    what each prediction is based on.
    """
    import msgspec

    from attnbench.analysis.rows import rows_of
    from attnbench.cli import output
    from attnbench.errors import Exit, UsageError, writing
    from attnbench.report.formats import jsonl
    from attnbench.report.terminal import predictions as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies import prediction_check, prediction_request

    if check and (request.axes or request.suites or request.backend or request.device or extrapolate):
        rest = "leave out shapes, --backend, --device and --extrapolate"
        raise UsageError(f"predict: --check predicts every measured case of the run: {rest}")
    stored = output.load(run)
    rows = rows_of(stored.results, arms=stored.manifest.arms)
    measured = prediction_request.measured_rows(stored, rows)
    if check:
        hidden = prediction_check.check(measured)
        records = [{"type": "check", **msgspec.to_builtins(each)} for each in hidden]
        text, predicted = report.checked(hidden, terminal_width()), bool(hidden[-1].cases)
    else:
        predictions = prediction_request.predictions(stored, measured, request, extrapolate)
        records = [{"type": "prediction", **msgspec.to_builtins(each)} for each in predictions]
        text, predicted = report.lines(predictions, terminal_width()), any(each.time for each in predictions)
    if out:
        with writing(out):
            out.write_text("".join(f"{jsonl.line(record)}\n" for record in records))
        print(f"wrote {out}", file=sys.stderr)
    output.lines(records, text, json)
    return Exit.OK if predicted else Exit.NOTHING_MEASURED
