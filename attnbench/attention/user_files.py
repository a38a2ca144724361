"""Python files of users: where a module is, the package that a file belongs to, and the import of the file."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from attnbench.errors import UnknownNameError, UsageError

INIT = "__init__.py"
MAX_ARGUMENTS = 255  # of a callable whose parameters are not known
_CALLABLE = (ast.Call, ast.Lambda, ast.Attribute, ast.Name, ast.Subscript)  # expressions that may give a callable


def module_file(name: str) -> Path | None:
    """The source file of the module `package.module`: in the working directory, else where Python finds it.

    Nothing of the user is imported. None if there is no such file.
    """
    first, *rest = name.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        return None
    for folder in (Path.cwd(), *_installed_folders(first)):
        place = folder.joinpath(first, *rest)
        for file in (place / INIT, place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file
    return None


def check_defines(path: Path, name: str, place: str) -> None:
    """Raise UsageError unless the file parses and defines the name. Nothing of it runs; `place` begins the message."""
    try:
        defined = bound_names(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        raise UsageError(f"{place}: {path.name} cannot be parsed: {error}") from error
    if name not in defined and not defined.keys() & {"*", "__getattr__"}:
        raise undefined(name, [word for word, count in defined.items() if count is not None], place)


def functions_of(module: ModuleType) -> list[str]:
    """The callables that a module defines itself."""
    values = vars(module).items()
    return [name for name, each in values if callable(each) and getattr(each, "__module__", "") == module.__name__]


def undefined(name: str, functions: Sequence[str], place: str) -> UsageError:
    """The error for a name that a file with these functions does not define."""
    if functions:
        return UnknownNameError("callable", name, _public(functions), where=place)
    return UsageError(f"{place}: no callable {name!r}; the file defines no function")


def example(path: Path) -> str:
    """The first callable of a file that may take q, k and v, else `attend`."""
    try:
        defined = bound_names(ast.parse(path.read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return "attend"
    return next(iter(_public([word for word, count in defined.items() if count and count >= len("qkv")])), "attend")


def bound_names(tree: ast.Module) -> dict[str, int | None]:
    """Names that the top level of a module binds, those inside `if` and `try` too: how many arguments a function takes.

    None for what is no function of the module; `*` stands for a star import.
    """
    names: dict[str, int | None] = {}
    pending: list[ast.AST] = list(reversed(tree.body))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef):
            names[node.name] = _positional(node.args)
        elif isinstance(node, ast.ClassDef | ast.AsyncFunctionDef):
            names[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(dict.fromkeys(((alias.asname or alias.name.split(".")[0]) for alias in node.names), None))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, None)
        else:
            if isinstance(node, ast.Assign) and isinstance(node.value, _CALLABLE):  # torch.compile(attend)
                names.update((target.id, MAX_ARGUMENTS) for target in node.targets if isinstance(target, ast.Name))
            pending.extend(reversed(list(ast.iter_child_nodes(node))))
    return names


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Line, level of a relative import, and dotted name of all that these nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            yield from ((node.lineno, node.level, (*module, alias.name)) for alias in node.names)


def _positional(parameters: ast.arguments) -> int:
    return MAX_ARGUMENTS if parameters.vararg else len(parameters.posonlyargs) + len(parameters.args)


def _public(names: Sequence[str]) -> list[str]:
    """The names without those that begin with an underscore; all, if every one does."""
    return [name for name in names if not name.startswith("_")] or list(names)


def import_file(path: Path) -> ModuleType:
    """Import a file: one inside a package as that package's module, any other by itself. Its exceptions propagate.

    The folders of the file and of its package come first on the module path meanwhile. They stay at its end, where
    they hide no other module, for imports inside functions. No compiled files are left in the folders.
    """
    root, name = module_name(path)
    folders = [root, path.parent] if "." in name or path.name == INIT else [path.parent]
    with _without_bytecode(), _folders_on_path(folders):
        if "." in name or path.name == INIT:
            return _import_from_package(path, root, name)
        spec = importlib.util.spec_from_file_location(f"attnbench_plugin_{name}", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Imports inside leave no __pycache__: a gate must not change the repository that it compares."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def module_name(path: Path) -> tuple[Path, str]:
    """The folder that the file is imported from, and its name there: `package.module` inside a package.

    A folder is a package if it holds __init__.py, or if relative imports of the file need it to be one.
    """
    parts = [] if path.name == INIT else [path.stem]
    needed = _relative_levels(path)
    folder, packages = path.parent, 0
    while ((folder / INIT).is_file() or packages < needed) and folder.name and "." not in folder.name:
        parts.insert(0, folder.name)
        folder, packages = folder.parent, packages + 1
    return folder, ".".join(parts)


def import_folders(path: Path) -> list[Path]:
    """The folders that come first on the import path while a file is imported."""
    try:
        return [module_name(path)[0], path.parent]
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return [path.parent]


def _import_from_package(path: Path, root: Path, name: str) -> ModuleType:
    package = name.partition(".")[0]
    loaded = sys.modules.get(package)
    folders = [Path(folder).resolve() for folder in getattr(loaded, "__path__", [])]
    if loaded and root / package not in folders:
        place = getattr(loaded, "__file__", None) or "Python itself"
        raise UsageError(
            f"{path}: its package {package!r} has the name of a package that is in use ({place}); rename it"
        )
    return importlib.import_module(name)


def _installed_folders(package: str) -> list[Path]:
    """The folders that hold an installed package or module of that name; none if there is none."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return []
    if spec is None:
        return []
    places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    return [Path(place).parent for place in places]


def _relative_levels(path: Path) -> int:
    """How many packages the relative imports of a file climb through: 1 for `from .x import y`."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    return max((node.level for node in nodes if isinstance(node, ast.ImportFrom)), default=0)


@contextmanager
def _folders_on_path(folders: list[Path]) -> Iterator[None]:
    texts = [str(folder) for folder in folders]
    sys.path[:0] = texts
    try:
        yield
    finally:
        for text in texts:
            if text in sys.path:
                sys.path.remove(text)
        sys.path += [text for text in texts if text not in sys.path]
