"""The command line: one file per command; each parses, calls and prints."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from attnbench._version import __version__
from attnbench.attention import user_folders
from attnbench.cli import stop_signals, streams
from attnbench.cli.application import Application
from attnbench.cli.checks import one_of
from attnbench.cli.options import COLORS, GlobalOptions, option
from attnbench.cli.stop_signals import StopSignals
from attnbench.errors import AttnbenchError, check_platform
from attnbench.errors import Exit as Code

HELP = (
    "Benchmark, verify and guard attention kernels.\n\n`attnbench run` prints a first table in a minute or two; "
    "`attnbench help environment` lists environment variables."
)
# By panel of the help. A command is the function of its name in the module of its name; a group is an `app`.
COMMANDS = {
    "Measure": ("run", "verify", "calibrate", "scaling", "claims", "profile", "tune", "replay", "corpus"),
    "Read results": ("report", "show", "query", "compare", "fleet", "plot", "recommend", "predict", "merge", "export"),
    "Find regressions": ("gate", "bisect", "history", "baseline"),
    "Look up and set up": ("list", "suite", "explain", "doctor", "viz", "new_backend", "help"),
}
# Of files that the user named: no space, no permission, no such kind of place. A missing file may be a bug.
UNWRITABLE = {
    errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip
COMPLETION = "_ATTNBENCH_COMPLETE"  # set by the shell that asks for completions

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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more; also after the command.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only; also after the command.")] = False,
    color: Annotated[
        str,
        option(
            help="Colour: auto, always or never; also after the command.",
            metavar="WHEN",
            check=one_of("colour", lambda: COLORS),
        ),
    ] = "auto",
) -> None:
    context.obj = GlobalOptions(app=app, verbose=verbose, quiet=quiet, color=color)


def main() -> None:
    """Entry point: expected errors in one line and with their exit code, bugs with their traceback."""
    streams.open_missing_descriptors()
    user_folders.set_missing_home()
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run one command line; return the exit code.

    Output that cannot be written changes no code but 0. A reader that closed the pipe changes none.
    """
    with streams.safe() as (out, _), stop_signals.handled() as signals:
        try:
            code = _run(arguments, signals)
            sys.stdout.flush()
        except KeyboardInterrupt:  # a signal while the last lines are written
            code = signals.exit_code
        if signals.at_once:
            _complain("stopped", code)
        return _complain(f"cannot write to stdout: {out.error}", code or Code.USAGE) if out.error else code


@cache  # Typer inspects every option of every command: a tenth of a second
def _command() -> Callable[..., object]:
    """The function that runs a command line."""
    return typer.main.get_command(app)


def _run(arguments: list[str], signals: StopSignals) -> int:
    try:
        check_platform()
        result = _command()(
            arguments, standalone_mode=False, default_map=_configuration(arguments), prog_name="attnbench"
        )
    except Exit as leaving:
        return leaving.exit_code
    except TyperException as wrong:
        return _complain(wrong.format_message(), wrong.exit_code)
    except AttnbenchError as wrong:
        return _complain(str(wrong), wrong.exit)
    except (KeyboardInterrupt, Abort):
        return signals.exit_code
    except SystemExit as leaving:
        # Typer ends with 1 at a broken pipe; stdout and stderr raise none, so it is a bug elsewhere.
        if isinstance(leaving.__context__, OSError):
            return _report_bug(leaving.__context__)
        raise  # completion in a shell
    except Exception as bug:
        if isinstance(bug, OSError) and bug.errno in UNWRITABLE:
            return _complain(": ".join(filter(None, (bug.filename, bug.strerror))), Code.USAGE)
        return _report_bug(bug)
    if signals.number:
        return signals.exit_code
    return result if isinstance(result, int) else Code.OK


def _configuration(arguments: list[str]) -> dict[str, dict[str, object]]:
    """The default values of options from configuration files, which help and version do without."""
    from attnbench.cli.config import default_map

    without = not arguments or {"-h", "--help", "-V", "--version"}.intersection(arguments) or COMPLETION in os.environ
    return {} if without else default_map(app)


def _report_bug(bug: BaseException) -> int:
    traceback.print_exception(bug)
    return 70  # EX_SOFTWARE of sysexits.h


def _complain(text: str, code: int) -> int:
    if text:
        print(f"attnbench: {text}", file=sys.stderr)
    return code
