"""The command line: one file a command; each parses, calls and prints."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

import attnbench
from attnbench.cli import (
    baseline,
    bisect,
    calibrate,
    catalog,
    claims,
    compare,
    doctor,
    explain,
    export,
    gate,
    history,
    merge,
    plot,
    profile,
    recommend,
    report,
    run,
    scaling,
    show,
    suite,
    tune,
    verify,
    viz,
)
from attnbench.errors import AttnbenchError, check_platform
from attnbench.errors import Exit as Code

HELP = "Benchmark, verify and guard attention kernels."

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # a bug shows its plain traceback, without local variables
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "ATTNBENCH",
        "max_content_width": 100,
    },
)
app.command()(run.run)
app.command()(report.report)
app.command()(show.show)
app.command()(plot.plot)
app.command()(viz.viz)
app.command()(merge.merge)
app.command()(export.export)
app.command()(compare.compare)
app.command()(gate.gate)
app.command()(bisect.bisect)
app.command()(history.history)
app.command()(verify.verify)
app.command()(calibrate.calibrate)
app.command()(scaling.scaling)
app.command()(claims.claims)
app.command()(profile.profile)
app.command()(tune.tune)
app.command()(recommend.recommend)
app.command()(explain.explain)
app.command()(doctor.doctor)
app.add_typer(catalog.app, name="list")
app.add_typer(baseline.app, name="baseline")
app.add_typer(suite.app, name="suite")


def _version(value: bool) -> None:
    if value:
        print(f"attnbench {attnbench.__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print it.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more, on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results alone.")] = False,
    color: Annotated[str, typer.Option(help="auto, always or never.")] = "auto",
) -> None:
    context.obj = {"verbose": verbose, "quiet": quiet, "color": color, "app": app}


def main() -> None:
    """Entry point: expected errors in one line and with their exit code, bugs with their traceback."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run one command line; gives the exit code."""
    from attnbench.cli.defaults import default_map

    try:
        check_platform()
        result = app(arguments, standalone_mode=False, default_map=default_map(app), prog_name="attnbench")
        sys.stdout.flush()
    except Exit as leaving:
        return leaving.exit_code
    except TyperException as wrong:
        return _complain(wrong.format_message(), wrong.exit_code)
    except AttnbenchError as wrong:
        return _complain(str(wrong), wrong.exit)
    except (KeyboardInterrupt, Abort):
        return _complain("stopped", Code.INTERRUPTED)
    except BrokenPipeError:
        # The reader has seen enough (`| head`); Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.OK
    except Exception:
        traceback.print_exc()
        return 70  # EX_SOFTWARE of sysexits.h: our bug
    return result if isinstance(result, int) else Code.OK


def _complain(text: str, code: int) -> int:
    if text:
        print(f"attnbench: {text}", file=sys.stderr)
    return code
