"""An Arm: a backend on a device in an environment. Each arm runs in a separate process."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from attnbench.errors import UnknownNameError, UsageError
from attnbench.units import counted

CPU_OPTIONS = ("threads", "isa", "cores", "hardware")
CPU_ISAS = ("default", "avx2", "avx512", "amx")


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`cpu`, `cpu:threads=1`, `cpu:isa=avx2`, `cpu:cores=0-3+8`, `cuda:0`, `cuda:0:hardware=H100`."""

    kind: str
    index: int = 0
    threads: int = 0  # 0: all physical cores less one, at least one
    isa: str = ""  # empty: the widest instruction set of the CPU
    cores: tuple[int, ...] = ()  # CPUs to pin its worker to; empty: the last ones
    hardware: str = ""  # the class of hardware in a cluster; it tells equal devices of different machines apart

    @property
    def text(self) -> str:
        options = {
            "threads": self.threads, "isa": self.isa, "cores": _ranges(self.cores), "hardware": self.hardware
        }  # fmt: skip
        kind = f"cuda:{self.index}" if self.kind == "cuda" else "cpu"
        return ":".join([kind, *(f"{name}={value}" for name, value in options.items() if value)])


def _ranges(cores: tuple[int, ...]) -> str:
    """`0-3+8`."""
    ranges: dict[int, list[int]] = {}  # by the difference between a core and its place, which a range shares
    for place, core in enumerate(cores):
        ranges.setdefault(core - place, []).append(core)
    return "+".join(f"{each[0]}-{each[-1]}" if len(each) > 1 else f"{each[0]}" for each in ranges.values())


class Arm(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False, cache_hash=True
):
    """One way to run a problem. Copies of one arm, for an A/A control, differ in `copy`: `naive` and `naive#2`."""

    backend: str
    device: str
    python: str = ""  # another interpreter; empty: this one
    path: tuple[str, ...] = ()  # put first on the import path; the first is also the working directory
    env: tuple[tuple[str, str], ...] = ()  # environment variables, beside those of this process
    copy: int = msgspec.field(default=1, name="twin")  # stored under its first name

    @property
    def parsed_device(self) -> Device:
        """The device, parsed; raises UsageError for a text that names none."""
        return parse_device(self.device)

    @property
    def name(self) -> str:
        """Backend and number of the copy, as tables show it."""
        return self.backend + (f"#{self.copy}" if self.copy > 1 else "")

    @property
    def id(self) -> str:
        """Everything that distinguishes two arms of a run."""
        return _id(self)

    @property
    def settings(self) -> tuple[str, ...]:
        """What arms of one backend and device differ in: interpreter, folders, environment variables."""
        python = (self.python,) if self.python else ()
        return (*python, *self.path, *(f"{key}={value}" for key, value in self.env))


def distinct_names(arms: Iterable[Arm]) -> dict[str, str]:
    """The shortest name of each arm, by its id, that no other arm of its device has: `naive`, `naive#2`, `naive@head`.

    A name depends on the set of arms alone, so that runs of one sweep have the same names.
    """
    by_backend: dict[tuple[str, str], dict[str, Arm]] = {}
    for arm in arms:
        by_backend.setdefault((arm.device, arm.backend), {})[arm.id] = arm
    names: dict[str, tuple[str, str]] = {}  # device and name
    for (device, backend), group in by_backend.items():
        shared = set.intersection(*(set(arm.settings) for arm in group.values()))
        different = {arm_id: [text for text in arm.settings if text not in shared] for arm_id, arm in group.items()}
        copies = Counter(map(tuple, different.values()))
        for arm_id, settings in different.items():
            copy = group[arm_id].name if copies[tuple(settings)] > 1 else backend
            names[arm_id] = device, "@".join([copy, *settings])
    uses = Counter(names.values())
    return {
        arm_id: name if uses[device, name] == 1 else f"{name}@{_digest(arm_id)}"
        for arm_id, (device, name) in names.items()
    }


def labels(arms: Iterable[Arm]) -> dict[str, str]:
    """The distinct name of each arm, by its id; where there are several devices, with the device: `naive@cuda:0`."""
    arms = list(arms)
    devices = {arm.id: arm.device for arm in arms}
    several = len(set(devices.values())) > 1
    return {arm: f"{name}@{devices[arm]}" if several else name for arm, name in distinct_names(arms).items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@lru_cache(maxsize=1024)
def _id(arm: Arm) -> str:
    return "@".join((arm.name, arm.device, *arm.settings))


@lru_cache(maxsize=256)
def unpinned(text: str) -> str:
    """The device without its cores: what is measured on some holds for others of as many threads."""
    return replace(parse_device(text), cores=()).text


@lru_cache(maxsize=256)
def parse_device(text: str) -> Device:
    """Parse one device. Whether the machine has it is not checked here."""
    kind, *options = text.strip().split(":")
    if kind == "cuda":
        index = options.pop(0) if options and options[0].isdecimal() else "0"
        if len(options) > 1 or (options and not options[0].startswith("hardware=")):
            raise UsageError(f"--device: not a CUDA device: {text!r} (try cuda:0)")
        return Device(kind="cuda", index=int(index), hardware=_hardware(options[0], text) if options else "")
    if re.fullmatch(r"\d+(-\d+)?", kind):  # what a comma cuts off a list of cores
        raise UsageError(f"--device: no device {text!r}; for two cores: cpu:cores=0+1; for a GPU: cuda:0")
    if kind != "cpu":
        raise UnknownNameError("device", text, ("cpu", "cpu:threads=1", "cpu:isa=avx2", "cuda:0"), where="--device")
    threads, isa, hardware = 0, "", ""
    cores: tuple[int, ...] = ()
    for option in options:
        key, _, value = option.partition("=")
        if key not in CPU_OPTIONS:
            raise UnknownNameError("option of cpu", key, CPU_OPTIONS, where=f"--device {text}")
        if key == "hardware":
            hardware = _hardware(option, text)
        elif key == "threads":
            if not re.fullmatch(r"[1-9]\d*", value):
                raise UsageError(f"--device: threads={value!r} in {text!r}: a number of at least 1")
            threads = int(value)
        elif key == "cores":
            cores = _cores(value, text)
        elif value not in CPU_ISAS:
            raise UnknownNameError("instruction set", value, CPU_ISAS, where=f"--device {text}")
        else:
            isa = value
    if cores and threads > len(cores):
        raise UsageError(f"--device: threads={threads} in {text!r}: more than its {counted(len(cores), 'core')}")
    return Device(kind="cpu", threads=threads, isa=isa, cores=cores, hardware=hardware)


def _cores(value: str, text: str) -> tuple[int, ...]:
    matches = [re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part) for part in value.split("+")]
    ranges = [range(int(match[1]), int(match[2] or match[1]) + 1) for match in matches if match]
    if len(ranges) < len(matches) or not all(ranges):
        raise UsageError(f"--device: cores={value!r} in {text!r}: not a list of CPUs (try cores=0-3 or cores=0+2)")
    return tuple(sorted(set().union(*ranges)))


def _hardware(option: str, text: str) -> str:
    name = option.partition("=")[2]
    check_hardware(name, f"--device {text}")
    return name


def check_hardware(name: str, where: str) -> None:
    """Raise UsageError for what is no name of a class of hardware."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"{where}: not a class of hardware: {name!r} (letters, digits, '.', '-' and '_': H100, cpu)")
