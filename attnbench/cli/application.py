"""Typer applications whose help is grouped: in drawn panels on a terminal, in plain sections elsewhere."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from attnbench.errors import UnknownNameError

if TYPE_CHECKING:
    from typer._click import Command as ClickCommand
    from typer._click import Context, Parameter

Check = Callable[..., object]  # the callback of an option
F = TypeVar("F", bound=Callable[..., object])

# The panel of an option, by its name, in every command. Options without an entry stand in the panel "Options".
PANELS = {
    name: panel
    for panel, names in {
        "Problem": "suite seq seq_q seq_kv batch tokens dtype heads kv_heads head_dim head_dim_v mask score bias "
        "requests mode set",
        "Arms": "backend device backend_python engine address hardware reference",
        "Traffic": "trace_format speed jitter replicas",
        "Server": "gpu tp kv_blocks block_size max_num_batched_tokens max_num_seqs no_prefix_cache",
        "Measuring": "budget rounds restarts timeout mem_limit timing cache rel_ci seed inputs probe profile",
        "Choosing": "only skip shrink shard dry_run fail_fast strict",
        "Output": "out resume retry_failed force tag metrics format json no_save report progress",
    }.items()
    for name in names.split()
}

EVERYWHERE = ("verbose", "quiet", "color")  # options that stand before the command or after it
COLOR = "attnbench.color"  # key of the contexts of one command line
MIN_GROUPED = 8  # parameters of a command; fewer stand in one panel


class DocumentedCommand(TyperCommand):
    """A command with grouped help."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """The parameters; the environment variables of all options are on one page, not beside each option."""
        parameters = _grouped(super().get_params(ctx))
        taken = {flag for parameter in parameters for flag in parameter.opts}
        return [*parameters, *(option for option in _options_of_root(ctx) if taken.isdisjoint(option.opts))]

    def get_help(self, ctx: Context) -> str:
        """The help page; on a terminal Typer draws it."""
        if not _drawn():
            return _plain(self, ctx)
        with _colored(ctx):
            return super().get_help(ctx)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse; `--help` needs the colour before the other options are read."""
        _note_color(ctx, args)
        return super().parse_args(ctx, args)


class DocumentedGroup(TyperGroup):
    """A group of commands with grouped help; without arguments it shows its help."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """As for a command."""
        return _grouped(super().get_params(ctx))

    def get_help(self, ctx: Context) -> str:
        """The help page; on a terminal Typer draws it."""
        if not _drawn():
            return _plain(self, ctx, self.visible(ctx))
        with _colored(ctx):
            return super().get_help(ctx)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse; no arguments are `--help`."""
        _note_color(ctx, args)
        return super().parse_args(ctx, args if args or ctx.resilient_parsing else ["--help"])

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, ClickCommand | None, list[str]]:
        """As for Typer; the error for an unknown name has the nearest one, or all."""
        if not ctx.resilient_parsing and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = [str(command.name) for _, command in self.visible(ctx)]
            group = str(ctx.info_name) if ctx.parent else ""
            noun, where = ("list", "") if group == "list" else ("command", group)
            raise UnknownNameError(noun, args[0], names, where=where)
        return super().resolve_command(ctx, args)

    def visible(self, ctx: Context) -> Iterator[tuple[str, ClickCommand]]:
        """Every command that help shows, with its panel."""
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command and not command.hidden:
                yield getattr(command, "rich_help_panel", None) or "Commands", command


class Application(typer.Typer):
    """A Typer whose commands and groups have grouped help."""

    def __init__(self, help: str, context_settings: dict[str, object] | None = None) -> None:  # noqa: A002
        super().__init__(
            help=help, cls=DocumentedGroup, rich_markup_mode="rich", context_settings=context_settings,
            pretty_exceptions_enable=False,  # a bug shows its plain traceback, without local variables
        )  # fmt: skip

    def add(self, function: F, name: str | None = None, panel: str | None = None) -> F:
        """Add a command; its name is that of the function by default."""
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        self.command(name, cls=DocumentedCommand, help=text, rich_help_panel=panel)(function)
        return function


def _grouped(parameters: list[Parameter]) -> list[Parameter]:
    last = "Options"
    panels = PANELS if len(parameters) >= MIN_GROUPED else {}
    for parameter in parameters:
        if isinstance(parameter, TyperOption):
            parameter.show_envvar = False
            parameter.allow_from_autoenv = not parameter.is_eager  # `--version` and its like are no settings
            # `--help` is the last option, and stands with those before it.
            panel = last if parameter.name == "help" else panels.get(parameter.name or "", "Options")
            parameter.rich_help_panel = last = panel
            if parameter.is_flag:
                parameter.metavar = ""  # otherwise `<bool>` stands beside a flag
        else:
            vars(parameter)["display_type"] = lambda ctx: ""  # otherwise `<list[str]>`
        # Of the error for a required option or argument that is not given.
        vars(parameter)["get_missing_message"] = lambda ctx, parameter=parameter: parameter.help
    return parameters


def _options_of_root(ctx: Context) -> list[Parameter]:
    """The options before the command, which every command accepts after its name too; help shows them at the root."""
    options: list[Parameter] = []
    root = ctx.find_root()
    for parameter in root.command.params if root is not ctx else ():
        if isinstance(parameter, TyperOption) and parameter.name in EVERYWHERE:
            option = copy.copy(parameter)
            option.hidden, option.expose_value, option.default = True, False, None
            option.is_eager, option.allow_from_autoenv = True, False
            option.callback = partial(_replace_global, parameter.callback)
            options.append(option)
    return options


def _replace_global(check: Check | None, ctx: Context, option: Parameter, value: object) -> None:
    if value is not None and option.name:
        checked = check(ctx, option, value) if check else value
        ctx.obj = msgspec.structs.replace(ctx.obj, **{option.name: checked})


def _note_color(ctx: Context, args: list[str]) -> None:
    for word, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        if word == "--color" or word.startswith("--color="):
            ctx.meta[COLOR] = word.partition("=")[2] or following


@contextlib.contextmanager
def _colored(ctx: Context) -> Iterator[None]:
    """Draw meanwhile without colours and styles where `--color never` says so."""
    from typer import rich_utils

    before = rich_utils.COLOR_SYSTEM
    if ctx.meta.get(COLOR, os.environ.get("ATTNBENCH_COLOR")) == "never":
        rich_utils.COLOR_SYSTEM = None
    try:
        yield
    finally:
        rich_utils.COLOR_SYSTEM = before


def _drawn() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _plain(command: ClickCommand, ctx: Context, commands: Iterator[tuple[str, ClickCommand]] | tuple[()] = ()) -> str:
    """Help without boxes: a section for each panel."""
    formatter = ctx.make_formatter()
    command.format_usage(ctx, formatter)
    command.format_help_text(ctx, formatter)
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        if record := parameter.get_help_record(ctx):
            panel = parameter.rich_help_panel if isinstance(parameter, TyperOption) else "Arguments"
            sections.setdefault(panel or "Options", []).append(record)
    for panel, member in commands:
        sections.setdefault(panel, []).append((member.name or "", (member.help or "").partition("\n\n")[0]))
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
    return formatter.getvalue().rstrip("\n")
