"""Several runs as one: shards of a sweep, or the same sweep on several machines."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import msgspec
from msgspec.structs import replace

from attnbench.errors import StoreError
from attnbench.records import run_directory
from attnbench.records.result import Facts, Key, Result
from attnbench.records.run_directory import NODE_TAG, Manifest, Run
from attnbench.records.run_writer import RunWriter, machine_facts


def merge(runs: Sequence[Run], directory: Path) -> list[str]:
    """Write one run with the results of all; return the conflicts.

    A conflict is a (case, arm, restart) in several runs, of which the first is written. What a resume would measure
    again, since the budget cut it, counts only where no run has another result. A result from another machine than that
    of the first run is marked with its fingerprint. Where the tag `node` names several machines, each result is marked
    with its node, and restarts of one case on several nodes of one model follow each other. Raises StoreError if the
    directory holds a run already.
    """
    if (directory / run_directory.MANIFEST).exists():
        raise StoreError(f"{directory} holds a run already: use another --out")
    merged: dict[Key, Result] = {}
    sources: dict[Key, Run] = {}  # of the results that the budget did not cut
    conflicts = []
    of_fleet = _of_fleet(runs)
    firsts: dict[str, int] = {}  # restarts, by node
    for run in runs:
        mark = machine_facts(run.manifest, runs[0].manifest)
        if of_fleet and run.manifest.node:
            mark = {"node": run.manifest.node}
        done = run_directory.done_keys(run, retry_failed=False)
        first = firsts.setdefault(run.manifest.node, _first_restart(run, done, sources))
        for result in run.results:
            moved = replace(result, restart=first + result.restart, facts=mark | result.facts)
            if result.key not in done:
                merged.setdefault(moved.key, moved)
            elif source := sources.get(moved.key):
                where = f"{result.case.label}@{result.arm.device}, restart {result.restart}"
                conflicts.append(f"{where}: in {source.path.name} and {run.path.name}; the first stays")
            else:
                merged[moved.key] = moved
                sources[moved.key] = run
    with RunWriter(directory, _manifest(runs)) as writer:
        writer.append(list(merged.values()))
    return conflicts


def _of_fleet(runs: Sequence[Run]) -> bool:
    """Whether the tag `node` names several machines."""
    return len({run.manifest.node for run in runs}) > 1


def _first_restart(run: Run, done: Set[Key], sources: Mapping[Key, Run]) -> int:
    """The number of the first restart of a run: 0, unless other nodes of its model have some of its results.

    `done`: the keys of its results that the budget did not cut.
    """
    manifest = run.manifest
    others = [sources[key].manifest for key in done & sources.keys()]
    apart = [other for other in others if manifest.node and other.node not in ("", manifest.node)]
    if not apart or any(other.machine_name != manifest.machine_name for other in apart):
        return 0
    return 1 + max(restart for _, _, restart in sources)


def _manifest(runs: Sequence[Run]) -> Manifest:
    """The first manifest, with the arms, procedures, environments, ceilings and tags of all. The first value counts."""
    manifests = [run.manifest for run in runs]
    later_first = manifests[::-1]
    cases = [{(result.case.id, result.arm.id) for result in run.results} for run in runs]
    impossible = [set(manifest.impossible) for manifest in manifests]
    of_fleet = _of_fleet(runs)
    return replace(
        manifests[0],
        suite="+".join(dict.fromkeys(manifest.suite for manifest in manifests)),
        command=" && ".join(manifest.command for manifest in manifests if manifest.command),
        procedures={key: value for manifest in later_first for key, value in manifest.procedures.items()},
        arms=tuple({arm.id: arm for manifest in manifests for arm in manifest.arms}.values()),
        environments={key: value for manifest in later_first for key, value in manifest.environments.items()},
        nodes={key: value for manifest in later_first for key, value in _nodes(manifest, of_fleet).items()},
        ceilings={key: value for manifest in later_first for key, value in manifest.ceilings.items()},
        planned=sum(manifest.planned for manifest in manifests) - _repeated(cases) - _repeated(impossible),
        impossible=tuple(dict.fromkeys(cell for manifest in manifests for cell in manifest.impossible)),
        tags={
            key: value
            for manifest in later_first
            for key, value in manifest.tags.items()
            if key != NODE_TAG or not of_fleet
        },
    )


def _nodes(manifest: Manifest, of_fleet: bool) -> dict[str, Facts]:
    """The nodes of a run; of one that was measured on a machine of a fleet, this machine."""
    if not (of_fleet and manifest.node):
        return manifest.nodes
    environments = manifest.environments.values()
    return {
        **manifest.nodes,
        manifest.node: {
            "fingerprint": manifest.fingerprint,
            "machine": manifest.machine,
            "packages": {name: version for each in environments for name, version in each.packages.items()},
            "ceilings": msgspec.to_builtins(manifest.ceilings),
            "device_facts": {name: value for each in environments for name, value in each.facts.items()},
        },
    }


def _repeated(parts: Sequence[Set[tuple[str, str]]]) -> int:
    """How many elements of these sets are in an earlier one too."""
    return sum(map(len, parts)) - len(set().union(*parts))
