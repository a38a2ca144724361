"""Several runs as one: shards of a sweep, or the same sweep on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from attnbench import lines, store
from attnbench.errors import StoreError
from attnbench.result import Result
from attnbench.store import Manifest, Run


def merge(runs: Sequence[Run], directory: Path) -> list[str]:
    """Write one run of all; gives the conflicts: (case, arm, launch) that several hold, of which the first one stays.

    Results of another machine than that of the first run are marked with its fingerprint. StoreError where the folder
    holds a run already.
    """
    if (directory / store.MANIFEST).exists():
        raise StoreError(f"{directory} holds a run already: give another --out")
    kept: dict[lines.Key, Result] = {}
    owner: dict[lines.Key, str] = {}
    conflicts = []
    for run in runs:
        foreign = run.manifest.fingerprint != runs[0].manifest.fingerprint
        for result in run.results:
            if result.key in kept:
                where = f"{result.case.label}@{result.arm.device}, launch {result.launch}"
                conflicts.append(f"{where}: in {owner[result.key]} and {run.path.name}; the first stays")
                continue
            facts = {"fingerprint": run.manifest.fingerprint, **result.facts} if foreign else result.facts
            kept[result.key] = msgspec.structs.replace(result, facts=facts)
            owner[result.key] = run.path.name
    with store.RunWriter(directory, _manifest(runs)) as writer:
        writer.append(list(kept.values()))
    return conflicts


def _manifest(runs: Sequence[Run]) -> Manifest:
    """That of the first run, with the arms, environments, ceilings and tags of all."""
    manifests = [run.manifest for run in runs]
    first = manifests[0]
    return msgspec.structs.replace(
        first,
        suite="+".join(dict.fromkeys(one.suite for one in manifests)),
        command=" && ".join(one.command for one in manifests if one.command),
        procedures={kind: one for manifest in reversed(manifests) for kind, one in manifest.procedures.items()},
        arms=tuple({arm.id: arm for manifest in manifests for arm in manifest.arms}.values()),
        environments={key: one for manifest in reversed(manifests) for key, one in manifest.environments.items()},
        ceilings={key: one for manifest in reversed(manifests) for key, one in manifest.ceilings.items()},
        planned=sum(one.planned for one in manifests),
        impossible=tuple(dict.fromkeys(cell for one in manifests for cell in one.impossible)),
        tags={key: value for manifest in reversed(manifests) for key, value in manifest.tags.items()},
    )
