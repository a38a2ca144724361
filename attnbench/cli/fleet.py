"""`attnbench fleet`: which machine of a hardware model is slow, and why."""

from typing import Annotated

import typer

from attnbench.cli import checks, options


def fleet(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Runs on a cluster, or one of each machine: directories, names, folders of runs; `last` by default.",
        ),
    ] = None,
    margin: Annotated[
        str,
        options.option(
            "--margin", help="How much nodes of one model may differ, as 3%.", metavar="SHARE", check=checks.share
        ),
    ] = "3%",
    json: options.Json = False,
) -> int:
    """Find the slow machine among nodes of one hardware model.

    Compares the times of the cases that nodes share, and says what explains a slow node: clocks, power limit, heat,
    memory bandwidth, load. A run of a single machine is named by `run --tag node=NAME`.
    """
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.records import run_directory
    from attnbench.report.terminal import fleet as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies.fleet import fleet as study
    from attnbench.units import parse_share

    paths = run_directory.resolve_all(runs or ["last"], run_directory.results_root())
    models = study((output.load(str(path)) for path in paths), parse_share(margin, "--margin"))
    output.lines(report.records(models), report.lines(models, terminal_width()), json)
    return Exit.OK if any(model.nodes for model in models) else Exit.NOT_COMPARABLE
