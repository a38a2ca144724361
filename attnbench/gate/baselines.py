"""Runs by name, one for each machine: plain files under results/reference/NAME/FINGERPRINT, fit for git."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from attnbench import frame, store
from attnbench.errors import NotComparableError, StoreError, UsageError
from attnbench.result import Status
from attnbench.store import Run

FOLDER = "reference"
PROVENANCE = "baseline.json"
LAUNCHES_LEAST = 3  # fewer say nothing of what launches differ by


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a baseline comes from."""

    name: str
    saved_at: str  # UTC, ISO 8601
    run: str
    measured_at: str
    fingerprint: str
    commit: str = ""
    dirty: bool = False
    replaces: str = ""  # the run that it took the place of


def root() -> Path:
    """Where baselines lie."""
    return store.results_root() / FOLDER


def save(name: str, run: Run, *, replace: bool = False, force: bool = False) -> Path:
    """Keep a run under a name. StoreError where there is one already, UsageError for one that is no basis."""
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"baseline {name!r}: a plain name, without slashes")
    if (objection := objections(run)) and not force:
        raise UsageError(f"{run.path.name} is no basis: {objection}; --force keeps it all the same")
    place = root() / name / run.manifest.fingerprint
    before = _provenance(place)
    if before and not replace:
        raise StoreError(f"{place} holds {before.run} of {before.measured_at}: promote replaces it")
    commit = run.manifest.commit or {}
    kept = Provenance(
        name=name, saved_at=datetime.now(UTC).isoformat(timespec="seconds"), run=run.path.name,
        measured_at=run.manifest.created_at, fingerprint=run.manifest.fingerprint,
        commit=str(commit.get("commit", "")), dirty=bool(commit.get("dirty")), replaces=before.run if before else "",
    )  # fmt: skip
    draft = place.with_name(f".{place.name}.new")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for file in (store.MANIFEST, store.RESULTS):
            shutil.copyfile(run.path / file, draft / file)
        (draft / PROVENANCE).write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    except OSError as error:
        raise StoreError(f"cannot write to {place}: {error.strerror}") from error
    return place


def objections(run: Run) -> str:
    """Why a run is no basis for later ones: incomplete, failed, noisy, too few launches; empty if it is one."""
    rows = frame.rows(run.results)
    measured = [row for row in rows if row["time_s"] is not None]
    if not measured:
        return "nothing was measured"
    failed = [row for row in rows if Status(row["status"]).failed]
    cut = [row for row in rows if row["status"] == Status.SKIPPED]
    noisy = [row for row in measured if row["noisy"]]
    few = min(row["launches"] for row in measured)
    said = [f"{failed[0]['label']} {failed[0]['status']}"] if failed else []
    said += [f"{len(cut)} cases were skipped ({cut[0]['reason']})"] if cut else []
    said += [f"{len(noisy)} of {len(measured)} cases are noisy"] if noisy else []
    said += (
        [f"{few} launch{'es' if few > 1 else ''}, {LAUNCHES_LEAST} are needed: attnbench run --launches 6"]
        if few < LAUNCHES_LEAST
        else []
    )
    return "; ".join(said)


def every() -> Iterator[tuple[Path, Provenance]]:
    """All that are kept, by name and machine."""
    for path in sorted(root().glob(f"*/*/{PROVENANCE}")):
        if found := _provenance(path.parent):
            yield path.parent, found


def find(name: str, fingerprint: str) -> Run:
    """The baseline of this name and machine. NotComparableError, with what there is, for none."""
    place = root() / name / fingerprint
    if _provenance(place):
        return store.read(place)
    there = [f"{found.name} of {found.fingerprint}" for _, found in every()]
    has = f"there are {', '.join(there)}" if there else "attnbench baseline save makes one"
    raise NotComparableError(f"no baseline {name!r} of this machine ({fingerprint}): {has}")


def remove(name: str, fingerprint: str) -> Path:
    """Delete one. NotComparableError where there is none."""
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
