"""Runs merged into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from attnbench import cli
from attnbench.attention.problem import Problem
from attnbench.errors import StoreError
from attnbench.records import merge, run_directory, run_writer
from attnbench.records.arm import Arm
from attnbench.records.result import Cause, Result, Status
from attnbench.records.run_directory import Manifest, Run
from attnbench.studies.fleet import fleet
from tests.samples import result


def run(tmp_path: Path, name: str, *results: Result, **fields: Any) -> Run:
    """A run on disk."""
    plain = {
        "schema_version": 1,
        "attnbench": "0",
        "created_at": "",
        "suite": "s",
        "fingerprint": "abc",
        "planned": len(results),
    }
    manifest = Manifest(
        **{**plain, **fields, "arms": tuple({result.arm.id: result.arm for result in results}.values())}
    )
    with run_writer.RunWriter(tmp_path / name, manifest) as writer:
        writer.append(results)
    return run_directory.read(tmp_path / name)


def at(seq: int, seconds: float = 1e-3, device: str = "cpu:threads=1") -> Result:
    measured = result([seconds] * 3, problem=Problem(seq_q=seq))
    return msgspec.structs.replace(measured, arm=Arm(backend="naive", device=device))


def test_shards_become_one_run(tmp_path: Path) -> None:
    first, second = run(tmp_path, "a", at(16), at(32)), run(tmp_path, "b", at(64), tags={"k": "v"})
    assert merge.merge([first, second], tmp_path / "both") == []
    whole = run_directory.read(tmp_path / "both")
    assert [r.case.problem.seq_q for r in whole.results] == [16, 32, 64]
    assert (whole.manifest.planned, whole.manifest.suite, whole.manifest.tags) == (3, "s", {"k": "v"})


def test_a_result_in_two_runs_is_reported_and_the_first_is_stored(tmp_path: Path) -> None:
    first, second = run(tmp_path, "a", at(16, 1e-3)), run(tmp_path, "b", at(16, 2e-3))
    (conflict,) = merge.merge([first, second], tmp_path / "both")
    assert "in a and b; the first stays" in conflict
    (stored,) = run_directory.read(tmp_path / "both").results
    assert stored.samples["time"].values[0] == 1e-3


def cut(seq: int) -> Result:
    return msgspec.structs.replace(at(seq), status=Status.SKIPPED, cause=Cause.BUDGET, reason="budget", samples={})


@pytest.mark.parametrize("first_is_cut", [True, False])
def test_a_case_that_the_budget_cut_in_one_run_is_that_of_the_other(tmp_path: Path, first_is_cut: bool) -> None:
    measured, skipped = run(tmp_path, "a", at(16)), run(tmp_path, "b", cut(16), cut(32))
    runs = [skipped, measured] if first_is_cut else [measured, skipped]
    assert merge.merge(runs, tmp_path / "both") == []
    stored = {r.case.problem.seq_q: r.status for r in run_directory.read(tmp_path / "both").results}
    assert stored == {16: Status.OK, 32: Status.SKIPPED}


def test_what_the_budget_cut_in_several_runs_is_stored_once_and_adds_no_restart(tmp_path: Path) -> None:
    runs = [on_node(tmp_path, name, cut(16)) for name in ("a", "b")] + [on_node(tmp_path, "c", at(16))]
    assert merge.merge(runs, tmp_path / "all") == []
    (stored,) = run_directory.read(tmp_path / "all").results
    assert (stored.status, stored.restart, stored.facts["node"]) == (Status.OK, 0, "c")


def test_results_of_another_machine_are_marked(tmp_path: Path) -> None:
    first = run(tmp_path, "a", at(16))
    second = run(tmp_path, "b", at(16, device="cuda:0"), fingerprint="xyz")
    merge.merge([first, second], tmp_path / "both")
    marks = {r.arm.device: r.facts.get("fingerprint") for r in run_directory.read(tmp_path / "both").results}
    assert marks == {"cpu:threads=1": None, "cuda:0": "xyz"}


def test_a_merged_run_is_not_resumed_by_the_request_of_its_first_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        run(tmp_path, name, result, command=f"attnbench run --seq {seq}", request={"axes": {"seq": str(seq)}})
        for name, seq, result in (("a", 16, at(16)), ("b", 32, cut(32)))
    ]
    merge.merge(parts, tmp_path / "both")
    assert cli.invoke(["run", "--resume", str(tmp_path / "both")]) == 2
    refused = "merged from several runs, each with its own options: resume those, and merge again"
    assert refused in capsys.readouterr().err
    assert cli.invoke(["show", str(tmp_path / "both")]) == 0
    assert f"next: attnbench report {tmp_path / 'both'}\n" in capsys.readouterr().out
    assert cli.invoke(["show", str(tmp_path / "b")]) == 0
    assert f"next: attnbench run --resume {tmp_path / 'b'}\n" in capsys.readouterr().out


def on_node(tmp_path: Path, name: str, *results: Result, cpu: str = "EPYC", **fields: Any) -> Run:
    """A run of a machine that the tag `node` names; all have one fingerprint."""
    return run(tmp_path, name, *results, tags={"node": name, "who": "ci"}, machine={"cpu": cpu}, **fields)


def test_nodes_with_one_fingerprint_keep_their_results_as_restarts(tmp_path: Path) -> None:
    times = {"gpu-7": (1e-3, 2e-3), "gpu-8": (3e-3, 4e-3), "gpu-9": (5e-3, 6e-3)}
    runs = [
        on_node(tmp_path, name, *(msgspec.structs.replace(at(16, time), restart=n) for n, time in enumerate(of_node)))
        for name, of_node in times.items()
    ]
    assert merge.merge(runs, tmp_path / "all") == []
    whole = run_directory.read(tmp_path / "all")
    stored = [(r.restart, r.facts["node"], r.samples["time"].values[0]) for r in whole.results]
    assert stored == [
        (0, "gpu-7", 1e-3), (1, "gpu-7", 2e-3), (2, "gpu-8", 3e-3), (3, "gpu-8", 4e-3), (4, "gpu-9", 5e-3),
        (5, "gpu-9", 6e-3),
    ]  # fmt: skip
    assert whole.manifest.tags == {"who": "ci"}
    assert [(name, facts["machine"]) for name, facts in whole.manifest.nodes.items()] == [
        (name, {"cpu": "EPYC"}) for name in reversed(times)
    ]
    assert not whole.manifest.on_cluster


def test_shards_of_several_nodes_keep_their_restarts(tmp_path: Path) -> None:
    runs = [on_node(tmp_path, name, at(seq)) for name, seq in (("a", 16), ("b", 32))]
    untagged = run(tmp_path, "c", at(64))
    assert merge.merge([*runs, untagged], tmp_path / "all") == []
    stored = [(r.restart, r.facts.get("node")) for r in run_directory.read(tmp_path / "all").results]
    assert stored == [(0, "a"), (0, "b"), (0, None)]


def test_nodes_of_two_models_and_runs_of_one_node_conflict(tmp_path: Path) -> None:
    first, other = on_node(tmp_path, "a", at(16)), on_node(tmp_path, "b", at(16), cpu="Xeon")
    assert len(merge.merge([first, other], tmp_path / "models")) == 1
    again = on_node(tmp_path / "again", "a", at(16))
    assert len(merge.merge([first, again], tmp_path / "node")) == 1
    assert run_directory.read(tmp_path / "node").manifest.tags["node"] == "a"
    second = on_node(tmp_path, "c", at(16))
    (conflict,) = merge.merge([first, second, on_node(tmp_path / "again", "c", at(16))], tmp_path / "three")
    assert "in c and c; the first stays" in conflict


def test_a_merged_fleet_shows_its_slow_node(tmp_path: Path) -> None:
    lengths = [16 * number for number in range(1, 25)]
    runs = [on_node(tmp_path, name, *(at(seq, s) for seq in lengths)) for name, s in (("a", 1e-3), ("b", 1.2e-3))]
    merge.merge(runs, tmp_path / "all")
    (model,) = fleet([run_directory.read(tmp_path / "all")])
    assert {node.node: (node.cases, node.verdict) for node in model.nodes} == {"a": (24, ""), "b": (24, "slow")}


def test_a_run_is_never_merged_over_another(tmp_path: Path) -> None:
    first, second = run(tmp_path, "a", at(16)), run(tmp_path, "b", at(32))
    with pytest.raises(StoreError, match="holds a run already"):
        merge.merge([first, second], tmp_path / "a")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "a", at(16))
    run(tmp_path, "b", at(16))
    assert cli.invoke(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "c")]) == 0
    assert "conflict: b1 h8 q16" in capsys.readouterr().err
    assert cli.invoke(["merge", str(tmp_path / "a"), "-o", str(tmp_path / "d")]) == 2
    assert cli.invoke(["merge", str(tmp_path / "a"), f"{tmp_path}/b/../a", "-o", str(tmp_path / "d")]) == 2
    assert f"merge: {tmp_path}/b/../a is given twice" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
