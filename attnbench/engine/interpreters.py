"""The interpreters in which arms start, those of `--backend-python` and this one, and what is installed in each."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import msgspec

from attnbench import backends
from attnbench._version import __version__
from attnbench.backends import Backend, installation
from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.arm import Arm
from attnbench.worker import protocol

OPTION = "--backend-python"
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 13)
PROBE_LIMIT_S = 30.0
MAX_DETAIL = 100  # characters of an error of Python that is shown
_OF_PYTHON = re.compile(r"(Fatal Python error|[\w.]+(Error|Exception|Exit)):? ")
_FURTHER = re.compile(r",([^,=]+=)")  # where a text continues with another NAME=PYTHON
REMEDY = "name the bin/python of a virtual environment"
Pythons = Mapping[str, str]  # interpreters by backend, or by library as `ort` or `ort:*`
HERE: Pythons = MappingProxyType({})  # this interpreter for all

# Runs in any version of Python 3. The folder of the caller is not importable, as in a worker.
_PROGRAM = """
import json, sys
sys.path = [folder for folder in sys.path if folder]
report = {"python": sys.version_info[:2]}
if sys.version_info >= (3, 8):
    from importlib import metadata, util
    report["modules"] = [name for name in sys.argv[1:] if util.find_spec(name)]
    report["packages"] = {str(each.metadata["Name"]): each.version for each in metadata.distributions()}
    try:
        from attnbench._version import __version__
        report["attnbench"] = __version__
        from attnbench.worker import protocol
        report["protocol"] = protocol.VERSION
    except Exception as error:
        report["error"] = "%s: %s" % (type(error).__name__, error)
print(json.dumps(report))
"""


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """What an interpreter says of itself."""

    python: tuple[int, int]
    modules: frozenset[str] = frozenset()  # of those that backends need, the ones that are installed
    packages: dict[str, str] = {}
    attnbench: str = ""  # version; empty: not installed
    protocol: int = 0
    error: str = ""  # why attnbench cannot be imported


def parse(texts: Iterable[str]) -> dict[str, str]:
    """NAME=PYTHON of the option. Raises UsageError for an unknown name, a name given twice, and what is no program."""
    pythons: dict[str, str] = {}
    for text in texts:
        name, equals, python = text.partition("=")
        if not (name and equals and python):
            raise UsageError(f"{OPTION}: not NAME=PYTHON: {text!r} (try jax=/path/to/venv/bin/python)")
        libraries = {each.partition(":")[0] for each in backends.names()}
        is_user = backends.is_file(name) or backends.is_folder(name)
        if not (is_user or name in backends.names() or name.removesuffix(":*") in libraries):
            raise UnknownNameError("backend", name, (*backends.names(), *sorted(libraries)), where=OPTION)
        if name in pythons:
            raise UsageError(f"{OPTION}: {name} twice, {pythons[name]} and {python}: give one of them")
        if _FURTHER.search(python) and not os.path.exists(os.path.expanduser(python)):
            each = _FURTHER.sub(rf" {OPTION} \1", text)
            raise UsageError(f"{OPTION} {text}: not a list: give the option once for each: {OPTION} {each}")
        pythons[name] = _program(python, f"{OPTION} {text}")
    return pythons


def _program(text: str, where: str) -> str:
    """The absolute path of a program, `~` for the home directory. A symbolic link stays one, as in environments."""
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if path.is_dir():
        python = path / "bin" / "python"
        what = f"name its interpreter, {python}" if python.is_file() else f"it has no bin/python: {REMEDY}"
        raise UsageError(f"{where}: a folder: {what}")
    if not path.is_file():
        raise UsageError(f"{where}: no such file: {REMEDY}")
    if not os.access(path, os.X_OK):
        raise UsageError(f"{where}: not executable: {REMEDY}")
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def of(backend: str, pythons: Pythons) -> str:
    """The interpreter of a backend, named for itself or for its library; empty: this one."""
    library = backend.partition(":")[0]
    names = (backend, f"{library}:*", *([library] if library not in backends.names() else []))
    return next((pythons[name] for name in names if name in pythons), "")


def checked(texts: Iterable[str]) -> Pythons:
    """`parse`, and UsageError where an interpreter cannot run this attnbench, with the command that helps."""
    pythons = parse(texts)
    for name, python in pythons.items():
        where = f"{OPTION} {name}={python}"
        interpreter = _probe(python, (), _modules(()), where)
        if not MIN_PYTHON <= interpreter.python <= MAX_PYTHON:
            version, low, high = (".".join(map(str, each)) for each in (interpreter.python, MIN_PYTHON, MAX_PYTHON))
            wrong = f"Python {version} is not supported: make an environment of Python {low} to {high}"
            raise UsageError(f"{where}: {wrong}: python{high} -m venv FOLDER")
        if reason := _objection(interpreter):
            raise UsageError(f"{where}: {reason}: {installation.shell_word(python)} -m pip install {_requirement()}")
    return pythons


def check_used(pythons: Pythons, measured: Collection[str]) -> None:
    """Raise UsageError for an interpreter of a backend that is not measured."""
    for name in pythons:
        if measured and not any(of(backend, {name: name}) for backend in measured):
            if others := sorted(backend for backend in measured if of(backend, {f"{name}:*": name})):
                raise UsageError(f"{OPTION} {name}: names one backend; {name}:* names {', '.join(others)} too")
            raise not_measured(f"{OPTION} {name}", sorted(measured))


def not_measured(where: str, measured: Iterable[str]) -> UsageError:
    """The error of an option that names a backend which is not measured."""
    return UsageError(f"{where}: not among the backends of this run, {', '.join(measured)}: add it to --backend")


def _objection(interpreter: Interpreter) -> str:
    if not interpreter.attnbench:
        absent = "No module named 'attnbench'" in interpreter.error
        return "attnbench is not installed there" + ("" if absent else f" ({interpreter.error})")
    if interpreter.attnbench != __version__:
        return f"its attnbench is {interpreter.attnbench}, this one {__version__}"
    if interpreter.error:
        return f"its attnbench cannot be imported ({interpreter.error})"
    if interpreter.protocol != protocol.VERSION:
        return f"its attnbench speaks protocol {interpreter.protocol}, this one {protocol.VERSION}"
    return ""


def _requirement() -> str:
    """What pip installs to have this attnbench: the clone that it runs from, else the released version."""
    root = Path(__file__).parents[2]
    return shlex.quote(str(root)) if (root / "pyproject.toml").is_file() else f"attnbench=={__version__}"


def missing(backend: Backend, arm: Arm | None = None) -> list[str]:
    """Required modules of the backend that are not installed where its arm starts. They are not imported."""
    modules = (*backend.requires, *backend.present)
    if arm and arm.python:
        interpreter = _of_arm(backend, arm).modules
        return [module for module in modules if _package(module) not in interpreter]
    return [module for module in modules if not _installed(module)]


def wrong_version(backend: Backend, arm: Arm | None = None) -> str:
    """Why a package is too old or too new where the arm starts; empty if none is."""
    if arm and arm.python:
        return installation.version_objection(backend, _of_arm(backend, arm).packages.get, arm.python)
    return _wrong_version_here(backend.name)


def packages(python: str) -> dict[str, str]:
    """The packages of an interpreter that was checked."""
    return _probe(python, (), _modules(())).packages


def _of_arm(backend: Backend, arm: Arm) -> Interpreter:
    return _probe(arm.python, arm.path, _modules((*backend.requires, *backend.present)))


@lru_cache(maxsize=8)
def _modules(further: tuple[str, ...]) -> tuple[str, ...]:
    """The packages that built-in backends need, and further ones: one probe serves all backends."""
    builtin = map(backends.load, backends.BUILTIN)
    needed = [module for each in builtin for module in (*each.requires, *each.present)]
    return tuple(sorted(set(map(_package, (*needed, "kernels", *further)))))


def _probe(python: str, path: tuple[str, ...], modules: tuple[str, ...], where: str = "") -> Interpreter:
    """Ask an interpreter what it has. Raises UsageError for what is none; `where` names the option."""
    answer = _answer(os.path.expanduser(python), path, modules)
    if isinstance(answer, str):
        raise UsageError(f"{where or python}: not a Python interpreter ({answer}): {REMEDY}")
    return answer


@lru_cache(maxsize=64)
def _answer(python: str, path: tuple[str, ...], modules: tuple[str, ...]) -> Interpreter | str:
    """What the interpreter says of itself, or why not; `path` comes first on its import path, as in a worker."""
    variables = dict(os.environ)
    variables["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [variables.get("PYTHONPATH", "")])])
    try:
        done = subprocess.run(
            [python, "-c", _PROGRAM, *modules], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            errors="replace", timeout=PROBE_LIMIT_S, env=variables,
        )  # fmt: skip
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_LIMIT_S:g} s"
    lines = done.stdout.strip().splitlines() or [""]
    try:
        return msgspec.convert(json.loads(lines[-1]), Interpreter)
    except (ValueError, msgspec.ValidationError):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return last if _OF_PYTHON.match(last) and len(last) <= MAX_DETAIL else f"exit code {done.returncode}"


def _package(module: str) -> str:
    # Of a dotted name only the package: looking further would import it, and torch with it.
    return module.partition(".")[0]


@lru_cache(maxsize=64)
def _wrong_version_here(name: str) -> str:
    return installation.version_objection(backends.load(name))


@lru_cache(maxsize=64)
def _installed(module: str) -> bool:
    return find_spec(_package(module)) is not None
