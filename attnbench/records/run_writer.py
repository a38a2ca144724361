"""Writing a run directory: one writer at a time, results synced as they come, the manifest replaced atomically."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from attnbench.errors import LockedError, NotComparableError, StoreError, writing
from attnbench.records import results_file
from attnbench.records.ceilings import Ceilings
from attnbench.records.facts import within_ranges
from attnbench.records.result import Environment, Facts, Result, Sample, procedure_differences
from attnbench.records.run_directory import MANIFEST, NODE_TAG, RESULTS, Manifest, Run, read, read_manifest

LOCK, DRAFT = ".lock", "run.tmp"


class RunWriter:
    """Opens or creates a run directory and appends to it, under a lock that ends with the process.

    A run continues only on the machine and with the procedure that it was started with. `force` continues anyway, and
    marks each result with the fingerprint or node of its machine. Raises LockedError, NotComparableError or StoreError.
    """

    def __init__(self, directory: Path, manifest: Manifest, force: bool = False) -> None:
        self.directory = directory
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(directory)
        self._results = -1
        try:
            self._begin(manifest, force)
        except BaseException:
            self.close()
            raise

    def _begin(self, manifest: Manifest, force: bool) -> None:
        path = self.directory
        self._mark: Facts = {}
        if (path / MANIFEST).exists():
            before = read_manifest(path)
            if not force:
                _check_comparable(before, manifest, path)
            else:
                self._mark = machine_facts(manifest, before)
            manifest = _continued(before, manifest)
        elif foreign := sorted(item.name for item in path.iterdir() if item.name not in (LOCK, DRAFT)):
            raise StoreError(f"{path} holds {foreign[0]!r} and is not a run directory: use another --out")
        self.manifest = msgspec.structs.replace(manifest, command=anonymous(manifest.command))
        self._write_manifest()
        with writing(path / RESULTS):
            self._results = os.open(path / RESULTS, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            _repair_last_line(self._results)
            _sync_directory(path)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._results >= 0:
            os.close(self._results)
            self._results = -1
        self._lock.release()

    @property
    def run(self) -> Run:
        return read(self.directory)

    def append(self, results: Sequence[Result]) -> None:
        """Append results and sync them. On a full disk, the file is cut back to its last whole line."""
        if not results:
            return
        encoder = msgspec.json.Encoder()
        data = b"".join(encoder.encode(_as_stored(result, self._mark)) + b"\n" for result in results)
        size = os.fstat(self._results).st_size
        try:
            _write(self._results, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._results, size)
            where = f"cannot write to {self.directory / RESULTS}"
            raise StoreError(f"{where}: {error.strerror}; all earlier results are kept") from error

    def update(
        self, environments: Mapping[str, Environment], seconds: Mapping[str, float],
        nodes: Mapping[str, Facts] = {}, ceilings: Mapping[str, Ceilings] = {},
    ) -> None:  # fmt: skip
        """Add environments of arms, the seconds by phase, nodes and ceilings to the manifest."""
        before = self.manifest
        self.manifest = msgspec.structs.replace(
            before,
            environments=before.environments | {arm: _within_ranges(each) for arm, each in environments.items()},
            seconds=dict(seconds),
            nodes={**before.nodes, **nodes},
            ceilings={**before.ceilings, **ceilings},
        )
        self._write_manifest()

    def _write_manifest(self) -> None:
        path, draft = self.directory / MANIFEST, self.directory / DRAFT
        with writing(path):
            with draft.open("wb", buffering=0) as file:
                _write(file.fileno(), msgspec.json.format(msgspec.json.encode(self.manifest), indent=2))
            draft.replace(path)
            _sync_directory(self.directory)


def anonymous(text: str) -> str:
    """The text with paths relative to the working directory, and with the home directory as `~`: no user names."""
    for folder, short in ((os.getcwd(), ""), (os.path.expanduser("~"), "~/")):
        if len(folder) > 1:
            text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?:/|(?![\w.-]))", short, text)
    return text


def machine_facts(manifest: Manifest, other: Manifest) -> Facts:
    """The facts that tell results of one machine from those of another; none if it is the same."""
    if manifest.same_machine(other):
        return {}
    fingerprint = {"fingerprint": manifest.fingerprint} if manifest.fingerprint != other.fingerprint else {}
    return fingerprint | ({"node": manifest.node} if manifest.node else {})


def _as_stored(result: Result, mark: Facts) -> Result:
    """The result as it is stored: with the id of its case, without the user's paths in its texts and without facts
    outside their range.

    `mark`: facts of the machine of a forced continuation, else empty.
    """
    facts, dropped = within_ranges(result.facts)
    samples = {name: _checked(sample, dropped) for name, sample in result.samples.items()}
    if dropped:
        facts["absent"] = {**facts.get("absent", {}), **dropped}
    facts |= {name: anonymous(text) for name in ("trace", "log") if isinstance(text := facts.get(name), str)}
    facts = mark | facts
    return msgspec.structs.replace(
        result, case_id=result.case.id, reason=anonymous(result.reason), facts=facts, samples=samples
    )


def _within_ranges(environment: Environment) -> Environment:
    """The environment without facts outside their range; the fact `absent` says why, as in a result."""
    facts, dropped = within_ranges(environment.facts)
    if dropped:
        facts["absent"] = dropped
    return msgspec.structs.replace(environment, facts=facts)


def _checked(sample: Sample, dropped: dict[str, str]) -> Sample:
    """The sample without facts of its blocks that are outside their range; why goes to `dropped`."""
    blocks = []
    for block in sample.blocks:
        facts, reasons = within_ranges(block.facts)
        dropped |= reasons
        blocks.append(msgspec.structs.replace(block, facts=facts) if reasons else block)
    return msgspec.structs.replace(sample, blocks=tuple(blocks))


def _continued(before: Manifest, now: Manifest) -> Manifest:
    """The manifest of a continued run: the new one, with the start, machine and commands of the former."""
    return msgspec.structs.replace(
        now,
        command="\n".join(
            dict.fromkeys([*before.command.splitlines(), *now.command.splitlines()])
        ),  # a resume has none
        created_at=before.created_at,
        procedures=before.procedures | now.procedures,
        arms=tuple({arm.id: arm for arm in (*before.arms, *now.arms)}.values()),
        environments=before.environments | now.environments,
        nodes=before.nodes | now.nodes,
        machine=before.machine,
        fingerprint=before.fingerprint,
        tags=_continued_tags(before, now),
    )


def _continued_tags(before: Manifest, now: Manifest) -> dict[str, str]:
    """The tags of both; the node is that of the machine which began."""
    tags = before.tags | now.tags
    if before.same_machine(now):
        return tags
    return {name: value for name, value in tags.items() if name != NODE_TAG or before.node} | (
        {NODE_TAG: before.node} if before.node else {}
    )


def _check_comparable(before: Manifest, now: Manifest, path: Path) -> None:
    """Raise NotComparableError with every difference of machine and procedure."""
    changed = procedure_differences(before.procedures, now.procedures)
    if not before.same_machine(now):
        changed += [f"machine: {before.machine_id} then, {now.machine_id} now"]
        changed += [
            f"{name}: {before.machine.get(name)} then, {value} now"
            for name, value in now.machine.items()
            if name in ("cpu", "cores", "isa", "memory_gib", "gpus", "system") and before.machine.get(name) != value
        ]
    if changed:
        raise NotComparableError(f"{path} was started differently ({'; '.join(changed)}); --force continues anyway")


def _lock(directory: Path) -> FileLock:
    file = directory / LOCK
    # Without a lock of the system a killed writer would leave the directory locked.
    lock = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        holder = file.read_text(encoding="utf-8").strip() or "unknown"
        raise LockedError(f"{directory} is being written to by process {holder}") from None
    try:
        file.write_text(str(os.getpid()), encoding="utf-8")
    except OSError:
        lock.release()
        raise
    return lock


def is_being_written(directory: Path) -> bool:
    """Whether a process holds the lock of the run directory; false where that cannot be known."""
    file = directory / LOCK
    try:
        if file.is_file():
            with FileLock(file, timeout=0, fallback_to_soft=False):
                return False
    except OSError as error:
        return isinstance(error, Timeout)
    return False


def _repair_last_line(descriptor: int) -> None:
    """Remove an incomplete last line, which a killed process leaves; end a complete one with a line break."""
    end = start = os.lseek(descriptor, 0, os.SEEK_END)
    tail = b""
    while start and b"\n" not in tail:
        start = max(0, start - max(65536, len(tail)))
        tail = os.pread(descriptor, end - start, start)
    rest = tail.rpartition(b"\n")[2]
    if rest and results_file.decoded(rest):
        _write(descriptor, b"\n")
    elif rest:
        os.ftruncate(descriptor, end - len(rest))


def _write(descriptor: int, data: bytes) -> None:
    """Write and sync all data. A buffered file would retry a refused write when it is closed."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
