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
from attnbench.cli.application import Application
from attnbench.cli.options import GlobalOptions
from attnbench.errors import AttnbenchError, check_platform
from attnbench.errors import Exit as Code

HELP = (
    "Benchmark, verify and guard attention kernels.\n\n`attnbench run` prints a first table within a minute; "
    "`attnbench help environment` lists environment variables."
)
# By panel of the help. A command is the function of its name in the module of its name; a group is an `app`.
COMMANDS = {
    "Measure": ("run", "verify", "calibrate", "scaling", "claims", "profile", "tune"),
    "Read results": ("report", "show", "compare", "plot", "recommend", "merge", "export"),
    "Find regressions": ("gate", "bisect", "history", "baseline"),
    "Look up and set up": ("list", "suite", "explain", "doctor", "viz", "new_backend", "help"),
}

app = Application(
    HELP,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "ATTNBENCH",
        "max_content_width": 100,
    },
)
for panel, names in COMMANDS.items():
    for name in names:
        module = import_module(f"attnbench.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, rich_help_panel=panel)
        else:
            app.add(getattr(module, name), panel=panel)


def _version(value: bool) -> None:
    if value:
        print(f"attnbench {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    color: Annotated[str, typer.Option(help="Colour: auto, always or never.", metavar="WHEN")] = "auto",
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
