"""The code that a kernel is compiled from: its function, and every definition of attnbench that the function uses.

Comments, docstrings, line numbers and the order of definitions are left out: they change nothing that is compiled.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

PACKAGE = "attnbench"
EVERYTHING = "*"  # of a module that is used as a whole
Sources = Callable[[str], str]


class Definition(NamedTuple):
    """A statement of a module, and the names that it uses, each with its module."""

    text: str
    uses: tuple[tuple[str, str], ...]


@lru_cache(maxsize=64)
def source_of(module: str) -> str:
    """The text of a module, which is not imported."""
    spec = find_spec(module)
    assert spec
    assert spec.origin
    return Path(spec.origin).read_text(encoding="utf-8")


def code_of(module: str, name: str, sources: Sources = source_of) -> str:
    """The code behind a name of a module."""
    pending, code = [(module, name)], dict[tuple[str, str], list[str]]()
    while pending:
        place, name = key = pending.pop()
        if key in code:
            continue
        by_name = _definitions(place, sources(place))
        definitions = [*chain(*by_name.values())] if name == EVERYTHING else by_name.get(name, [])
        code[key] = [definition.text for definition in definitions]
        pending += [use for definition in definitions for use in definition.uses]
    return "\n\n".join(text for key in sorted(code) for text in code[key])


def normalised(text: str) -> str:
    """A module without comments and docstrings."""
    return ast.unparse(_without_docstrings(ast.parse(text)))


@lru_cache(maxsize=64)
def _definitions(module: str, text: str) -> dict[str, list[Definition]]:
    """Every name that a module defines at its top, with the statements that define it."""
    by_name: dict[str, list[Definition]] = {}
    for statement in _without_docstrings(ast.parse(text)).body:
        for name, definition in _names(module, statement):
            by_name.setdefault(name, []).append(definition)
    return by_name


def _names(module: str, statement: ast.stmt) -> Iterator[tuple[str, Definition]]:
    if isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            origin = (statement.module or "", alias.name)
            yield alias.asname or alias.name, Definition(".".join(origin), tuple(_of_package(*origin)))
        return
    nodes = list(ast.walk(statement))
    uses = sorted(
        {(module, node.id) for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    )
    definition = Definition(ast.unparse(statement), tuple(uses))
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name, definition
        return
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, definition
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name.partition(".")[0]), definition
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, definition


def _of_package(module: str, name: str) -> Iterator[tuple[str, str]]:
    """Where an imported name of the package is defined."""
    if module.partition(".")[0] != PACKAGE:
        return
    spec = find_spec(module)
    inside = bool(spec and spec.submodule_search_locations and find_spec(f"{module}.{name}"))
    yield (f"{module}.{name}", EVERYTHING) if inside else (module, name)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
