"""What a gate stores, the `[gate]` table of a suite included: with the results, the verdicts follow from it again."""

from collections.abc import Mapping
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from attnbench import suite
from attnbench.analysis.noise_floor import DurationNoise
from attnbench.errors import StoreError, SuiteError, UsageError
from attnbench.gate.rule import MAX_MARGIN, TOLERANCE, Margins
from attnbench.gate.trees import Revision
from attnbench.records.run_directory import Run
from attnbench.suite import files
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
    max_margin: str = ""  # a share; empty: MAX_MARGIN times the tolerance of a case
    tolerance: tuple[CaseTolerance, ...] = ()
    alias: dict[str, str] = {}  # label now -> label before

    def tolerance_of(self, label: str, today: date) -> float:
        """The tolerance of a case, a share: the last entry that matches and has not expired, else the general one."""
        return parse_share([self.time, *self._own_tolerances(label, today)][-1], "[gate] time")

    def largest_margin(self, label: str, today: date) -> float | None:
        """The widest margin with which a case may be called the same, a share; None where the table has none."""
        if not self.max_margin:
            return None
        general = parse_share(self.max_margin, "[gate] max_margin")
        has_own = self._own_tolerances(label, today)
        return max(general, MAX_MARGIN * self.tolerance_of(label, today)) if has_own else general

    def _own_tolerances(self, label: str, today: date) -> list[str]:
        """The tolerances of all entries that match the case and have not expired."""
        valid = [entry for entry in self.tolerance if not entry.expired(today)]
        return [entry.time for entry in valid if fnmatchcase(label, entry.match)]

    def expired(self, today: date) -> list[str]:
        """A note for each entry that has expired and is ignored."""
        return [
            f"[gate] tolerance {entry.match!r} ({entry.reason}) expired on {entry.expires}: {self.time} holds again"
            for entry in self.tolerance
            if entry.expired(today)
        ]


def read_settings(table: Mapping[str, object], where: str) -> Settings:
    """The settings of a `[gate]` table in the file `where`. Raises UsageError that names the key."""
    files.refuse_unknown(table, Settings, where, "[gate] ")
    entries = table.get("tolerance", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SuiteError(f"{where}: [gate] tolerance: write [[gate.tolerance]], once for each tolerance")
    for index, entry in enumerate(entries):
        files.refuse_unknown(entry, CaseTolerance, where, f"[gate] tolerance[{index}].")
    settings = files.convert(table, Settings, f"{where}: [gate] ")
    for index, entry in enumerate(settings.tolerance):
        parse_share(entry.time, f"{where}: [gate] tolerance[{index}].time")
    general, name = parse_share(settings.time, f"{where}: [gate] time"), f"{where}: [gate] max_margin"
    # Noise makes every margin larger than the tolerance.
    if settings.max_margin and parse_share(settings.max_margin, name) <= general:
        example = f"{200 * general:g}%"
        raise SuiteError(f"{name}: {settings.max_margin!r} must be above the tolerance {settings.time}, as {example}")
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

    def largest_margin(self, label: str) -> float | None:
        """The widest margin with which a case may be called the same on the day of the gate."""
        return self.settings.largest_margin(label, self.today)

    def stored(self) -> dict[str, Any]:
        """The plain values that the manifest holds."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def of(run: Run) -> GateRecord:
    """The record of a gate run. UsageError for another run, StoreError for a record that cannot be read."""
    if not run.manifest.gate:
        raise UsageError(f"{run.path.name} is not a gate run: judge it against a stored run with --baseline RUN")
    try:
        return msgspec.convert(run.manifest.gate, GateRecord)
    except msgspec.ValidationError as error:
        raise StoreError(f"{run.path.name}: its gate record cannot be read: {error}") from error
