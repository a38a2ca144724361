"""Configuration files: values of options that neither the command line nor the environment gives, and where from.

`./attnbench.toml` comes before `[tool.attnbench]` of `./pyproject.toml`, that before the user's own file. Each holds
one table a command: `[run]`, then `seq = "512..4k"`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnbench.errors import SuiteError, UnknownNameError

LOCAL, PROJECT, USER = "attnbench.toml", "pyproject.toml", "config.toml"

Values = dict[str, dict[str, Any]]


def defaults(cwd: Path, known: Mapping[str, Mapping[str, bool]]) -> tuple[Values, dict[str, dict[str, str]]]:
    """By command and option: the value, and the file that it is from.

    `known` holds the options of every command, and whether each may be given more than once.
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
    """The user's own file, wherever this system keeps such."""
    from platformdirs import user_config_path

    return user_config_path("attnbench") / USER


def _files(cwd: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and sections of every file, nearest first."""
    project = _read(cwd / PROJECT, PROJECT).get("tool", {})
    place = f"{PROJECT} [tool.attnbench]"
    own = project.get("attnbench", {}) if isinstance(project, dict) else {}
    if not isinstance(own, dict):
        raise SuiteError(f"{place}: must be a table")
    user = user_file()
    return [(LOCAL, _read(cwd / LOCAL, LOCAL)), (place, own), (_shown(user), _read(user, _shown(user)))]


def _read(path: Path, place: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as wrong:
        raise SuiteError(f"{place}: not TOML: {wrong}") from None
    except UnicodeDecodeError:
        raise SuiteError(f"{place}: not a text in UTF-8") from None
    except OSError as wrong:
        raise SuiteError(f"{place}: {wrong.strerror}") from None


def _option(value: Any, repeatable: bool, at: str) -> Any:
    """A list is a comma list, or where the option may be repeated, one value each."""
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
