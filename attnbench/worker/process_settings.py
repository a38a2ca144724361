"""Settings of a process that code of a user can change, and that inputs, references, judgements or times depend on.

docs/method.md has the table of them.
"""

from __future__ import annotations

import gc
import operator
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from attnbench.worker import process

NOT_WATCHED = frozenset({"torch.manual_seed", "torch.Storage"})  # torch itself replaces them later
OWN = ("attnbench.worker.", "attnbench.machine.device.")  # modules whose functions no kernel may replace
MAX_NAMED = 5  # functions in the text of a change
SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1,
    signal.SIGUSR2,
)  # fmt: skip
FP32_PARTS = ("cuda.matmul", "mkldnn.matmul")  # of torch.backends: their precision of float32, since torch 2.9
CUDA_FLAGS = (
    ("flash SDPA", "flash_sdp_enabled", "enable_flash_sdp"),
    ("memory-efficient SDPA", "mem_efficient_sdp_enabled", "enable_mem_efficient_sdp"),
    ("math SDPA", "math_sdp_enabled", "enable_math_sdp"),
    ("cuDNN SDPA", "cudnn_sdp_enabled", "enable_cudnn_sdp"),
)  # of torch.backends.cuda
ATTRIBUTES = (
    ("cudnn", "enabled"), ("cudnn", "benchmark"), ("cudnn", "deterministic"), ("mkldnn", "enabled"),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
)  # fmt: skip  # of torch.backends

Handlers: TypeAlias = "dict[int, signal._HANDLER]"
_GUARDS: list[object] = []  # of inference mode: one that is dropped brings back what was before it


class Owner(Enum):
    """Whose value of a setting is in force while code of the backend runs."""

    BACKEND = auto()  # its own: the calls may need it
    WORKER = auto()  # attnbench's
    ARM = auto()  # that of the arm, or of the clock: times with another value would not be comparable


class Setting(NamedTuple):
    """A setting of the process. Values are compared by ==."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    owner: Owner = Owner.BACKEND
    describe: Callable[[Any, Any], str] = lambda ours, theirs: f"{_plain(ours)} -> {_plain(theirs)}"
    scoped: bool = False  # torch has a `with` block for it, which attnbench may have around code of the backend


def settings() -> list[Setting]:
    """Every setting. The original functions are those of this moment."""
    # Functions first: the other settings are read and written with them.
    return [*_functions(), *_of_torch(), *_of_numbers(), *_of_backends(), *_of_process(), *_of_arm()]


@contextmanager
def inter_op_threads_kept(changes: dict[str, str]) -> Iterator[None]:
    """Ignore and note attempts to set the inter-op threads: torch allows one in a process, and the arm has made it."""
    import torch

    functions, count = vars(torch), torch.get_num_interop_threads()
    original = functions["set_num_interop_threads"]

    def ignore(threads: int) -> None:
        if threads != count:
            changes["inter-op threads"] = f"{count} -> {threads}"

    functions["set_num_interop_threads"] = ignore
    try:
        yield
    finally:
        functions["set_num_interop_threads"] = original


def _plain(value: object) -> str:
    return str(value).replace("torch.", "")


def _switched(ours: tuple[bool, object], theirs: tuple[bool, object]) -> str:
    """The change of a switch that has a further value."""
    before, after = (f"{'on' if value[0] else 'off'} ({_plain(value[1])})" for value in (ours, theirs))
    return f"{before} -> {after}"


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MAX_NAMED} more" if len(ordered) > MAX_NAMED else ""
    return ", ".join(ordered[:MAX_NAMED]) + more


def _of_torch() -> list[Setting]:
    import torch

    unset = str(torch.get_default_device())

    def write_device(device: str) -> None:
        torch.set_default_device(None if device == unset else device)

    def write_inference(enabled: bool) -> None:
        guard = torch.inference_mode(enabled)
        guard.__enter__()
        _GUARDS.append(guard)

    return [
        Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Setting("default device", lambda: str(torch.get_default_device()), write_device),
        Setting(
            "deterministic algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
            describe=_switched,
        ),
        Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        *(_autocast(kind) for kind in ("cpu", "cuda")),
        Setting("inference mode", torch.is_inference_mode_enabled, write_inference, Owner.WORKER, scoped=True),
        Setting("grad mode", torch.is_grad_enabled, torch.set_grad_enabled, Owner.WORKER, scoped=True),
    ]


def _autocast(kind: str) -> Setting:
    import torch

    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(kind, value[0])
        torch.set_autocast_dtype(kind, value[1])

    return Setting(
        f"autocast on {kind}",
        lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        write,
        describe=_switched,
        scoped=True,
    )


def _of_numbers() -> list[Setting]:
    import torch

    def precision() -> tuple[str, ...]:
        try:
            whole = torch.get_float32_matmul_precision()
        except RuntimeError:  # torch's old and new names of the setting disagree
            whole = ""
        return whole, *(str(getattr(_part(name), "fp32_precision", "")) for name in FP32_PARTS)

    def write_precision(value: tuple[str, ...]) -> None:
        if value[0]:
            torch.set_float32_matmul_precision(value[0])
        for name, part, now in zip(FP32_PARTS, value[1:], precision()[1:], strict=True):
            if part != now:
                _part(name).fp32_precision = part

    return [
        Setting(
            "float32 matmul precision",
            precision,
            write_precision,
            describe=lambda *values: " -> ".join("/".join(filter(None, value)) for value in values),
        ),
        Setting("flush denormals", process.flushes_denormals, torch.set_flush_denormal),
        Setting("numpy errors", np.geterr, lambda value: np.seterr(**value), describe=_changed_errors),
    ]


def _changed_errors(ours: dict[str, str], theirs: dict[str, str]) -> str:
    return ", ".join(f"{name} {theirs[name]}" for name in ours if theirs[name] != ours[name])


def _part(name: str) -> Any:
    import torch

    value: Any = torch.backends
    for word in name.split("."):
        value = getattr(value, word)
    return value


def _of_backends() -> list[Setting]:
    cuda = _part("cuda")
    flags = [Setting(name, getattr(cuda, read), getattr(cuda, write)) for name, read, write in CUDA_FLAGS]

    def attribute(part: object, name: str) -> Setting:
        return Setting(name, lambda: getattr(part, name), lambda value: setattr(part, name, value))

    attributes = [(path, _part(path), name) for path, name in ATTRIBUTES]
    return flags + [
        attribute(part, name)._replace(name=f"{path}.{name}") for path, part, name in attributes if hasattr(part, name)
    ]


def _of_process() -> list[Setting]:
    def write_filters(value: list[object]) -> None:
        warnings.filters[:] = value  # type: ignore[index]
        with warnings.catch_warnings():  # drops what Python has cached of the filters
            pass

    def write_environment(value: dict[str, str]) -> None:
        for name in os.environ.keys() - value.keys():
            del os.environ[name]
        os.environ.update({name: text for name, text in value.items() if os.environ.get(name) != text})

    def write_path(value: list[str]) -> None:
        sys.path[:] = value

    def variables(ours: dict[str, str], theirs: dict[str, str]) -> str:
        """Names only: a value may be secret."""
        return _names(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))

    return [
        Setting("working directory", _working_directory, lambda value: os.chdir(value or os.sep)),
        Setting("environment variables", lambda: dict(os.environ), write_environment, describe=variables),
        # Entries at the end hide no module of ours.
        Setting("module path", lambda: [*sys.path], write_path,
                describe=lambda ours, theirs: "" if theirs[: len(ours)] == ours else "entries before others"),
        Setting("warning filters", lambda: [*warnings.filters], write_filters, describe=lambda *_: "changed"),
        Setting("signal handlers", _handlers, _write_handlers, Owner.WORKER, _changed_signals),
        Setting(
            "garbage collector", lambda: (gc.isenabled(), gc.get_threshold()), _write_collector, Owner.WORKER, _switched
        ),
    ]  # fmt: skip


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _handlers() -> Handlers:
    return {number: signal.getsignal(number) for number in SIGNALS}


def _write_handlers(value: Handlers) -> None:
    for number, handler in _handlers().items():
        if handler != value[number] and value[number] is not None:  # None: not set by Python
            signal.signal(number, value[number])


def _changed_signals(ours: Handlers, theirs: Handlers) -> str:
    return ", ".join(signal.Signals(number).name for number in ours if ours[number] != theirs[number])


def _write_collector(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


def _of_arm() -> list[Setting]:
    import torch

    arm = [
        Setting("threads", torch.get_num_threads, torch.set_num_threads, Owner.ARM),
        Setting(
            "memory limit", lambda: resource.getrlimit(resource.RLIMIT_DATA),
            lambda value: resource.setrlimit(resource.RLIMIT_DATA, value), Owner.ARM,
        ),
    ]  # fmt: skip
    if hasattr(os, "sched_getaffinity"):
        arm.append(
            Setting("CPU affinity", lambda: sorted(os.sched_getaffinity(0)), lambda v: process.pin(tuple(v)), Owner.ARM)
        )
    if torch.cuda.is_initialized():
        arm += [
            Setting("current GPU", torch.cuda.current_device, torch.cuda.set_device, Owner.ARM),
            Setting("current stream", torch.cuda.current_stream, torch.cuda.set_stream, Owner.ARM),
        ]
    return arm


def _functions() -> list[Setting]:
    """Functions that code may replace: of the clock and the device, and those that inputs and judgements use."""
    import builtins
    import math

    import torch

    measuring: dict[str, Namespace] = {
        "time": time,
        "gc": gc,
        "torch.cuda": torch.cuda,
        "torch.autograd": torch.autograd,
        **_own_namespaces(),
    }
    computing: dict[str, Namespace] = {
        "torch": torch, "torch.Tensor": torch.Tensor, "torch.nn.functional": torch.nn.functional,
        "torch.linalg": torch.linalg, "numpy": np, "math": math, "builtins": builtins,
    }  # fmt: skip
    return [
        _replaced("functions of the measurement", measuring, Owner.ARM),
        _replaced("functions", computing, Owner.BACKEND),
        _modules(),
    ]


def _own_namespaces() -> dict[str, Namespace]:
    """Modules of attnbench that time and judge, as far as they are imported, and their classes."""
    spaces: dict[str, Namespace] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(OWN):
            spaces[name] = module
            classes = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == name)
            spaces |= {f"{name}.{kind.__name__}": kind for kind in classes}
    return spaces


Namespace = ModuleType | type
_ABSENT = object()


def _replaced(name: str, spaces: dict[str, Namespace], owner: Owner) -> Setting:
    """The functions of these modules and classes that are not the original ones, as {(space, name): function}."""
    import torch

    originals = {
        space: {key: value for key, value in vars(of).items() if callable(value)} for space, of in spaces.items()
    }
    inherited = frozenset(dir(torch._C.TensorBase)) - originals.get("torch.Tensor", {}).keys()
    watched = {space: (tuple(functions), tuple(functions.values())) for space, functions in originals.items()}

    def read() -> dict[tuple[str, str], object]:
        replaced: dict[tuple[str, str], object] = {}
        for space, of in spaces.items():
            current = vars(of)
            if not _holds(current, *watched[space]):
                for key, original in originals[space].items():
                    value = current.get(key, _ABSENT)
                    if value is not original and f"{space}.{key}" not in NOT_WATCHED:
                        replaced[space, key] = value
            if of is torch.Tensor:  # what the base class defines, overridden
                replaced |= {(space, key): current[key] for key in inherited & current.keys() if callable(current[key])}
        return replaced

    def write(value: dict[tuple[str, str], object]) -> None:
        for space, key in read().keys() | value.keys():
            function = value.get((space, key), originals[space].get(key, _ABSENT))
            if function is _ABSENT:
                delattr(spaces[space], key)
            else:
                setattr(spaces[space], key, function)

    def describe(_: object, theirs: dict[tuple[str, str], object]) -> str:
        return _names(f"{space}.{key}" for space, key in theirs) + " replaced"

    return Setting(name, read, write, owner, describe)


def _holds(current: Mapping[str, object], names: tuple[str, ...], objects: tuple[object, ...]) -> bool:
    """Whether these names still hold these very objects. No loop in Python: this is asked before each step."""
    return all(map(operator.is_, map(current.get, names), objects))


def _modules() -> Setting:
    """Imported modules that were replaced in sys.modules, or removed from it."""
    originals = dict(sys.modules)
    names, modules = tuple(originals), tuple(originals.values())

    def read() -> dict[str, object]:
        current = sys.modules
        if _holds(current, names, modules):
            return {}
        return {name: current.get(name) for name, module in originals.items() if current.get(name) is not module}

    def write(value: dict[str, object]) -> None:
        for name in read().keys() | value.keys():
            module = value.get(name, originals[name])
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module  # type: ignore[assignment]

    return Setting("modules", read, write, describe=lambda _, theirs: _names(theirs) + " replaced")
