"""The command line: one file per command; each parses, calls and prints."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from attnbench._version import __version__
from attnbench.cli.options import GlobalOptions
from attnbench.errors import AttnbenchError, check_platform
from attnbench.errors import Exit as Code

HELP = "Benchmark, verify and guard attention kernels."
# In the order of the help. A command is the function of its name in the module of its name; a group is an `app`.
COMMANDS = (
    "run", "report", "show", "plot", "viz", "merge", "export", "compare", "gate", "bisect", "history", "verify",
    "calibrate", "scaling", "claims", "profile", "tune", "recommend", "explain", "doctor",
)  # fmt: skip
GROUPS = ("list", "baseline", "suite")

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
for name in COMMANDS:
    app.command()(getattr(import_module(f"attnbench.cli.{name}"), name))
for name in GROUPS:
    app.add_typer(import_module(f"attnbench.cli.{name}").app, name=name)


def _version(value: bool) -> None:
    if value:
        print(f"attnbench {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    color: Annotated[str, typer.Option(help="Colour: auto, always or never.")] = "auto",
) -> None:
    context.obj = GlobalOptions(app=app, verbose=verbose, quiet=quiet, color=color)


def main() -> None:
    """Entry point: expected errors in one line and with their exit code, bugs with their traceback."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run one command line; return the exit code."""
    from attnbench.cli.config import default_map

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
