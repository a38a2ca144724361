"""The user's files that a request names, copied into the folder that travels to the nodes."""

import ast
import io
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from attnbench.attention import user_files
from attnbench.engine.request import Request
from attnbench.errors import UsageError
from attnbench.suite.files import SHIPPED_SUITES, shipped_folder

MAX_SENT_BYTES = 200 * 2**20
PACKAGE = __name__.partition(".")[0]  # travels itself
_FILE = re.compile(r"[^\s,=;:\"'\[\]]+\.(?:py|toml|json|jsonl|csv|safetensors)\b")
_FOLDER = re.compile(r"(?:^|[\s,\"'])kernels:([^\s,:\"']+)")


def collect(request: Request, folder: Path) -> None:
    """Copy every file that the request or one of its suite files names, with the Python files beside it.

    The packages that a Python file imports from there travel too. Raises UsageError for one outside the working
    directory, for which a node would look under another path, and for packages of more than MAX_SENT_BYTES.
    """
    for name in _FOLDER.findall(" ".join((request.backend, *request.axes.values()))):
        if Path(name).is_dir():
            shutil.copytree(name, folder / _inside(name), dirs_exist_ok=True)
    waiting, seen = _named(msgspec.json.encode(request).decode()), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or not Path(name).is_file():
            continue
        seen.add(name)
        beside = [*Path(name).parent.glob("*.py"), *Path(name).parent.glob("*.toml")] if _imports(name) else []
        for path in (Path(name), *beside):
            _copy(path, folder)
        for path in _imported(Path(name)) if name.endswith(".py") else ():
            _copy(path, folder)
        if name.endswith(".toml"):
            waiting |= _named(Path(name).read_text(encoding="utf-8"))


def package(folder: Path) -> Path:
    """This package with its suites: a copy in the folder, where they stand beside it, as in a checkout."""
    here = Path(__file__).parents[2]
    if (here / SHIPPED_SUITES).is_dir():
        return here
    copy = folder / here.name
    shutil.copytree(here, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped_folder(), copy / SHIPPED_SUITES)
    return copy


def packed(folder: Path) -> bytes:
    """The files of a folder as a zip archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive.getvalue()


def unpack(files: bytes, folder: Path) -> None:
    """Unpack them into a folder; make it the working directory, from which this process and its workers import."""
    zipfile.ZipFile(io.BytesIO(files)).extractall(folder)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def _copy(file: Path, folder: Path) -> None:
    target = folder / _inside(str(file))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _imported(kernel: Path) -> list[Path]:
    """The files of the modules and packages that a Python file imports from its folders. Raises UsageError."""
    folders = user_files.import_folders(kernel)
    waiting, seen, files = [kernel], set[Path](), dict[Path, None]()
    while waiting:
        for place in _places(waiting.pop(), folders):
            found = [] if place in seen else [each for each in _files(place) if each not in files]
            seen.add(place)
            files |= dict.fromkeys(found)
            waiting += [each for each in found if each.suffix == ".py"]
    if sum(each.stat().st_size for each in files) > MAX_SENT_BYTES:
        raise UsageError(
            f"--engine ray: the packages that {kernel} imports hold more than {MAX_SENT_BYTES // 2**20} MiB of files, "
            "which would travel to every node; move what is not needed elsewhere"
        )
    return list(files)


def _places(module: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Where the modules may be that a module imports: `lib` for lib.py or the folder lib."""
    try:
        tree = ast.parse(module.read_bytes())
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return
    for _, level, parts in user_files.imports(ast.walk(tree)):
        if level:
            yield module.parents[min(level, len(module.parents)) - 1] / parts[0]
        elif parts[0] != PACKAGE:
            yield from (folder / parts[0] for folder in folders)


def _files(place: Path) -> list[Path]:
    """The files of a module or a package; none of a folder without Python files."""
    files = [each for each in place.rglob("*") if each.is_file() and not is_cache(each.relative_to(place))]
    module = place.with_name(f"{place.name}.py")
    return [*([module] if module.is_file() else []), *(files if any(each.suffix == ".py" for each in files) else [])]


def is_cache(path: Path) -> bool:
    """Whether a path is hidden or of compiled Python files."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _named(text: str) -> set[str]:
    return set(_FILE.findall(text))


def _imports(name: str) -> bool:
    return name.endswith((".py", ".toml"))


def _inside(name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"--engine ray: {name} is named from outside the working directory; name it relative to it")
    return path
