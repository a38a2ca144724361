"""The files of a source tree that a module imports, found by reading them; nothing is run.

Where two folders of the import path hold a module of one name, both are followed: a file too many costs time, a file
too few would hide a change.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

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
METHODS = frozenset({"read_text", "read_bytes", "open"})


class Closure(msgspec.Struct, frozen=True):
    """The files that modules import, by name, with digests of their contents; and what could not be followed."""

    files: Mapping[str, str] = {}
    obstacle: str = ""  # `kernel.py, line 3: importlib`: the first one; empty if every import was followed


class SourceTree:
    """The folders that come first on the import path of a worker; the first is its working directory.

    `elsewhere`: names of modules outside, as `modules_outside` gives them. Modules of `trusted`, a package, are not
    searched for obstacles: all that it loads by name is a root.
    """

    def __init__(self, folders: Sequence[Path], elsewhere: frozenset[str], trusted: str = "") -> None:
        self.folders, self._elsewhere = tuple(folder.resolve() for folder in folders), elsewhere
        self._trusted = tuple(folder / trusted for folder in self.folders if trusted)
        self._read: dict[tuple[Path, tuple[Path, ...]], tuple[list[Path], str]] = {}

    def name(self, file: Path) -> str:
        """The name of a file in both trees: relative to the working directory; a file outside keeps its path."""
        inside = any(file.is_relative_to(folder) for folder in self.folders)
        return Path(os.path.relpath(file, self.folders[0])).as_posix() if inside else str(file)

    def module(self, name: str) -> list[Path]:
        """The files that importing the module runs, its packages included; empty if no folder has its first part."""
        return [file for folder in self.folders for file in _chain(folder, name.split("."))]

    def hiding(self) -> list[Path]:
        """The modules of the tree that hide one of Python or of an installed package of the same name."""
        names = self._elsewhere | {"sitecustomize", "usercustomize"}
        inside = {each.name.partition(".")[0] for folder in self.folders for each in folder.iterdir()}
        return [file for name in sorted(names & inside) for file in self.module(name)]

    def closure(self, roots: Iterable[Path]) -> Closure:
        """All files that importing these files runs, now or inside their functions."""
        pending = [root.resolve() for root in roots]
        path = tuple(dict.fromkeys((*(folder for root in pending for folder in _import_folders(root)), *self.folders)))
        files, obstacles = dict[str, str](), list[str]()
        while pending:
            file = pending.pop()
            if (name := self.name(file)) in files:
                continue
            files[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            if file.suffix == ".py":
                imported, obstacle = self._imports_of(file, path)
                pending += imported
                obstacles += [f"{name}, {obstacle}"] if obstacle else []
            elif file.suffix in COMPILED:
                obstacles.append(f"{name}: a compiled file")
        return Closure(files=files, obstacle=min(obstacles, default=""))

    def _imports_of(self, file: Path, path: tuple[Path, ...]) -> tuple[list[Path], str]:
        """The files that a file imports, and its first obstacle; each file is read once."""
        if (file, path) not in self._read:
            self._read[file, path] = self._imports_read(file, path)
        return self._read[file, path]

    def _imports_read(self, file: Path, path: tuple[Path, ...]) -> tuple[list[Path], str]:
        imported = list(_packages_of(file))
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte
            return imported, f"which cannot be parsed: {error}"
        obstacles: dict[int, str] = {}
        for node in _run(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for parts, places in _modules_named(node, file, path):
                    inside = [place for place in places if _level(node) or self._has(place, parts[:1])]
                    imported += [each for place in inside for each in _chain(place, parts)]
                    if inside and not any(_is_module(place, parts, file) for place in inside):
                        obstacles.setdefault(node.lineno, f"import of {'.'.join(parts)}")
        if any(map(file.is_relative_to, self._trusted)):
            return imported + [data for data in file.parent.iterdir() if data.suffix in DATA], ""
        obstacles |= dict(_hidden(tree))
        first = min(obstacles, default=0)
        return imported, f"line {first}: {obstacles[first]}" if first else ""

    def _has(self, folder: Path, parts: Sequence[str]) -> bool:
        """Whether a module of that name comes from the folder; a folder without `__init__.py` hides no other module."""
        inside = parts[0] not in self._elsewhere and folder.joinpath(*parts).is_dir()
        return inside or bool(_chain(folder, parts))


def modules_outside(folders: Iterable[Path]) -> frozenset[str]:
    """Names of modules that are not in these folders: those of Python, and those on the path of this process."""
    trees, others = [folder.resolve() for folder in folders], [Path(entry or ".").resolve() for entry in sys.path]
    outside = [other for other in others if other.is_dir() and not any(map(other.is_relative_to, trees))]
    return sys.stdlib_module_names.union(each.name.partition(".")[0] for folder in outside for each in folder.iterdir())


def _import_folders(root: Path) -> list[Path]:
    """The folders that come first on the import path while a user's file is imported."""
    try:
        return [user_files.module_name(root)[0], root.parent]
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return [root.parent]


def _level(node: ast.Import | ast.ImportFrom) -> int:
    """How many folders a relative import goes up from its file, itself included; 0 for an absolute one."""
    return node.level if isinstance(node, ast.ImportFrom) else 0


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def _packages_of(file: Path) -> Iterator[Path]:
    """The `__init__.py` of every package that the file is in."""
    return takewhile(Path.is_file, (folder / INIT for folder in file.parents))


def _chain(folder: Path, parts: Sequence[str]) -> list[Path]:
    """The files of a dotted name below the folder, as far as they are there; `*` stands for every submodule."""
    files: list[Path] = []
    for count in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:count])
        beside = place.parent.glob(f"{place.name}.*")
        here = [file for file in beside if file.suffix == ".py" or file.suffix in COMPILED]
        here += [place / INIT] if (place / INIT).is_file() else []
        files += here
        if not here and not place.is_dir():
            break
    return files


def _is_module(folder: Path, parts: Sequence[str], user: Path) -> bool:
    """Whether the folder holds the dotted name, as a module or as what a module other than `user` may define."""
    place = folder.joinpath(*parts)
    if parts[-1] == "*" or place.is_dir() or len(_chain(folder, parts)) > len(_chain(folder, parts[:-1])):
        return True
    init = place.parent / INIT
    return place.parent.parent.joinpath(f"{place.parent.name}.py").is_file() or (
        init != user and _defines(init, parts[-1])
    )


def _modules_named(
    node: ast.Import | ast.ImportFrom, file: Path, path: Sequence[Path]
) -> Iterator[tuple[list[str], Sequence[Path]]]:
    """Dotted names of an import statement, with the folders that they may be in."""
    if isinstance(node, ast.Import):
        yield from ((alias.name.split("."), path) for alias in node.names)
        return
    places = [file.parents[min(node.level, len(file.parents)) - 1]] if node.level else path
    module = node.module.split(".") if node.module else []
    yield from (([*module, alias.name], places) for alias in node.names)


def _defines(init: Path, name: str) -> bool:
    """Whether the file of a package may bind the name."""
    try:
        names = user_files.bound_names(ast.parse(init.read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return False
    return not names.keys().isdisjoint({name, "*", "__getattr__"})


def _hidden(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each line that imports, reads or runs something in a way that the source does not show, with its name."""
    names = _full_names(tree)
    for node in _run(tree):
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


def _not_followed(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in NOT_FOLLOWED)


def _full_names(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `np` for numpy, `load` for torch.load."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
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
