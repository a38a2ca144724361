"""The highest measured rates of a device, as `attnbench calibrate` measures them.

Ceilings are stored in the user's cache by machine, device and torch version, and copied into the manifest of each run.
"""

import re
from pathlib import Path

import msgspec

from attnbench.attention import user_folders
from attnbench.errors import StoreError, writing
from attnbench.records.result import Facts, Record
from attnbench.units import percent

VERSION = 1


class Rate(Record, frozen=True, kw_only=True):
    """FLOP/s of matrix products. `burst`: the fastest short block after a pause; `sustained`: over one second."""

    burst: float
    sustained: float
    size: int  # n of the n x n x n product


class Point(Record, frozen=True, kw_only=True):
    """Bandwidth over one working set."""

    bytes: int
    rate: float  # B/s


MAX_SHARE_OF_CORES, MAX_SHARE_OF_MACHINE = 0.05, 0.25  # for other processes, without a doubt about a measurement


class ForeignLoad(Record, frozen=True, kw_only=True):
    """The share of CPU time that other processes used during a measurement."""

    cores: float  # of the cores that the measurement was pinned to; or that its threads waited for, if that is more
    machine: float | None = None  # of all cores: they share caches and memory; None for a GPU, which has its own

    @property
    def excess(self) -> float:
        """How many times the load exceeds what is accepted; above 1 it disturbs."""
        return max(self.cores / MAX_SHARE_OF_CORES, (self.machine or 0.0) / MAX_SHARE_OF_MACHINE)

    @property
    def text(self) -> str:
        """The share that exceeds its limit most."""
        here = self.cores / MAX_SHARE_OF_CORES == self.excess
        return f"{percent(self.cores)} of its cores" if here else f"{percent(self.machine)} of all cores"


class Ceilings(Record, frozen=True, kw_only=True):
    """Everything that `calibrate` measures on one device."""

    version: int  # stored even at its default
    device: str  # as in `--device`
    name: str  # of the CPU or GPU
    measured_at: str  # UTC, ISO 8601
    seconds: float  # duration of the calibration
    torch: str
    facts: Facts = {}  # threads, instruction set, clock, caches
    matmul: dict[str, Rate] = {}  # by dtype
    refused: dict[str, str] = {}  # what could not be measured, and why
    bandwidth: dict[str, tuple[Point, ...]] = {}  # copy, read, triad; rising working sets
    exp_per_s: float | None = None
    exp_derived: bool = False  # from the data sheet's rate and the clock
    launch_s: float | None = None  # of the smallest operation
    timer_s: float | None = None
    foreign_load: dict[str, ForeignLoad] = {}  # by part of the calibration; empty where it was not read

    @property
    def disturbed(self) -> dict[str, ForeignLoad]:
        """The parts during which other processes used more than a calibration accepts."""
        return {part: load for part, load in self.foreign_load.items() if load.excess > 1}

    @property
    def disturbance(self) -> str:
        """What was disturbed, by which share of the CPU time; empty if nothing was."""
        parts = ", ".join(f"{part}: {load.text}" for part, load in self.disturbed.items())
        return f"disturbed by other processes ({parts}), rates may be too low" if parts else ""

    @property
    def memory(self) -> float | None:
        """B/s of main memory: the fastest kind of traffic over the largest working set; None if not measured."""
        return max((points[-1].rate for points in self.bandwidth.values() if points), default=None)

    def within(self, working_set: int) -> float | None:
        """B/s over a working set of so many bytes: the fastest kind over the smallest measured set that is as large."""
        rates = [
            next((point.rate for point in points if point.bytes >= working_set), points[-1].rate)
            for points in self.bandwidth.values()
            if points
        ]
        return max(rates, default=None)


def folder(fingerprint: str) -> Path:
    """The directory with the calibration of a machine. StoreError where no home directory is known."""
    return user_folders.cache() / "calibration" / fingerprint


def _file(fingerprint: str, device: str, torch: str) -> Path:
    device = re.sub(r":hardware=[\w.-]+", "", device)  # a class of a cluster is no other device
    return folder(fingerprint) / (re.sub(r"[^\w.=+-]", "_", f"{device}-torch{torch}") + ".json")


def save(fingerprint: str, ceilings: Ceilings, force: bool = False) -> Path | None:
    """Store ceilings, in place of older ones of the same device and torch version; return the file.

    None, with nothing stored, where disturbed ones would replace undisturbed ones; `force` replaces these too.
    """
    path = _file(fingerprint, ceilings.device, ceilings.torch)
    if ceilings.disturbed and not force:
        stored = load(fingerprint, ceilings.device, ceilings.torch)
        if stored and not stored.disturbed:
            return None
    draft = path.with_suffix(".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(ceilings), indent=2))
        draft.replace(path)
    return path


def load(fingerprint: str, device: str, torch: str) -> Ceilings | None:
    """The stored ceilings; None if the device was not calibrated, or in another version of this format."""
    try:
        stored = msgspec.json.decode(_file(fingerprint, device, torch).read_bytes(), type=Ceilings)
    except (OSError, StoreError, msgspec.MsgspecError):
        return None
    return msgspec.structs.replace(stored, device=device)
