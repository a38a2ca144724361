"""Machines are told apart by their fingerprint, and by the tag `node` where runs have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.errors import NotComparableError
from attnbench.records import run_directory
from attnbench.records.run_writer import RunWriter
from tests.records.samples import manifest, result, stored


def test_a_machine_is_its_fingerprint_and_its_node() -> None:
    plain, a, b = manifest(), manifest(tags={"node": "a"}), manifest(tags={"node": "b"})
    assert [each.machine_id for each in (plain, a, b)] == ["abc", "abc/a", "abc/b"]
    assert not a.same_machine(b)
    assert a.same_machine(plain)  # where only one is named, fingerprints decide
    assert plain.same_machine(b)
    assert not a.same_machine(manifest(tags={"node": "a"}, fingerprint="def"))


def test_another_node_with_the_same_fingerprint_is_refused_or_marked(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", result(8), tags={"node": "a"})
    other = manifest(tags={"node": "b", "who": "ci"})
    with pytest.raises(NotComparableError, match="machine: abc/a then, abc/b now"):
        RunWriter(run, other)
    with RunWriter(run, other, force=True) as writer:
        writer.append([result(16)])
    now = run_directory.read(run)
    assert now.manifest.tags == {"node": "a", "who": "ci"}
    assert [result.facts for result in now.results] == [{}, {"node": "b"}]
