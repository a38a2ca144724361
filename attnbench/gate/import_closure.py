"""The files of a source tree that a module imports, found by reading them; nothing is run.

Where two folders of the import path hold a module of one name, both are followed: a file too many costs time, a file
too few would hide a change.
"""

import ast
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from itertools import chain, takewhile
from pathlib import Path
from typing import NamedTuple

import msgspec

from attnbench.attention import user_files
from attnbench.attention.user_files import INIT

COMPILED = frozenset({".so", ".pyd", ".dll", ".dylib"})
DATA = frozenset({".csv", ".json", ".toml"})  # read by modules of a trusted package beside them
# What imports a module, reads a file or runs code in a way that the source does not show.
NOT_FOLLOWED = (
    "importlib*", "imp", "imp.*", "runpy*", "pkgutil*", "pkg_resources*", "zipimport*", "builtins*", "ctypes*", "cffi*",
    "subprocess*", "mmap*", "sqlite3*", "shelve*", "dbm*", "site.*", "sys.path*", "sys.meta_path*", "sys.modules*",
    "os.system", "os.popen", "os.exec*", "os.spawn*", "os.posix_spawn*", "os.open", "os.fdopen", "io.open*",
    "io.FileIO", "codecs.open", "numpy.load*", "numpy.fromfile", "numpy.memmap", "numpy.genfromtxt", "pandas.read_*",
    "torch.load", "torch.jit.load", "torch.from_file", "torch.hub*", "torch.ops.load_library",
    "torch.classes.load_library", "torch.utils.cpp_extension*", "safetensors*", "h5py*", "cupy.RawModule",
)  # fmt: skip
BUILTINS = frozenset(
    {"open", "exec", "eval", "compile", "__import__", "__file__", "__path__", "__spec__", "__loader__"}
)
_NOT_FOLLOWED = re.compile("|".join(map(translate, NOT_FOLLOWED)))
METHODS = frozenset({"read_text", "read_bytes", "open"})


class Closure(msgspec.Struct, frozen=True):
    """The files that modules import, by name, with digests of their contents; and what could not be followed."""

    files: Mapping[str, str] = {}
    obstacle: str = ""  # `kernel.py, line 3: importlib`: the first one; empty if every import was followed


class ModuleText(NamedTuple):
    """What the text of a module says of other files."""

    imports: tuple[tuple[int, int, tuple[str, ...]], ...] = ()  # line, level of a relative import, dotted name
    hidden: tuple[tuple[int, str], ...] = ()  # line and name of what it imports, reads or runs in another way
    bound: frozenset[str] = frozenset()  # names that it defines
    error: str = ""  # why it cannot be parsed


class SourceTree:
    """The folders that come first on the import path of a worker; the first is its working directory.

    `elsewhere`: names of modules outside, as `modules_outside` gives them. Modules of `trusted`, a package, are not
    searched for obstacles: all that it loads by name is a root.
    """

    def __init__(self, folders: Sequence[Path], elsewhere: frozenset[str], trusted: str = "") -> None:
        self.folders, self._elsewhere = tuple(folder.resolve() for folder in folders), elsewhere
        self._trusted = tuple(folder / trusted for folder in self.folders if trusted)
        self._chains: dict[tuple[Path, tuple[str, ...]], list[Path]] = {}
        self._modules: dict[Path, dict[str, list[Path]]] = {}  # of a folder, by name

    def name(self, file: Path) -> str:
        """The name of a file in both trees: relative to the working directory; a file outside keeps its path."""
        inside = any(file.is_relative_to(folder) for folder in self.folders)
        return Path(os.path.relpath(file, self.folders[0])).as_posix() if inside else str(file)

    def module(self, name: str) -> list[Path]:
        """The files that importing the module runs, its packages included; empty if no folder has its first part."""
        return [file for folder in self.folders for file in self._chain(folder, name.split("."))]

    def hiding(self) -> list[Path]:
        """The modules of the tree that hide one of Python or of an installed package of the same name."""
        names = self._elsewhere | {"sitecustomize", "usercustomize"}
        inside = {each.name.partition(".")[0] for folder in self.folders for each in folder.iterdir()}
        return [file for name in sorted(names & inside) for file in self.module(name)]

    def closure(self, roots: Iterable[Path]) -> Closure:
        """All files that importing these files runs, now or inside their functions."""
        pending = [root.resolve() for root in roots]
        path = tuple(
            dict.fromkeys((*(folder for root in pending for folder in user_files.import_folders(root)), *self.folders))
        )
        files, obstacles, seen = dict[str, str](), list[str](), set[Path]()
        while pending:
            file = pending.pop()
            if file in seen:
                continue
            seen.add(file)
            name, content = self.name(file), file.read_bytes()
            files[name] = hashlib.sha256(content).hexdigest()
            if file.suffix == ".py":
                imported, obstacle = self._followed(file, read_source(content), path)
                pending += imported
                obstacles += [f"{name}, {obstacle}"] if obstacle else []
            elif file.suffix in COMPILED:
                obstacles.append(f"{name}: a compiled file")
        return Closure(files=files, obstacle=min(obstacles, default=""))

    def _followed(self, file: Path, source: ModuleText, path: Sequence[Path]) -> tuple[list[Path], str]:
        """The files that a file imports, and its first obstacle."""
        imported = list(_packages_of(file))
        trusted = any(map(file.is_relative_to, self._trusted))
        obstacles = dict(source.hidden)
        for line, level, parts in source.imports:
            places = [file.parents[min(level, len(file.parents)) - 1]] if level else path
            inside = [place for place in places if level or self._has(place, parts[:1])]
            imported += [each for place in inside for each in self._chain(place, parts)]
            if inside and not trusted and not any(self._is_module(place, parts, file) for place in inside):
                obstacles.setdefault(line, f"import of {'.'.join(parts)}")
        if trusted:
            return imported + [data for data in file.parent.iterdir() if data.suffix in DATA], ""
        first = min(obstacles, default=0)
        return imported, source.error or (f"line {first}: {obstacles[first]}" if first else "")

    def _has(self, folder: Path, parts: Sequence[str]) -> bool:
        """Whether a module of that name comes from the folder; a folder without `__init__.py` hides no other module."""
        inside = parts[0] not in self._elsewhere and folder.joinpath(*parts).is_dir()
        return inside or bool(self._chain(folder, parts))

    def _chain(self, folder: Path, parts: Sequence[str]) -> list[Path]:
        """The files of a dotted name below the folder, as far as they are there; `*` stands for every submodule."""
        if not parts:
            return []
        if (key := (folder, tuple(parts))) not in self._chains:
            place = folder.joinpath(*parts)
            modules = self._modules_in(place.parent)
            here = chain.from_iterable(modules.values()) if parts[-1] == "*" else modules.get(parts[-1], ())
            init = [place / INIT] if (place / INIT).is_file() else []
            self._chains[key] = [*self._chain(folder, parts[:-1]), *here, *init]
        return self._chains[key]

    def _modules_in(self, folder: Path) -> dict[str, list[Path]]:
        """The files of the modules in a folder, by their names; none where there is no such folder."""
        if folder not in self._modules:
            modules = self._modules[folder] = {}
            with contextlib.suppress(OSError):
                for file in folder.iterdir():
                    if file.suffix == ".py" or file.suffix in COMPILED:
                        modules.setdefault(file.name.partition(".")[0], []).append(file)
        return self._modules[folder]

    def _is_module(self, folder: Path, parts: Sequence[str], user: Path) -> bool:
        """Whether the folder holds the dotted name, as a module or as what a module other than `user` may define."""
        place = folder.joinpath(*parts)
        own = len(self._chain(folder, parts)) > len(self._chain(folder, parts[:-1]))
        if own or parts[-1] == "*" or place.is_dir() or (place.parent.parent / f"{place.parent.name}.py").is_file():
            return True
        init = place.parent / INIT
        bound = read_source(init.read_bytes()).bound if init != user and init.is_file() else frozenset()
        return not bound.isdisjoint({parts[-1], "*", "__getattr__"})


def modules_outside(folders: Iterable[Path]) -> frozenset[str]:
    """Names of modules that are not in these folders: those of Python, and those on the path of this process."""
    trees, others = [folder.resolve() for folder in folders], [Path(entry or ".").resolve() for entry in sys.path]
    outside = [other for other in others if other.is_dir() and not any(map(other.is_relative_to, trees))]
    return sys.stdlib_module_names.union(each.name.partition(".")[0] for folder in outside for each in folder.iterdir())


@lru_cache(maxsize=4096)
def read_source(content: bytes) -> ModuleText:
    """What the text of a module says of other files; base and head share most texts."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        return ModuleText(error=f"which cannot be parsed: {error}")
    nodes = list(_run(tree))
    return ModuleText(
        imports=tuple(user_files.imports(nodes)),
        hidden=tuple(_hidden(nodes, _full_names(nodes))),
        bound=frozenset(user_files.bound_names(tree)),
    )


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and _dotted(node.test, {}) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def _packages_of(file: Path) -> Iterator[Path]:
    """The `__init__.py` of every package that the file is in."""
    return takewhile(Path.is_file, (folder / INIT for folder in file.parents))


def _hidden(nodes: Iterable[ast.AST], names: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Each line that imports, reads or runs something in a way that the source does not show, with its name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if _not_followed(alias.name))
        elif isinstance(node, ast.Name):
            full = names.get(node.id, "")
            if _not_followed(full) or (not full and node.id in BUILTINS):
                yield node.lineno, full or node.id
        elif isinstance(node, ast.Attribute):
            full = _dotted(node, names)
            if node.attr in METHODS or _not_followed(full):
                yield node.lineno, full or node.attr


@lru_cache(maxsize=4096)
def _not_followed(name: str) -> bool:
    return bool(name) and bool(_NOT_FOLLOWED.match(name))


def _full_names(nodes: Sequence[ast.AST]) -> dict[str, str]:
    """What each imported name stands for: `np` for numpy, `load` for torch.load."""
    names: dict[str, str] = {}
    for node in reversed(nodes):  # in the order of the source, where one name stands for two
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    """`numpy.load` of `np.load`; empty for what is no chain of names."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (value := _dotted(node.value, names)):
        return f"{value}.{node.attr}"
    return ""
