"""The dispatch table that `attnbench recommend -o` writes and `attnbench.dispatch` reads."""

from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from attnbench.analysis.preferences import AxisPreference
from attnbench.attention.problem import Problem
from attnbench.errors import ProblemError, SchemaError, StoreError
from attnbench.records.run_directory import Manifest

VERSION = 2
VALID_S = 90 * 86400.0  # by default: libraries are released more often than drivers and machines change
WRITE = "attnbench recommend RUN -o FILE"


class TableRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the records of a table. Defaults are written out, unlike those of stored results."""


class Ranked(TableRecord, frozen=True, kw_only=True):
    """A backend that is right and was measured on a problem."""

    backend: str
    over: float  # its time over that of the fastest, paired by round where they share rounds


class Choice(TableRecord, frozen=True, kw_only=True):
    """The backend for one shape."""

    problem: str  # as text
    device: str
    mode: str
    shape: dict[str, str | int | float | bool | None]  # the fields of the problem that vary over the run
    backend: str
    time_s: float
    tied: tuple[str, ...]  # other backends that are tied with it
    second: str  # the next slower backend; empty: none
    gain: float | None  # time of `second` over that of `backend`, paired by round where they share rounds
    axes: Problem
    # The fastest first, without arms that have settings of their own, and without backends that failed in a case of
    # this kind of device, dtype, mask and mode.
    ranking: tuple[Ranked, ...]


class Regret(TableRecord, frozen=True, kw_only=True):
    """The cost of using one backend for everything."""

    backend: str
    device: str
    runs: int  # problems that it can run
    of: int
    mean: float  # geometric mean of its time over the minimum
    worst: float
    worst_at: str


class DeviceOrigin(TableRecord, frozen=True, kw_only=True):
    """One device of the run, and the software on it."""

    model: str  # the name of the CPU or GPU
    threads: int | None = None  # of a CPU
    isa: str = ""  # of a CPU, as torch names it
    versions: dict[str, str] = {}  # of packages, and of the driver of a GPU


class Origin(TableRecord, frozen=True, kw_only=True):
    """Where and when a table was measured."""

    attnbench: str
    created_at: str  # of the run, UTC, ISO 8601
    expires: str  # UTC, ISO 8601
    fingerprint: str  # of the machine; empty: of several
    devices: dict[str, DeviceOrigin]


class Dispatch(TableRecord, frozen=True, kw_only=True):
    """The dispatch table and the regrets of fixed choices."""

    version: int = VERSION
    origin: Origin | None = None  # None: of results without a run directory
    choices: tuple[Choice, ...]
    regrets: tuple[Regret, ...]
    preferences: tuple[AxisPreference, ...] = ()  # of dtypes and devices

    @property
    def by_device(self) -> dict[str, list[Regret]]:
        """Regrets of each device, the smallest first; backends that run everything come before the others."""
        devices: dict[str, list[Regret]] = {}
        for regret in sorted(self.regrets, key=lambda regret: (-regret.runs, regret.mean)):
            devices.setdefault(regret.device, []).append(regret)
        return devices


def origin(manifest: Manifest, valid_s: float = VALID_S) -> Origin:
    """The origin of a table of this run, valid for so many seconds from the start of the run."""
    expires = datetime.fromisoformat(manifest.created_at) + timedelta(seconds=valid_s)
    devices: dict[str, DeviceOrigin] = {}
    for arm in manifest.arms:
        if (environment := manifest.environments.get(arm.id)) is None:
            continue
        facts, before = environment.facts, devices.get(arm.device, DeviceOrigin(model=environment.device))
        driver = {"driver": str(facts["driver"])} if facts.get("driver") else {}
        devices[arm.device] = DeviceOrigin(
            model=environment.device, threads=facts.get("threads"), isa=str(facts.get("isa", "")),
            versions={**before.versions, **environment.packages, **driver},
        )  # fmt: skip
    return Origin(
        attnbench=manifest.attnbench, created_at=manifest.created_at, expires=expires.isoformat(),
        fingerprint=_fingerprint(manifest), devices=devices,
    )  # fmt: skip


def _fingerprint(manifest: Manifest) -> str:
    """That of the machine; of the nodes of a cluster if all have the same."""
    of_nodes = {str(facts.get("fingerprint", "")) for facts in manifest.nodes.values()}
    if len(of_nodes) > 1:
        return ""
    return next(iter(of_nodes), manifest.fingerprint)


class _Versioned(msgspec.Struct):
    version: int


def read(path: Path) -> Dispatch:
    """Read a table. Raises SchemaError for another format, StoreError for a file that is no table."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; {WRITE} writes a dispatch table") from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            do = "upgrade attnbench" if version > VERSION else f"write it again with {WRITE}"
            raise SchemaError(f"{path}: version {version} of the dispatch table; this attnbench reads {VERSION}: {do}")
        table = msgspec.json.decode(data, type=Dispatch)
        for name in ("created_at", "expires") if table.origin else ():
            _check_time(path, name, getattr(table.origin, name))
    except (msgspec.DecodeError, ProblemError) as error:
        raise StoreError(f"{path} is not a dispatch table: {error}; {WRITE} writes one") from error
    return table


def _check_time(path: Path, name: str, text: str) -> None:
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise StoreError(f"{path}: origin.{name}: {text!r} is not a time with its zone, such as 2026-11-30T04:00:00Z")
