"""Run directories: a manifest, `run.json`, and append-only `results.jsonl`, one Result a line.

The version of the format is read before anything else is decoded. docs/formats.md documents every key.
"""

import os
import re
import shlex
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from attnbench.errors import SchemaError, StoreError
from attnbench.records import results_file
from attnbench.records.arm import Arm, parse_device
from attnbench.records.case import Case
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Cause, Environment, Facts, Key, Procedure, Record, Result, Status
from attnbench.units import counted

VERSION = 1
OLDEST = 1  # version that is still read
MANIFEST, RESULTS = "run.json", "results.jsonl"
NODE_TAG = "node"  # of a run on a single machine: its name
REPLAY_TAG = "replay"  # of a run that measures steps of a trace: which replay it is


class Manifest(Record, frozen=True, kw_only=True):
    """The content of `run.json`: everything about a run except its results."""

    schema_version: int  # stored even at its default: it is read before the rest
    attnbench: str
    created_at: str  # UTC, ISO 8601
    suite: str
    command: str = ""  # as typed, paths relative
    request: Facts = {}  # the options of the sweep, for a resume
    procedures: dict[str, Procedure] = {}  # by kind of device
    arms: tuple[Arm, ...] = ()
    environments: dict[str, Environment] = {}  # by arm id
    machine: Facts = {}
    nodes: dict[str, Facts] = {}  # of a cluster, by name: hardware, machine, packages, noise, why it was drained
    fingerprint: str = ""  # of the stable facts of the machine
    ceilings: dict[str, Ceilings] = {}  # by device, as measured by `calibrate` before the run
    commit: Facts | None = None  # of the working directory
    planned: int = 0  # number of cases, with refusals and impossible combinations
    seconds: dict[str, float] = {}  # of the latest part of the run, by phase, and in total
    impossible: tuple[tuple[str, str], ...] = ()  # combinations that are no problem, and why
    tags: dict[str, str] = {}
    gate: Facts = {}  # of a gate: its sides, stages and margins, from which the results are judged again

    @property
    def machine_name(self) -> str:
        """The GPUs, or the CPU."""
        return ", ".join(self.machine.get("gpus") or [str(self.machine.get("cpu"))])

    @property
    def node(self) -> str:
        """The tag that names the machine among those of a fleet; empty: none."""
        return self.tags.get(NODE_TAG, "")

    @property
    def machine_id(self) -> str:
        """What tells its machine from others: the fingerprint, with the tag `node` where it has one."""
        return "/".join(filter(None, (self.fingerprint, self.node)))

    def same_machine(self, other: "Manifest") -> bool:
        """Whether both are of one machine: fingerprints are equal, and so are the tags `node` where both have one."""
        return self.fingerprint == other.fingerprint and (not (self.node and other.node) or self.node == other.node)

    @property
    def is_merged(self) -> bool:
        """Whether `merge` made it of several runs. Its request is that of the first, its command joins theirs."""
        return " && " in self.command

    @property
    def on_cluster(self) -> bool:
        """Whether a cluster measured it: its nodes have classes of hardware."""
        return any(facts.get("hardware") for facts in self.nodes.values())


def problem_options(manifest: Manifest) -> list[str]:
    """The options that choose the problems and arms of a run beside its suites, as they are typed."""
    request = manifest.request
    options = [part for key, value in request.get("axes", {}).items() for part in ("--set", f"{key}={value}")]
    for flag, name in (("-b", "backend"), ("--device", "device")):
        options += [flag, request[name]] if request.get(name) else []
    options += [part for text in request.get("backend_python", ()) for part in ("--backend-python", text)]
    return options


def cluster_options(manifest: Manifest, device: str) -> list[str]:
    """The options that measure again where a run on a cluster measured this device; empty for a run of one machine."""
    hardware = parse_device(device).hardware
    options = engine_options(manifest)
    return [*options, "--hardware", hardware] if options and hardware else options


def engine_options(manifest: Manifest) -> list[str]:
    """The options that name the cluster of a run; empty for a run of one machine."""
    if not manifest.on_cluster:
        return []
    address = re.search(r"--address[ =](\S+)", manifest.command)
    return ["--engine", "ray", *(("--address", address[1]) if address else ())]


def with_directory(words: Sequence[str], path: Path) -> str:
    """A command with the run directory as --out, unless it names one."""
    named = any(word == "-o" or word.startswith("--out") for word in words)
    return shlex.join(words if named else [*words, "--out", str(path)])


def continuing(manifest: Manifest, path: Path, name: str = "") -> str:
    """The command that measures what a stopped run lacks; empty for a merged one, which none continues.

    `name`: by which `run --resume` finds it.
    """
    if manifest.is_merged:
        return ""
    if REPLAY_TAG in manifest.tags:
        first = manifest.command.partition("\n")[0]  # parts of a continued run add theirs
        return with_directory(shlex.split(first), path)
    return shlex.join(["attnbench", "run", "--resume", name or str(path), *engine_options(manifest)])


class Run(msgspec.Struct, kw_only=True):
    """A stored run."""

    path: Path
    manifest: Manifest
    results: Sequence[Result]
    skipped_lines: int = 0  # lines that hold no result: cut off, or foreign
    partial: bool = False  # whether the results are a selection of those that are stored

    @property
    def unmeasured(self) -> int:
        """How many planned cases lack a result in some restart, since the run was stopped or goes on; 0 for a gate."""
        if self.partial or self.manifest.gate:
            return 0
        heads, stored = self._heads, self._stored()
        of_kind = {kind: procedure.restarts for kind, procedure in self.manifest.procedures.items()}
        short = 0  # cases that were timed, but not in every restart
        for results in stored.values():
            first = results[0]
            # The head of a result has no procedure.
            restarts = of_kind.get(first.arm.parsed_device.kind, 1) if heads else first.procedure.restarts
            short += len(results) < restarts and any(result.status is Status.OK for result in results)
        return self._without_result(stored) + short

    @property
    def left(self) -> str:
        """`6 of 12 cases were not measured`: those without any result, since the run was stopped or goes on."""
        count = 0 if self.partial or self.manifest.gate else self._without_result(self._stored())
        verb = "was" if count == 1 else "were"
        return f"{count} of {counted(self.manifest.planned, 'case')} {verb} not measured" if count else ""

    @property
    def _heads(self) -> Sequence[Result] | None:
        return self.results.heads if isinstance(self.results, results_file.Lines) else None

    def _stored(self) -> dict[tuple[Case, str], list[Result]]:
        """The results of each case, by its arm too."""
        stored: dict[tuple[Case, str], list[Result]] = {}
        for result in self._heads or self.results:
            stored.setdefault((result.case, result.arm.id), []).append(result)
        return stored

    def _without_result(self, stored: Collection[object]) -> int:
        return max(self.manifest.planned - len(self.manifest.impossible) - len(stored), 0)


def read(directory: Path) -> Run:
    """Read the run in a directory. Lines that hold no result are counted.

    Raises SchemaError for a format that this version does not read, StoreError for a directory without a run.
    """
    manifest = read_manifest(directory)
    results, skipped = results_file.read(directory / RESULTS)
    return Run(path=directory, manifest=manifest, results=results, skipped_lines=skipped)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a run; raises as `read` does."""
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{directory} is not a run directory: {error.strerror}: {MANIFEST}") from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version > VERSION:
            raise SchemaError(
                f"{path}: format {version}, written by a newer attnbench; this one reads up to {VERSION}: upgrade it"
            )
        if version < OLDEST:
            raise SchemaError(
                f"{path}: format {version}, written by an older attnbench; this one reads {OLDEST} to {VERSION}: "
                "measure again, or read it with the version that wrote it"
            )
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


class _Versioned(msgspec.Struct):
    schema_version: int


def done_keys(run: Run, retry_failed: bool) -> frozenset[Key]:
    """The keys that a resume does not measure again.

    It measures what the budget cut and, with `retry_failed`, what failed and what was skipped after such a failure.
    """

    def repeated(result: Result) -> bool:
        if result.status is Status.SKIPPED:
            return result.cause is Cause.BUDGET or (retry_failed and result.cause is Cause.NO_LARGER)
        return retry_failed and (result.status.failed or result.status is Status.OOM)

    return frozenset(result.key for result in run.results if not repeated(result))


def stored_keys(path: Path, retry_failed: bool) -> frozenset[Key]:
    """The keys that a resume in this directory does not measure again; none where it holds no run."""
    return done_keys(read(path), retry_failed) if (path / MANIFEST).is_file() else frozenset()


def results_root() -> Path:
    """The parent directory of runs: ATTNBENCH_RESULTS, or ./results."""
    return Path(os.environ.get("ATTNBENCH_RESULTS") or "results")


def new_directory(root: Path, suite: str, device: str, now: datetime) -> Path:
    """Make a directory such as `20261121T001500Z-quick-cpu`. A second run in the same second gets a suffix."""
    kind, _, index = device.partition(":")
    words = f"{suite}-{kind}{index if kind == 'cuda' else ''}"
    stem = now.astimezone(UTC).strftime(_STAMP) + "-" + re.sub(r"[^\w.+-]", "_", words)[:100]
    for count in range(1, 1000):
        path = root / (stem if count == 1 else f"{stem}.{count}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(f"cannot write to {root}: {error.strerror}") from error
        return path
    raise StoreError(f"{root} holds a thousand runs of this second: use another --out")


_STAMP = "%Y%m%dT%H%M%SZ"


def stored_in(folder: Path) -> list[Path]:
    """The run directories in a folder, the oldest first."""
    return sorted((path.parent for path in folder.glob(f"*/{MANIFEST}")), key=_started) if folder.is_dir() else []


def holds_runs(text: str, root: Path) -> bool:
    """Whether the text is a folder of runs, and neither a run directory nor the name of one under the root."""
    return Path(text).is_dir() and not any((path / MANIFEST).is_file() for path in (Path(text), root / text))


def resolve_all(names: Sequence[str], root: Path) -> list[Path]:
    """The run directories that the names stand for, as `resolve` finds them; of a folder of runs all of them.

    Raises StoreError for a name without a run.
    """
    runs: dict[Path, None] = {}
    for name in names:
        of_name = stored_in(Path(name)) if holds_runs(name, root) else [resolve(name, root)]
        if not of_name:
            raise StoreError(_holds_none(name, f"a run directory, or a folder of runs such as {root}/"))
        runs |= dict.fromkeys(of_name)
    return list(runs)


def resolve(text: str, root: Path) -> Path:
    """The run directory that `last`, a name under the root, or a path stands for. Raises StoreError for none."""
    runs = stored_in(root)
    if text == "last":
        if not runs:
            raise StoreError(f"no run in {root}/ yet: attnbench run creates one")
        return runs[-1]
    for path in (Path(text), root / text):
        if (path / MANIFEST).is_file():
            return path
    newest = ", ".join(path.name for path in runs[-3:]) or "none"
    if Path(text).is_dir():
        if inside := stored_in(Path(text)):
            raise StoreError(f"{text} is a folder of runs: give one of them, such as {inside[-1]}")
        raise StoreError(_holds_none(text, f"a run directory, or a name in {root}/ (newest there: {newest})"))
    raise StoreError(f"no run {text!r}: neither a run directory nor a name in {root}/ (newest there: {newest})")


def _holds_none(folder: str, instead: str) -> str:
    return f"{folder} holds no run: give {instead}"


def name_of(directory: Path, root: Path) -> str:
    """What `resolve` takes for a run directory: `last` if it is the newest under the root, else its path."""
    runs = stored_in(root)
    return "last" if runs and runs[-1].resolve() == directory.resolve() else str(directory)


def _started(directory: Path) -> tuple[str, str]:
    """A key that sorts runs by time: the stamp in the name, else the modification time of the manifest."""
    if match := re.match(r"\d{8}T\d{6}Z(?=-)", directory.name):
        return match[0], directory.name
    return datetime.fromtimestamp((directory / MANIFEST).stat().st_mtime, UTC).strftime(_STAMP), directory.name
