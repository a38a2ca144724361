"""Configuration files: default values of options, and the source of each value.

`./attnbench.toml` takes precedence over `[tool.attnbench]` of `./pyproject.toml`, and both over the user's file. Each
has one table per command: `[run]`, then `seq = "512..4k"`.
"""

import contextlib
import inspect
import tomllib
from collections.abc import Mapping
from pathlib import Path

import typer

from attnbench.attention import user_folders
from attnbench.errors import StoreError, SuiteError, UnknownNameError

LOCAL, PROJECT, USER = "attnbench.toml", "pyproject.toml", "config.toml"
_SOURCES = {"commandline": "the command line", "environment": "the environment"}

Table = dict[str, object]
Values = dict[str, Table]


def default_map(app: typer.Typer) -> dict[str, dict[str, object]]:
    """`{command: {option: value}}`, as Typer takes it; values as a user would type them."""
    values, _ = defaults(Path(), _known(app))
    return {
        command: {key: value if isinstance(value, list | bool) else str(value) for key, value in options.items()}
        for command, options in values.items()
    }


def origins(context: typer.Context, app: typer.Typer) -> dict[str, str]:
    """The source of every option value that is not a default."""
    command = context.info_name or ""
    _, files = defaults(Path(), _known(app))
    words = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        word = source.name.lower() if source else "default"
        if word == "default_map":
            word = files.get(command, {}).get(name, word)
        if word != "default":
            words[name] = f"{value!r} from {_SOURCES.get(word, word)}"
    return words


def _known(app: typer.Typer) -> dict[str, dict[str, bool]]:
    return {
        command.name or command.callback.__name__.replace("_", "-"): {
            parameter.name: "list[str]" in str(parameter.annotation)
            for parameter in inspect.signature(command.callback, eval_str=True).parameters.values()
            if parameter.name != "context"
        }
        for command in app.registered_commands
        if command.callback
    }


def defaults(cwd: Path, known: Mapping[str, Mapping[str, bool]]) -> tuple[Values, dict[str, dict[str, str]]]:
    """By command and option: the value, and the name of its file.

    `known` has the options of every command, and whether each may be repeated.
    """
    values: Values = {}
    origins: dict[str, dict[str, str]] = {}
    for place, sections in reversed(_files(cwd)):
        for command, options in sections.items():
            if command not in known:
                raise SuiteError(str(UnknownNameError("section", command, known, where=place)))
            if not isinstance(options, dict):
                raise SuiteError(f"{place}: {command}: must be a table: [{command}]")
            for key, value in options.items():
                at = f"{place}: {command}.{key}"
                if key not in known[command]:
                    raise SuiteError(str(UnknownNameError("key", key, known[command], where=at)))
                values.setdefault(command, {})[key] = _option(value, known[command][key], at)
                origins.setdefault(command, {})[key] = place
    return values, origins


def user_file() -> Path:
    """The user's file, in the configuration folder of this system."""
    return user_folders.config() / USER


def _files(cwd: Path) -> list[tuple[str, Table]]:
    """Name and sections of every file, nearest first."""
    project = _read(cwd / PROJECT, PROJECT, section="tool.attnbench").get("tool", {})
    place = f"{PROJECT} [tool.attnbench]"
    sections = project.get("attnbench", {}) if isinstance(project, dict) else {}
    if not isinstance(sections, dict):
        raise SuiteError(f"{place}: must be a table")
    files = [(LOCAL, _read(cwd / LOCAL, LOCAL)), (place, sections)]
    with contextlib.suppress(StoreError):  # no home directory
        user = user_file()
        files.append((_shown(user), _read(user, _shown(user))))
    return files


def _read(path: Path, place: str, section: str = "") -> Table:
    """The tables of a file. A broken file that does not name the section belongs to other tools, and is left out."""
    data = b""
    try:
        data = path.read_bytes()
        return tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        if section.encode() not in data:
            return {}
        what = "not a text in UTF-8" if isinstance(wrong, UnicodeDecodeError) else f"not TOML: {wrong}"
        raise SuiteError(f"{place}: {what}") from None
    except OSError as wrong:
        raise SuiteError(f"{place}: {wrong.strerror}") from None


def _option(value: object, repeatable: bool, at: str) -> object:
    """The value as typed: a list becomes a comma list, or one value each if the option may be repeated."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (str, int, float)) for item in items):
        raise SuiteError(f"{at}: a word, a number, true, false, or a list of words and numbers")
    if repeatable:
        return [str(item) for item in items]
    return ",".join(map(str, items)) if isinstance(value, list) else value


def _shown(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    except (ValueError, RuntimeError):
        return str(path)
