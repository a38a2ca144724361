"""`attnbench recommend`: the best backend by shape, and the cost of one fixed choice."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import checks, options

if TYPE_CHECKING:
    from attnbench.analysis.rows import Row
    from attnbench.records.run_directory import Manifest

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write the dispatch table as JSON to this file.", metavar="FILE")
]
Expires = Annotated[
    str,
    options.option(
        "--expires",
        help="Age of the measurements at which `attnbench.dispatch` warns.",
        metavar="TIME",
        check=checks.age,
    ),
]
Engine = Annotated[
    str | None,
    options.option(
        "--to",
        help="Print what selects the best backend in vllm, sglang or transformers, and why.",
        metavar="ENGINE",
        check=checks.one_of("engine", checks.names_in("studies.engine_advice:ENGINES")),
    ),
]


def recommend(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Run directories, their names, or folders of runs; `last` by default.", metavar="RUN"),
    ] = None,
    machine: options.Machine = "",
    out: Out = None,
    expires: Expires = "90d",
    to: Engine = None,
    json: Annotated[bool, typer.Option("--json", help="Print the table, or with --to the setting, as JSON.")] = False,
) -> int:
    """Choose the fastest backend for each shape of stored runs.

    Also prints how much slower one backend for all shapes would be. Of several runs of a shape on one machine, the
    newest of those that rank most backends counts.
    """
    import msgspec

    from attnbench import units
    from attnbench.analysis.roofline import ceilings_by_device
    from attnbench.cli import output
    from attnbench.errors import Exit, writing
    from attnbench.report.terminal import dispatch_table as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies import dispatch_table, engine_advice
    from attnbench.studies.recommend import dispatch

    valid_s = units.parse_age(expires, "--expires")
    rows, manifest = _rows(runs or ["last"], machine)
    table = dispatch(rows, ceilings_by_device(manifest), dispatch_table.origin(manifest, valid_s))
    if left_out := (every := len({(row.device, row.mode, row.problem) for row in rows})) - len(table.choices):
        print(f"{left_out} of {units.counted(every, 'problem')} left out: no time to compare", file=sys.stderr)
    text = msgspec.json.format(msgspec.json.encode(table), indent=2)
    if out:
        with writing(out):
            out.write_bytes(text + b"\n")
        print(f"wrote {out}", file=sys.stderr)
    if to:
        advice = engine_advice.advise(table, to)
        output.lines(msgspec.to_builtins(advice), report.advice_lines(advice, terminal_width()), json)
    else:
        print(*([text.decode()] if json else report.lines(table, terminal_width())), sep="\n")
    return Exit.OK if table.choices else Exit.NOTHING_MEASURED


def _rows(names: list[str], machine: str) -> "tuple[list[Row], Manifest]":
    """The rows of a run; of several runs those of one machine, each problem from one run. And the newest manifest."""
    from attnbench.analysis.roofline import ceilings_by_device
    from attnbench.analysis.rows import rows_of
    from attnbench.cli import output, stored_runs
    from attnbench.errors import UsageError
    from attnbench.records import run_directory

    if len(names) == 1 and not machine and not run_directory.holds_runs(names[0], run_directory.results_root()):
        stored = output.load(names[0])
        ceilings = ceilings_by_device(stored.manifest)
        return rows_of(stored.results, ceilings=ceilings, arms=stored.manifest.arms), stored.manifest
    with stored_runs.indexed(names, "recommend for several runs") as indexed:
        fingerprint = stored_runs.machine(indexed, machine)
        rows, newest = indexed.newest(fingerprint)
    if newest is None:
        raise UsageError(
            f"recommend: {', '.join(names)} holds no results of machine {fingerprint!r} but those of gates"
        )
    return rows, run_directory.read_manifest(newest)
