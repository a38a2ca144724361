"""Baselines: runs by name and machine, in plain files under results/reference/NAME/FINGERPRINT that fit into git."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from attnbench.analysis.rows import rows_of
from attnbench.errors import NotComparableError, StoreError, UsageError, writing
from attnbench.records import run_directory
from attnbench.records.result import Status
from attnbench.records.run_directory import Run
from attnbench.units import counted

FOLDER = "reference"
PROVENANCE = "baseline.json"
MIN_RESTARTS = 3  # with fewer the spread between restarts is not known


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a baseline comes from."""

    name: str
    saved_at: str  # UTC, ISO 8601
    run: str
    measured_at: str
    fingerprint: str
    commit: str = ""
    dirty: bool = False
    replaces: str = ""  # the previous run of this baseline


def root() -> Path:
    """The folder of all baselines."""
    return run_directory.results_root() / FOLDER


def save(name: str, run: Run, *, replace: bool = False, force: bool = False) -> Path:
    """Store a run as the baseline `name` of its machine.

    Raises StoreError where there is one already, UsageError for a run that is not fit (`objections`).
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"baseline {name!r}: a plain name, without slashes")
    if (objection := objections(run)) and not force:
        raise UsageError(f"{run.path.name} is not fit as a baseline: {objection}; --force saves it anyway")
    place = root() / name / run.manifest.fingerprint
    before = _provenance(place)
    if before and not replace:
        hint = "replace it with attnbench baseline promote"
        raise StoreError(f"{place} holds {before.run} of {before.measured_at}: {hint}")
    commit = run.manifest.commit or {}
    provenance = Provenance(
        name=name, saved_at=datetime.now(UTC).isoformat(timespec="seconds"), run=run.path.name,
        measured_at=run.manifest.created_at, fingerprint=run.manifest.fingerprint,
        commit=str(commit.get("commit", "")), dirty=bool(commit.get("dirty")), replaces=before.run if before else "",
    )  # fmt: skip
    draft = place.with_name(f".{place.name}.new")
    with writing(place):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for file in (run_directory.MANIFEST, run_directory.RESULTS):
            shutil.copyfile(run.path / file, draft / file)
        (draft / PROVENANCE).write_bytes(msgspec.json.format(msgspec.json.encode(provenance), indent=2) + b"\n")
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    return place


def objections(run: Run) -> str:
    """Why a run is not fit as a baseline: incomplete, failed, noisy, or too few restarts; empty if it is fit."""
    rows = rows_of(run.results)
    measured = [row for row in rows if row.time_s is not None]
    if not measured:
        return "nothing was measured"
    failed = [row for row in rows if row.status.failed]
    cut = [row for row in rows if row.status is Status.SKIPPED]
    noisy = [row for row in measured if row.noisy]
    few = min(row.restarts for row in measured)
    reasons = [f"{failed[0].label} {failed[0].status}"] if failed else []
    if unmeasured := run.unmeasured:
        reasons.append(f"{unmeasured} of {counted(run.manifest.planned, 'case')} not measured")
    reasons += [f"{counted(len(cut), 'case')} skipped ({cut[0].reason})"] if cut else []
    reasons += [f"{len(noisy)} of {len(measured)} cases are noisy"] if noisy else []
    if few < MIN_RESTARTS:
        reasons.append(f"{counted(few, 'restart')}, {MIN_RESTARTS} are needed: attnbench run --restarts 6")
    return "; ".join(reasons)


def every() -> Iterator[tuple[Path, Provenance]]:
    """The folder and provenance of every baseline, by name and machine."""
    for path in sorted(root().glob(f"*/*/{PROVENANCE}")):
        if provenance := _provenance(path.parent):
            yield path.parent, provenance


def find(name: str, fingerprint: str) -> Run:
    """The baseline of this name and machine. NotComparableError, with all that exist, where there is none."""
    place = root() / name / fingerprint
    if _provenance(place):
        return run_directory.read(place)
    names = [f"{baseline.name} of {baseline.fingerprint}" for _, baseline in every()]
    hint = f"there are {', '.join(names)}" if names else "create one with attnbench baseline save"
    raise NotComparableError(f"no baseline {name!r} of this machine ({fingerprint}): {hint}")


def remove(name: str, fingerprint: str) -> Path:
    """Delete a baseline and return its folder. NotComparableError where there is none."""
    path = find(name, fingerprint).path
    shutil.rmtree(path)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    return path


def _provenance(place: Path) -> Provenance | None:
    try:
        return msgspec.json.decode((place / PROVENANCE).read_bytes(), type=Provenance)
    except (OSError, msgspec.MsgspecError):
        return None
