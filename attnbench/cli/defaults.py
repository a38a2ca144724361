"""Values that the command line does not give: environment, ./attnbench.toml or pyproject.toml, the user's file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import typer

from attnbench.errors import SuiteError, UnknownNameError

LOCAL, PYPROJECT, USER = "attnbench.toml", "pyproject.toml", "config.toml"


def default_map(app: typer.Typer) -> dict[str, Any]:
    """`{command: {option: value}}` of the configuration files, the nearer file first."""
    known = _known(app)
    merged: dict[str, Any] = {}
    for name, sections in reversed(_files()):
        for section, values in sections.items():
            _check(name, section, values, known)
            merged.setdefault(section, {}).update(values)
    return merged


def origins(context: typer.Context) -> dict[str, str]:
    """Where the value of every option of a command came from, for those that are not at their default."""
    command = context.info_name or ""
    found = {}
    for name in context.params:
        source = context.get_parameter_source(name)
        word = source.name.lower() if source else "default"
        if word == "default_map":
            word = next((file for file, sections in _files() if name in sections.get(command, {})), word)
        if word != "default":
            where = {"commandline": "the command line", "environment": "the environment"}.get(word, word)
            found[name] = f"{context.params[name]!r} from {where}"
    return found


@lru_cache(maxsize=1)
def _files() -> list[tuple[str, dict[str, Any]]]:
    """Every file that is there, nearest first: its name and its sections."""
    files = [(LOCAL, _read(Path(LOCAL)))]
    project = _read(Path(PYPROJECT)).get("tool", {}).get("attnbench", {})
    files.append((f"{PYPROJECT} [tool.attnbench]", project))
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files.append((USER, _read(base / "attnbench" / USER)))
    return [(name, sections) for name, sections in files if sections]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path.name}: not TOML: {error}") from error


def _known(app: typer.Typer) -> dict[str, set[str]]:
    """The options of every command, by the names of its parameters."""
    return {
        command.name or command.callback.__name__: set(command.callback.__annotations__) - {"return", "context"}
        for command in app.registered_commands
        if command.callback
    }


def _check(file: str, section: str, values: Any, known: Mapping[str, set[str]]) -> None:
    if section not in known:
        raise SuiteError(str(UnknownNameError("section", section, known, where=file)))
    if not isinstance(values, dict):
        raise SuiteError(f"{file}: {section} must be a table: [{section}]")
    for key in values:
        if key not in known[section]:
            raise SuiteError(
                str(UnknownNameError("key", key, sorted(known[section]), where=f"{file}: {section}.{key}"))
            )
