"""The arms that a plan may measure: which of their cases are refused, and the memory of the others. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from attnbench import backends
from attnbench.attention import cost
from attnbench.backends import Backend, installation
from attnbench.engine import interpreters
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Cause, Procedure, Result, Status
from attnbench.records.speeds import Speeds
from attnbench.units import size

# Memory of a worker after its imports, and scratch of the oracle; a prediction adds both to the tensors.
WORKER_BYTES = 400 * 1024**2
ORACLE_BYTES = 600 * 1024**2


class Refusal(NamedTuple):
    """Why a case is not measured."""

    status: Status
    reason: str
    cause: Cause | None = None
    facts: Mapping[str, object] = {}

    def result(self, case: Case, arm: Arm, procedure: Procedure, *, restart: int = 0, group: str = "") -> Result:
        """The Result that is stored in place of a measurement."""
        return Result(
            case=case,
            arm=arm,
            status=self.status,
            reason=self.reason,
            cause=self.cause,
            restart=restart,
            group=group,
            procedure=procedure,
            facts=dict(self.facts),
        )


class PlanLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan depends on beside cells and arms."""

    memory_bytes: int  # the limit for a group
    procedures: dict[str, Procedure]  # by kind of device
    reference: str = ""  # backend; empty: none
    gpu_memory_bytes: dict[int, int] = {}  # by index
    capability: dict[int, tuple[int, int]] = {}  # by index
    speeds: Speeds = Speeds()  # what this machine measured before
    probes: int = 0  # of each case


class CheckedCase(NamedTuple):
    """What is known of a case before its device is opened."""

    refusal: Refusal | None  # None: it is measured
    peak_bytes: int | None = None  # predicted, of one call; None for a refused case and a user's file


class Candidate:
    """An arm, and what a plan needs to know of it whatever the problem."""

    def __init__(self, arm: Arm, limits: PlanLimits) -> None:
        self.arm, device = arm, arm.parsed_device
        # Only the worker reads a user's file.
        self._backend = None if backends.is_file(arm.backend) else backends.load(arm.backend)
        self._kind, self._capability = device.kind, (0, 0)
        if device.kind == "cuda":
            self._capability = limits.capability.get(device.index, (0, 0))
            self.memory_bytes = limits.gpu_memory_bytes.get(device.index, 1 << 62)
        else:
            self.memory_bytes = limits.memory_bytes
        self._unavailable = _unavailable(self._backend, arm) if self._backend else None

    @property
    def compiles(self) -> bool:
        """Whether it is measured in the second pass."""
        return self._backend is not None and self._backend.compiles

    def check(self, case: Case) -> CheckedCase:
        """Whether a case of this arm is measured, as far as is known without opening the device."""
        if self._backend is None:
            return CheckedCase(None)
        if self._unavailable:
            return CheckedCase(self._unavailable)
        if objections := self._backend.objections(case, self._kind, self._capability):
            return CheckedCase(Refusal(Status.UNSUPPORTED, "; ".join(objections)))
        peak_bytes = needed = self._backend.peak_bytes(case)
        if self._kind == "cpu":
            needed += WORKER_BYTES + ORACLE_BYTES + cost.input_bytes(case.problem)
        if needed > self.memory_bytes:
            reason = f"needs {size(needed)}, limit {size(self.memory_bytes)}"
            return CheckedCase(Refusal(Status.SKIPPED, reason, Cause.MEMORY))
        return CheckedCase(None, peak_bytes)


def _unavailable(backend: Backend, arm: Arm) -> Refusal | None:
    """Why no case of the arm can be measured; None if some may be."""
    kind = arm.parsed_device.kind
    if kind not in backend.limits:
        return Refusal(Status.UNAVAILABLE, backend.lacks(kind))
    if absent := interpreters.missing(backend, arm):
        where = f" in {arm.python}" if arm.python else ""
        command = installation.install_command(backend, arm.python)
        hint = f"; install: {command}" if command else ""
        return Refusal(Status.UNAVAILABLE, f"not installed{where}: {', '.join(absent)}{hint}")
    if wrong := interpreters.wrong_version(backend, arm):
        return Refusal(Status.UNAVAILABLE, wrong)
    interpreted = bool(backend.interpreter) and set(backend.interpreter) <= set(arm.env)
    if kind == "cpu" and backend.untimed and not interpreted:
        return Refusal(Status.UNAVAILABLE, backend.untimed)
    return None


def peak_bytes(case: Case) -> int | None:
    """Predicted peak bytes of one call; None for a user's file, which only the worker reads."""
    return None if backends.is_file(case.backend) else backends.load(case.backend).peak_bytes(case)


def scratch_bytes(case: Case) -> int | None:
    """Predicted bytes of one call beyond its inputs and outputs; None for a user's file."""
    return None if backends.is_file(case.backend) else backends.load(case.backend).extra_bytes(case)
