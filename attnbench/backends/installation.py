"""Which versions of its packages a backend supports, and the commands that install them."""

import os
import re
import shlex
from collections.abc import Callable, Iterable
from importlib import metadata

from attnbench.backends import Backend, load


def installed_version(package: str) -> str | None:
    """The version of a package of this interpreter; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def version_objection(
    backend: Backend, version_of: Callable[[str], str | None] = installed_version, python: str = ""
) -> str:
    """Why an installed package is too old or too new for the backend, and what installs another; empty if none is.

    `version_of`: the versions of another interpreter, `python`.
    """
    for package, (first, below) in backend.versions.items():
        if (text := version_of(package)) is None:
            continue  # `requires` and `present` say so
        number = tuple(map(int, re.findall(r"\d+", text)[: max(len(first), len(below))]))
        if number < first or (below and number >= below):
            where = f" in {python}" if python else ""
            needed = f"{_dotted(first)} or later" + (f", below {_dotted(below)}" if below else "")
            wrong = f"{package} {text}{where} is too {'old' if number < first else 'new'} (needed: {needed})"
            return f"{wrong}; install: {_command_for(backend, package, python)}"
    return ""


def _command_for(backend: Backend, package: str, python: str) -> str:
    """That of the backend where it names the package, else one for a version of the package that fits."""
    if f" {package}==" in backend.install:
        return install_command(backend, python)
    first, below = backend.versions[package]
    bounds = f">={_dotted(first)}" + (f",<{_dotted(below)}" if below else "")
    return f"{shell_word(python) + ' -m ' if python else ''}pip install '{package}{bounds}'"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def install_command(backend: Backend, python: str = "") -> str:
    """The command that installs what the backend needs, in this interpreter or in `python`."""
    if not python:
        return backend.install
    return backend.install.replace("pip install", f"{shell_word(python)} -m pip install", 1)


def shell_word(path: str) -> str:
    """A path quoted for a command line. A `~` in front stays unless the rest needs quotes."""
    return (
        path
        if shlex.quote(path.removeprefix("~/")) == path.removeprefix("~/")
        else shlex.quote(os.path.expanduser(path))
    )


def install_commands(names: Iterable[str]) -> str:
    """One command line that installs what these backends need."""
    commands = dict.fromkeys(load(name).install for name in names)
    plain = [command for command in commands if "install --" not in command]
    packages = [word for command in plain for word in command.removeprefix("pip install ").split()]
    together = [f"pip install {' '.join(dict.fromkeys(packages))}"] if packages else []
    return " && ".join([*together, *(command for command in commands if command not in plain)])
