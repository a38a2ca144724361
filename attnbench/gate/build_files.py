"""Dependencies, build files and compiled sources: one that differs may change every case of a gate.

Comments do not count, nor what only linters, tests, documentation and people read. What cannot be read counts whole.
"""

import configparser
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

PATTERNS = (
    "pyproject.toml", "setup.py", "setup.cfg", "*requirements*.txt", "*requirements*.in", "constraints*.txt", "uv.lock",
    "poetry.lock", "pdm.lock", "pixi.lock", "pixi.toml", "pylock*.toml", "*requirements*.lock", "pipfile*",
    "environment*.y*ml", "environment*.lock", "conda*.y*ml", "conda*.lock", "conan.lock", "flake.lock", "cargo.toml",
    "cargo.lock", "package-lock.json", "yarn.lock", "makefile*", "*.mk", "cmakelists.txt", "*.cmake", "meson*",
    "build.ninja", "build", "build.bazel", "module.bazel*", "*.bzl", "workspace*", "manifest.in", "dockerfile*",
    "*.pth", "*.c", "*.cc", "*.cpp", "*.cxx", "*.h", "*.hh", "*.hpp", "*.hxx", "*.inc", "*.inl", "*.cu", "*.cuh",
    "*.hip", "*.ptx", "*.cubin", "*.fatbin", "*.s", "*.asm", "*.pyx", "*.pxd", "*.pxi", "*.rs", "*.f", "*.f90", "*.a",
    "*.o", "*.so", "*.so.*", "*.pyd", "*.dll", "*.dylib",
)  # fmt: skip
# Of pyproject.toml: tables of tools that check, format, test or document, and keys of [project] for people.
CHECKING_TOOLS = frozenset({
    "bandit", "basedpyright", "black", "codespell", "coverage", "deptry", "flake8", "importlinter", "interrogate",
    "isort", "mypy", "pydocstyle", "pylint", "pyright", "pytest", "ruff", "towncrier", "ty", "typos", "vulture",
})  # fmt: skip
DESCRIPTION = frozenset({
    "authors", "classifiers", "description", "keywords", "license", "license-files", "maintainers", "readme", "urls",
})  # fmt: skip
_CHECKING_SECTION = re.compile(
    r"(tool:)?pytest|coverage(:.+)?|flake8.*|isort|mypy(-.+)?|pep8|pycodestyle|pydocstyle|pylint.*"
)
_CHECKING_TARGET = re.compile(r"(check|clean|coverage|docs?|fmt|format|help|lint|tests?|typecheck)([-_].+)?")
_COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)  # of a requirements file
_RULE = re.compile(r"([^\s:=#][^:=#]*):(?![:=])")


class _Rule(NamedTuple):
    """A rule of a Makefile with its recipe, or another line, without targets."""

    targets: tuple[str, ...]
    lines: list[str]


def differing(base: Path, head: Path, names: Iterable[str]) -> str:
    """The first build file among these names that differs between two trees in what counts; empty if none does."""
    for name in sorted(names):
        kind = Path(name).name.lower()
        if any(fnmatchcase(kind, pattern) for pattern in PATTERNS):
            sides = [path.read_bytes() if (path := folder / name).is_file() else None for folder in (base, head)]
            if sides[0] != sides[1] and (None in sides or _counting(kind, sides[0]) != _counting(kind, sides[1])):
                return name
    return ""


def _counting(kind: str, content: bytes | None) -> object:
    """What counts of a file of that name, to be compared."""
    read = next((read for pattern, read in READERS.items() if fnmatchcase(kind, pattern)), None)
    try:
        return read(content.decode()) if read and content is not None else content
    except (ValueError, configparser.Error):
        return content


def _pyproject(text: str) -> str:
    tables = tomllib.loads(text)
    for name, left_out in (("project", DESCRIPTION), ("tool", CHECKING_TOOLS)):
        if isinstance(table := tables.get(name, {}), dict):
            tables[name] = {key: value for key, value in table.items() if key not in left_out}
    return json.dumps(tables, sort_keys=True, default=repr)  # in Python, 1 equals true


def _setup_cfg(text: str) -> object:
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    sections = {name: dict(parser[name]) for name in parser.sections() if not _CHECKING_SECTION.fullmatch(name)}
    return parser.defaults(), sections


def _requirements(text: str) -> list[str]:
    if re.search(r"\\\s*\n\s*#", text):
        raise ValueError("a comment within a line that goes on")
    return [line.rstrip() for line in _COMMENT.sub("", text).splitlines() if line.strip()]


def _makefile(text: str) -> list[_Rule]:
    """Its rules and other lines without comments, and without the rules of checks that nothing else names."""
    if re.search(r"^\s*(override\s+)?define\b|^\.(ONESHELL|RECIPEPREFIX)\b", text, re.MULTILINE):
        raise ValueError("its lines cannot be told apart")
    rest, checks = list[_Rule](), list[_Rule]()
    for rule in _rules(re.sub(r"(?<!\\)\\\n", " ", text).splitlines()):
        (checks if rule.targets and all(map(_CHECKING_TARGET.fullmatch, rule.targets)) else rest).append(rule)
    while used := [rule for rule in checks if not _words(rest).isdisjoint(rule.targets)]:
        rest, checks = rest + used, [rule for rule in checks if rule not in used]
    return rest


def _rules(lines: Iterable[str]) -> list[_Rule]:
    """The rules of a Makefile with their recipes; every other line stands alone. `.PHONY` says nothing of files."""
    rules = list[_Rule]()
    for line in lines:
        if line.startswith("\t") and rules:
            rules[-1].lines.append(line)
        elif text := (line if "$(shell" in line else _COMMENT.sub("", line)).rstrip():
            rule = _RULE.match(text)
            rules.append(_Rule(tuple(rule[1].split()) if rule else (), [text]))
    return [rule for rule in rules if rule.targets != (".PHONY",)]


def _words(rules: Iterable[_Rule]) -> set[str]:
    return {word for rule in rules for line in rule.lines for word in re.findall(r"[\w.-]+", line)}


READERS: dict[str, Callable[[str], object]] = {
    "pyproject.toml": _pyproject,
    "setup.cfg": _setup_cfg,
    "*requirements*.txt": _requirements,
    "*requirements*.in": _requirements,
    "constraints*.txt": _requirements,
    "makefile*": _makefile,
    "*.mk": _makefile,
}
