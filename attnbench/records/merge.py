"""Several runs as one: shards of a sweep, or the same sweep on several machines."""

from collections.abc import Sequence, Set
from pathlib import Path

import msgspec

from attnbench.errors import StoreError
from attnbench.records import run_directory
from attnbench.records.result import Key, Result
from attnbench.records.run_directory import Manifest, Run
from attnbench.records.run_writer import RunWriter


def merge(runs: Sequence[Run], directory: Path) -> list[str]:
    """Write one run with the results of all; return the conflicts.

    A conflict is a (case, arm, restart) in several runs, of which the first is written. A result from another machine
    than that of the first run is marked with its fingerprint. Raises StoreError if the directory holds a run already.
    """
    if (directory / run_directory.MANIFEST).exists():
        raise StoreError(f"{directory} holds a run already: use another --out")
    merged: dict[Key, Result] = {}
    sources: dict[Key, str] = {}  # the name of the run
    conflicts = []
    for run in runs:
        foreign = run.manifest.fingerprint != runs[0].manifest.fingerprint
        for result in run.results:
            if source := sources.get(result.key):
                where = f"{result.case.label}@{result.arm.device}, restart {result.restart}"
                conflicts.append(f"{where}: in {source} and {run.path.name}; the first stays")
                continue
            facts = {"fingerprint": run.manifest.fingerprint, **result.facts} if foreign else result.facts
            merged[result.key] = msgspec.structs.replace(result, facts=facts)
            sources[result.key] = run.path.name
    with RunWriter(directory, _manifest(runs)) as writer:
        writer.append(list(merged.values()))
    return conflicts


def _manifest(runs: Sequence[Run]) -> Manifest:
    """The first manifest, with the arms, procedures, environments, ceilings and tags of all. The first value counts."""
    manifests = [run.manifest for run in runs]
    later_first = manifests[::-1]
    cases = [{(result.case.id, result.arm.id) for result in run.results} for run in runs]
    impossible = [set(manifest.impossible) for manifest in manifests]
    return msgspec.structs.replace(
        manifests[0],
        suite="+".join(dict.fromkeys(manifest.suite for manifest in manifests)),
        command=" && ".join(manifest.command for manifest in manifests if manifest.command),
        procedures={key: value for manifest in later_first for key, value in manifest.procedures.items()},
        arms=tuple({arm.id: arm for manifest in manifests for arm in manifest.arms}.values()),
        environments={key: value for manifest in later_first for key, value in manifest.environments.items()},
        nodes={key: value for manifest in later_first for key, value in manifest.nodes.items()},
        ceilings={key: value for manifest in later_first for key, value in manifest.ceilings.items()},
        planned=sum(manifest.planned for manifest in manifests) - _repeated(cases) - _repeated(impossible),
        impossible=tuple(dict.fromkeys(cell for manifest in manifests for cell in manifest.impossible)),
        tags={key: value for manifest in later_first for key, value in manifest.tags.items()},
    )


def _repeated(parts: Sequence[Set[tuple[str, str]]]) -> int:
    """How many elements of these sets are in an earlier one too."""
    return sum(map(len, parts)) - len(set().union(*parts))
