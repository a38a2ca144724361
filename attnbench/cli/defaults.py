"""Values that neither command line nor environment gives, from configuration files, and where each came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from attnbench import config

_SOURCES = {"commandline": "the command line", "environment": "the environment"}


def default_map(app: typer.Typer) -> dict[str, Any]:
    """`{command: {option: value}}`, as Typer takes it; values as a user would type them."""
    values, _ = config.defaults(Path(), _known(app))
    return {
        command: {key: value if isinstance(value, list | bool) else str(value) for key, value in options.items()}
        for command, options in values.items()
    }


def origins(context: typer.Context, app: typer.Typer) -> dict[str, str]:
    """Where the value of every option came from, for those that are not at their default."""
    command = context.info_name or ""
    _, files = config.defaults(Path(), _known(app))
    found = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        word = source.name.lower() if source else "default"
        if word == "default_map":
            word = files.get(command, {}).get(name, word)
        if word != "default":
            found[name] = f"{value!r} from {_SOURCES.get(word, word)}"
    return found


def _known(app: typer.Typer) -> dict[str, dict[str, bool]]:
    """The options of every command, and whether each may be repeated."""
    return {
        command.name or command.callback.__name__: {
            name: "list[str]" in str(kind) or str(kind) in ("options.Set", "options.Suites", "options.Suite")
            for name, kind in command.callback.__annotations__.items()
            if name not in ("return", "context")
        }
        for command in app.registered_commands
        if command.callback
    }
