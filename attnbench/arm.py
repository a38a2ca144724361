"""An Arm: who computes, where, in which environment. Each arm of a problem lives in a process of its own."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from attnbench.errors import UnknownNameError, UsageError

CPU_OPTIONS = ("threads", "isa")
CPU_ISAS = ("default", "avx2", "avx512", "amx")


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`cpu`, `cpu:threads=1`, `cpu:isa=avx2`, `cuda:0`."""

    kind: str
    index: int = 0
    threads: int = 0  # 0: all physical cores less one, at least one
    isa: str = ""  # empty: the best that the CPU has

    @property
    def text(self) -> str:
        """As a user types it."""
        if self.kind == "cuda":
            return f"cuda:{self.index}"
        options = {"threads": self.threads, "isa": self.isa}
        return ":".join(["cpu", *(f"{name}={value}" for name, value in options.items() if value)])


class Arm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One way to run a problem. Two equal arms are told apart by `twin`: `sdpa:flash` and `sdpa:flash#2`."""

    backend: str
    device: str
    python: str = ""  # another interpreter; empty: this one
    path: tuple[str, ...] = ()  # put first on the import path; the first is the working directory too
    env: tuple[tuple[str, str], ...] = ()  # variables of its own
    twin: int = 1

    @property
    def name(self) -> str:
        """Backend and twin number: how tables call it."""
        return self.backend + (f"#{self.twin}" if self.twin > 1 else "")

    @property
    def id(self) -> str:
        """Everything that tells two arms of a run apart."""
        parts = [self.name, self.device, self.python, *self.path, *(f"{key}={value}" for key, value in self.env)]
        return "@".join(part for part in parts if part)


def parse_device(text: str) -> Device:
    """Read one device; whether the machine has it is not looked at here."""
    kind, *options = text.strip().split(":")
    if kind == "cuda":
        if len(options) > 1 or (options and not options[0].isdecimal()):
            raise UsageError(f"--device: not a CUDA device: {text!r} (try cuda:0)")
        return Device(kind="cuda", index=int(options[0]) if options else 0)
    if kind != "cpu":
        raise UnknownNameError("device", text, ("cpu", "cpu:threads=1", "cpu:isa=avx2", "cuda:0"), where="--device")
    values: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in CPU_OPTIONS:
            raise UnknownNameError("option of cpu", key, CPU_OPTIONS, where=f"--device {text}")
        if key == "threads":
            if not re.fullmatch(r"[1-9]\d*", value):
                raise UsageError(f"--device: threads={value!r} in {text!r}: a number of at least 1")
            values["threads"] = int(value)
        elif value not in CPU_ISAS:
            raise UnknownNameError("instruction set", value, CPU_ISAS, where=f"--device {text}")
        else:
            values["isa"] = value
    return Device(kind="cpu", **values)
