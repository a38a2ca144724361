"""What a gate stores, the `[gate]` table of a suite included: with the results, the verdicts follow from it again."""

from collections.abc import Mapping
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from attnbench import suite
from attnbench.analysis.noise_floor import DurationNoise
from attnbench.errors import StoreError, SuiteError, UsageError
from attnbench.gate.rule import TOLERANCE, Margins
from attnbench.gate.trees import Revision
from attnbench.records.run_directory import Run
from attnbench.units import parse_share


class CaseTolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `[[gate.tolerance]]`."""

    match: str  # a glob over labels: `*causal*sdpa:flash`
    time: str  # a share: 5%
    reason: str
    expires: date | None = None

    def expired(self, today: date) -> bool:
        return self.expires is not None and self.expires < today


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[gate]` table of a suite."""

    time: str = "2%"
    max_margin: str = ""  # a share; empty: three times the tolerance of a case
    tolerance: tuple[CaseTolerance, ...] = ()
    alias: dict[str, str] = {}  # label now -> label before

    def tolerance_of(self, label: str, today: date) -> float:
        """The tolerance of a case, a share: the last entry that matches and has not expired, else the general one."""
        valid = [entry for entry in self.tolerance if not entry.expired(today)]
        matching = [entry.time for entry in valid if fnmatchcase(label, entry.match)]
        return parse_share([self.time, *matching][-1], "[gate] time")

    @property
    def largest_margin(self) -> float | None:
        """The widest margin with which a case may be called the same, a share; None where the table has none."""
        return parse_share(self.max_margin, "[gate] max_margin") if self.max_margin else None

    def expired(self, today: date) -> list[str]:
        """A note for each entry that has expired and is ignored."""
        return [
            f"[gate] tolerance {entry.match!r} ({entry.reason}) expired on {entry.expires}: {self.time} holds again"
            for entry in self.tolerance
            if entry.expired(today)
        ]


def read_settings(table: Mapping[str, object], where: str) -> Settings:
    """The settings of a `[gate]` table in the file `where`. Raises SuiteError that names the key."""
    try:
        settings = msgspec.convert(dict(table), Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SuiteError(f"{where}: [gate]: {error}") from None
    texts = settings.time, *(entry.time for entry in settings.tolerance)
    widest = max(texts, key=lambda text: parse_share(text, f"{where}: [gate] time"))
    if settings.max_margin and parse_share(settings.max_margin, f"{where}: [gate] max_margin") < parse_share(
        widest, ""
    ):
        problem = f"{settings.max_margin!r} is below the tolerance {widest!r}, so no case could be called the same"
        raise SuiteError(f"{where}: [gate] max_margin: {problem}; use at least {widest}")
    return settings


def suite_schema() -> dict[str, Any]:
    """The JSON Schema of a suite file with that of its `[gate]` table."""
    schema: dict[str, Any] = suite.schema()
    (table,), tables = msgspec.json.schema_components([Settings], ref_template="#/$defs/{name}")
    definitions = schema["$defs"]
    definitions["SuiteFile"]["properties"]["gate"] = table
    return schema | {"$defs": definitions | tables}


DEFAULT_SETTINGS = Settings(time=f"{100 * TOLERANCE:g}%")


class MachineNoise(msgspec.Struct, frozen=True, kw_only=True):
    """What A/A runs of this machine have shown so far, and the resolution of its timer."""

    factor: float  # standard errors between equal arms, 99th percentile; 0: fewer runs than needed
    runs: int
    resolution_s: float
    user_backends: tuple[str, ...] = ()  # of this gate: kernels of users
    user: tuple[DurationNoise, ...] = ()  # noise of users' kernels


class ChangedCases(msgspec.Struct, frozen=True, kw_only=True):
    """The choice of a gate with `--changed`; without it, every case is measured."""

    unchanged: tuple[str, ...] = ()  # label@device of the cases that were not measured
    measured: str = ""  # why the others were, for people


class GateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Base and head, and all that the verdicts depend on besides the results."""

    base: Revision
    head: Revision
    settings: Settings
    today: date  # on which tolerances expire
    noise: MachineNoise = msgspec.field(name="floor")  # stored under its first name
    seeds: dict[str, list[tuple[float, float]]]  # rms errors of (base, head) on further seeds, by case and device
    changed: ChangedCases = ChangedCases()

    @property
    def margins(self) -> Margins:
        noise = self.noise
        user = {entry.shortest_s: entry.factor for entry in noise.user if entry.factor}
        return Margins(
            factor=noise.factor, resolution_s=noise.resolution_s, user_backends=noise.user_backends, user_factors=user
        )

    def tolerance(self, label: str) -> float:
        """The tolerance of a case on the day of the gate; a share."""
        return self.settings.tolerance_of(label, self.today)

    def stored(self) -> dict[str, Any]:
        """The plain values that the manifest holds."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def of(run: Run) -> GateRecord:
    """The record of a gate run. UsageError for another run, StoreError for a record that cannot be read."""
    if not run.manifest.gate:
        raise UsageError(f"{run.path.name} is not a gate run: create one with attnbench gate")
    try:
        return msgspec.convert(run.manifest.gate, GateRecord)
    except msgspec.ValidationError as error:
        raise StoreError(f"{run.path.name}: its gate record cannot be read: {error}") from error
