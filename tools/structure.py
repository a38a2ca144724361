"""Prints how the package is built: names, levels, cycles, lengths, uses of `Any`, vague names, lines.

    python -m tools.structure [--details]

`--details` lists the places behind each figure. Exit code 1 if a figure is above its limit.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "attnbench"
# Names that say nothing about the value that they hold (docs/style.md).
VAGUE_NAMES = frozenset({"found", "one", "said", "own", "minded", "asked", "given", "kept"})
VAGUE_CONSTANTS = re.compile(r"(?:^|_)(?:LEAST|MOST)(?:_|$)")


class Figure(NamedTuple):
    """One line of the table: its value, the limit if it has one, and the places that were counted."""

    name: str
    value: float
    limit: float | None
    places: tuple[str, ...] = ()

    @property
    def exceeded(self) -> bool:
        """Whether the value is above its limit."""
        return self.limit is not None and self.value > self.limit


class Source(NamedTuple):
    """One module of the package."""

    name: str  # dotted
    path: str  # relative to the repository
    text: str
    tree: ast.Module


def sources() -> list[Source]:
    """Every module, sorted by name."""
    result = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        result.append(Source(name, path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    return result


def figures() -> Iterator[Figure]:
    """The table."""
    modules = sources()
    names = sorted(
        {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    )
    top = tuple(name for name in names if name not in ("__init__", "__main__"))
    imports = _imports(modules)
    yield Figure("names at the top of the package", len(top), 19, top)
    yield Figure("levels of the packages", _levels(_by_package(imports)), 12)
    cycles = tuple(" - ".join(sorted(group)) for group in _cycles(imports))
    yield Figure("import cycles", len(cycles), 0, cycles)
    yield _duplicates(modules)
    functions = [(length, place) for module in modules for length, place in _functions(module)]
    for limit, most in ((40, 15), (80, 0)):
        long = tuple(f"{length} {place}" for length, place in sorted(functions, reverse=True) if length > limit)
        yield Figure(f"functions above {limit} lines", len(long), most, long)
    commands = tuple(f"{length} {place}" for length, place in functions if "/cli/" in place and length > 60)
    yield Figure("functions above 60 lines in commands", len(commands), 0, commands)
    long_files = tuple(
        f"{module.text.count(chr(10))} {module.path}" for module in modules if module.text.count("\n") > 400
    )
    yield Figure("files above 400 lines", len(long_files), None, long_files)
    any_uses = Counter({module.path: len(re.findall(r"\bAny\b", module.text)) for module in modules})
    yield Figure("uses of Any, imports too", any_uses.total(), 100, _ranked(any_uses))
    vague = Counter({module.path: _vague_names(module.tree) for module in modules})
    lines = sum(module.text.count("\n") for module in modules)
    yield Figure("vague names in 1,000 lines", round(1000 * vague.total() / lines, 2), 0.5, _ranked(vague))
    yield Figure("lines of code", lines, None)


def _ranked(counts: Counter[str]) -> tuple[str, ...]:
    return tuple(f"{count} {path}" for path, count in counts.most_common() if count)


def _imports(modules: Iterable[Source]) -> dict[str, set[str]]:
    """The modules of the package that each module imports, anywhere in it but for type checkers alone."""
    known = {module.name for module in modules}
    return {module.name: set(_imported(module, known)) - {module.name} for module in modules}


def _imported(module: Source, known: set[str]) -> Iterator[str]:
    for node in _run_nodes(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module or ""


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes outside `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _run_nodes(child)


def _by_package(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between the names at the top of the package."""
    result: dict[str, set[str]] = defaultdict(set)
    for module, targets in imports.items():
        for target in targets:
            if "." in module and "." in target and _top(module) != _top(target):
                result[_top(module)].add(_top(target))
    return {name: result[name] for name in {*result, *(target for targets in result.values() for target in targets)}}


def _top(module: str) -> str:
    return module.split(".")[1]


def _levels(imports: dict[str, set[str]]) -> int:
    """The number of names on the longest chain of imports."""
    depth: dict[str, int] = {}

    def visit(name: str, above: frozenset[str]) -> int:
        if name not in depth:
            depth[name] = 1 + max(
                (visit(t, above | {name}) for t in imports.get(name, ()) if t not in above), default=0
            )
        return depth[name]

    return max((visit(name, frozenset({name})) for name in imports), default=0)


def _cycles(imports: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected groups of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in imports.get(name, ()):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(group)

    for name in imports:
        if name not in index:
            visit(name)
    return groups


def _duplicates(modules: Iterable[Source]) -> Figure:
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module.path)
    twice = tuple(f"{name}: {', '.join(paths)}" for name, paths in sorted(places.items()) if len(paths) > 1)
    return Figure("public class names defined twice", len(twice), 0, twice)


def _functions(module: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{module.path}:{node.lineno} {node.name}"


def _vague_names(tree: ast.Module) -> int:
    """Definitions of vague names: variables, parameters, functions, classes, imports under another name."""
    count = 0
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        count += name.strip("_") in VAGUE_NAMES or bool(VAGUE_CONSTANTS.search(name))
    return count


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a figure is above its limit."""
    table = list(figures())
    for figure in table:
        limit = "" if figure.limit is None else f"(at most {figure.limit:g})"
        print(f"{figure.name:40} {figure.value:>8,g} {limit:16} {'ABOVE' if figure.exceeded else ''}".rstrip())
        if "--details" in arguments:
            print("".join(f"    {place}\n" for place in figure.places), end="")
    return int(any(figure.exceeded for figure in table))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
