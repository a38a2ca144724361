"""The user's files that a request names, copied into the folder that travels to the nodes."""

import re
import shutil
from pathlib import Path

import msgspec

from attnbench.engine.request import Request
from attnbench.errors import UsageError

_FILE = re.compile(r"[^\s,=;:\"'\[\]]+\.(?:py|toml|json|jsonl|csv|safetensors)\b")
_FOLDER = re.compile(r"(?:^|[\s,\"'])kernels:([^\s,:\"']+)")


def collect(request: Request, folder: Path) -> None:
    """Copy every file that the request or one of its suite files names, with the Python files beside it.

    Raises UsageError for one outside the working directory: a node would look for it under another path.
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
            target = folder / _inside(str(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        if name.endswith(".toml"):
            waiting |= _named(Path(name).read_text(encoding="utf-8"))


def _named(text: str) -> set[str]:
    return set(_FILE.findall(text))


def _imports(name: str) -> bool:
    return name.endswith((".py", ".toml"))


def _inside(name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"--engine ray: {name} is named from outside the working directory; name it relative to it")
    return path
