"""A stored run against a stored baseline, and the baselines themselves; nothing is measured."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats as scipy_stats

from attnbench import cli
from attnbench.attention.problem import Problem
from attnbench.errors import NotComparableError, StoreError, UsageError
from attnbench.gate import baselines, stored
from attnbench.gate.record import DEFAULT_SETTINGS, Settings, read_settings
from attnbench.machine import identity
from attnbench.records import run_directory, run_writer
from attnbench.records.result import Outcome, Procedure, Result, Status
from attnbench.records.run_directory import Manifest, Run
from tests.samples import result

TODAY = date(2026, 11, 21)
WOBBLE = (0.0, 0.01, -0.01, 0.005, -0.005, 0.002)
FINGERPRINT = identity.fingerprint()[0]


def restarts_of(
    factor: float = 1.0, restarts: int = 6, lengths: tuple[int, ...] = (64, 128), seed: int = 0
) -> list[Result]:
    shifts = np.random.default_rng(seed).permutation(WOBBLE).tolist()
    return [
        result(
            [1e-3 * factor * (1 + shifts[restart])] * 5, problem=Problem(seq_q=n), restart=restart, group=f"{n}",
        )
        for n in lengths
        for restart in range(restarts)
    ]  # fmt: skip


def run(name: str, results: list[Result], **fields: Any) -> Run:
    plain = {
        "schema_version": 1, "attnbench": "0", "created_at": "2026-11-20T10:00:00+00:00", "suite": "ci",
        "fingerprint": FINGERPRINT, "procedures": {"cpu": Procedure()}, "commit": {"commit": "c0ffee", "dirty": False},
    }  # fmt: skip
    return Run(path=Path(name), manifest=Manifest(**{**plain, **fields}), results=results)


def outcomes(
    head: Run, base: Run, settings: Settings = DEFAULT_SETTINGS, others: tuple[Run, ...] = ()
) -> list[Outcome]:
    judged = stored.judge(head, base, settings, TODAY, others)
    return [verdict.outcome for verdict in judged.verdicts if verdict.metric in ("time_s", "status")]


def test_a_largest_margin_holds_for_stored_runs_where_the_suite_has_one() -> None:
    """A stored baseline has a margin of 12.5 % at least."""
    runs = run("new", restarts_of(seed=1)), run("old", restarts_of())
    assert outcomes(*runs) == [Outcome.SAME, Outcome.SAME]
    assert outcomes(*runs, read_settings({"max_margin": "20%"}, "mine")) == [Outcome.SAME, Outcome.SAME]
    assert outcomes(*runs, read_settings({"max_margin": "10%"}, "mine")) == [Outcome.INCONCLUSIVE] * 2
    of_one = {"max_margin": "10%", "tolerance": [{"match": "*q128*", "time": "5%", "reason": "a"}]}  # 15 % for it
    assert outcomes(*runs, read_settings(of_one, "mine")) == [Outcome.INCONCLUSIVE, Outcome.SAME]


def test_welch_equals_scipy() -> None:
    rng = np.random.default_rng(3)
    above, below = rng.normal(0.1, 0.02, 6), rng.normal(0.0, 0.05, 9)
    seen, _, freedom = stored.welch(above.tolist(), below.tolist())
    expected = scipy_stats.ttest_ind(above, below, equal_var=False)
    ends = expected.confidence_interval(0.95)
    assert (seen.low, seen.high, freedom) == pytest.approx((ends.low, ends.high, expected.df))


def test_times_without_variation_differ_for_certain() -> None:
    difference = stored.welch([0.5] * 3, [0.0] * 3)
    assert (difference.interval.value, difference.error) == (0.5, 0.0)
    assert [difference.p_above(0.25), difference.p_above(0.5), difference.p_below(0.25)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("factor", "outcome"),
    [(1.0, Outcome.SAME), (1.5, Outcome.REGRESSED), (0.5, Outcome.IMPROVED), (1.13, Outcome.INCONCLUSIVE)],
)
def test_each_outcome(factor: float, outcome: Outcome) -> None:
    assert set(outcomes(run("a", restarts_of(factor, seed=1)), run("b", restarts_of()))) == {outcome}


def test_a_stored_rate_above_a_ceiling_decides_nothing_until_it_is_checked_on_new_inputs() -> None:
    unchecked = [msgspec.structs.replace(each, facts={"new_inputs": "not checked"}) for each in restarts_of(0.5)]
    judged = stored.judge(run("a", unchecked), run("b", restarts_of()), DEFAULT_SETTINGS, TODAY)
    decided = {(each.outcome, each.reason) for each in judged.verdicts if each.metric == "time_s"}
    assert decided == {(Outcome.INCONCLUSIVE, "head: above a measured ceiling, not checked")}


def test_one_restart_is_inconclusive() -> None:
    judged = stored.judge(
        run("a", restarts_of(3.0, restarts=1)), run("b", restarts_of(restarts=1)), DEFAULT_SETTINGS, TODAY
    )
    assert {verdict.outcome for verdict in judged.verdicts if verdict.metric == "time_s"} == {Outcome.INCONCLUSIVE}
    assert "measure with --restarts 6" in judged.verdicts[0].reason


def test_runs_of_one_commit_on_two_days_set_the_margin() -> None:
    days = tuple(
        run(str(n), restarts_of(f, seed=n), created_at=f"2026-11-1{n}T00:00:00+00:00") for n, f in ((1, 1.0), (2, 1.3))
    )
    judged = stored.judge(run("a", restarts_of(1.2)), run("b", restarts_of()), DEFAULT_SETTINGS, TODAY, days)
    assert "runs of one commit on different days differ by up to 3" in judged.margin_source
    assert {verdict.outcome for verdict in judged.verdicts if verdict.metric == "time_s"} == {Outcome.SAME}
    assert (
        "10 % is assumed"
        in stored.judge(run("a", restarts_of()), run("b", restarts_of()), DEFAULT_SETTINGS, TODAY).margin_source
    )


def test_a_renamed_case_is_paired_by_its_earlier_label() -> None:
    (old,) = {measured.case.label for measured in restarts_of(lengths=(64,))}
    (new,) = {measured.case.label for measured in restarts_of(lengths=(256,))}
    head, base = run("a", restarts_of(lengths=(256, 128))), run("b", restarts_of())
    assert sorted(outcomes(head, base)) == [Outcome.MISSING, Outcome.NEW, Outcome.SAME]
    assert outcomes(head, base, read_settings({"alias": {new: old}}, "x")) == [Outcome.SAME, Outcome.SAME]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fingerprint": "other"}, "two machines"),
        ({"tags": {"node": "b"}}, "two machines .*/a, .*/b"),
        ({"procedures": {"cpu": Procedure(allocator="musl")}}, "cpu allocator: musl then,  now"),
    ],
)
def test_what_is_not_comparable_is_refused(fields: dict[str, Any], message: str) -> None:
    head, base = run("a", restarts_of(), tags={"node": "a"}), run("b", restarts_of(), **fields)
    with pytest.raises(NotComparableError, match=message):
        stored.judge(head, base, DEFAULT_SETTINGS, TODAY)


def test_no_case_in_common_is_refused() -> None:
    with pytest.raises(NotComparableError, match="no case in common"):
        stored.judge(run("a", restarts_of()), run("b", restarts_of(lengths=(256,))), DEFAULT_SETTINGS, TODAY)


# -- baselines ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def written(root: Path, name: str, results: list[Result], **fields: Any) -> Run:
    path = root / name
    with run_writer.RunWriter(
        path, run(name, []).manifest if not fields else run(name, [], **fields).manifest
    ) as writer:
        writer.append(results)
    return run_directory.read(path)


def test_a_baseline_is_saved_read_replaced_and_removed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(root, "first", restarts_of())
    written(root, "second", restarts_of(1.01))
    assert cli.invoke(["baseline", "save", "main", "first"]) == 0
    assert cli.invoke(["baseline", "save", "main", "second"]) == 2
    assert (
        "holds first of 2026-11-20T10:00:00+00:00: replace it with attnbench baseline promote"
        in capsys.readouterr().err
    )
    assert cli.invoke(["baseline", "promote", "main", "second"]) == 0
    ((place, provenance),) = baselines.every()
    assert (provenance.run, provenance.replaces, provenance.commit, provenance.dirty) == (
        "second",
        "first",
        "c0ffee",
        False,
    )
    assert sorted(path.name for path in place.iterdir()) == ["baseline.json", "results.jsonl", "run.json"]
    assert cli.invoke(["baseline", "list"]) == 0
    assert "main" in capsys.readouterr().out
    assert cli.invoke(["baseline", "show", "main"]) == 0
    assert cli.invoke(["baseline", "rm", "main"]) == 0
    assert list(baselines.every()) == []


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (restarts_of(restarts=1), "1 restart, 3 are needed"),
        ([*restarts_of(), result(problem=Problem(seq_q=8), status=Status.CRASHED)], "crashed"),
        ([*restarts_of(), result(problem=Problem(seq_q=8), status=Status.SKIPPED, reason="budget")], "1 case skipped"),
        ([*restarts_of(), result([1.0, 2.0, 2.0], problem=Problem(seq_q=8))], "1 of 3 cases are noisy"),
        ([], "nothing was measured"),
    ],
)  # fmt: skip
def test_a_run_that_is_no_basis_is_refused(root: Path, results: list[Result], message: str) -> None:
    stored_run = written(root, "first", results)
    with pytest.raises(UsageError, match=message):
        baselines.save("main", stored_run)
    assert baselines.save("main", stored_run, force=True).is_dir()


def test_a_run_that_was_stopped_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="2 of 4 cases not measured"):
        baselines.save("main", written(root, "first", restarts_of(), planned=4))


def test_a_baseline_of_another_machine_stays_and_one_without_provenance_is_none(root: Path) -> None:
    baselines.save("main", written(root, "first", restarts_of()))
    other = baselines.save("main", written(root, "second", restarts_of(), fingerprint="other"))
    baselines.remove("main", FINGERPRINT)
    assert [place for place, _ in baselines.every()] == [other]
    (other / baselines.PROVENANCE).write_text("{")
    assert list(baselines.every()) == []


def test_a_name_is_no_path(root: Path) -> None:
    for name in ("../up", "a/b", "", ".hidden"):
        with pytest.raises(UsageError, match="a plain name"):
            baselines.save(name, run("a", restarts_of()))


def test_a_folder_that_cannot_be_written_is_named(root: Path) -> None:
    stored_run = written(root, "first", restarts_of())
    (root / "reference").write_text("a file")
    with pytest.raises(StoreError, match="cannot write to"):
        baselines.save("main", stored_run)


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.5, 1), (1.13, 3)])
def test_the_command_compares_with_a_name(
    root: Path, factor: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    written(root, "first", restarts_of())
    written(root, "second", restarts_of(factor, seed=1))
    assert cli.invoke(["baseline", "save", "main", "first"]) == 0
    assert cli.invoke(["gate", "second", "--baseline", "main"]) == code
    assert "stored baseline, weaker than side by side" in capsys.readouterr().out.replace("\n  ", " ")
    assert cli.invoke(["gate", "second", "--baseline", "first"]) == code


def test_a_missing_baseline_is_exit_4_and_says_what_there_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(root, "first", restarts_of())
    assert cli.invoke(["gate", "first", "--baseline", "mane"]) == 4
    assert "no baseline 'mane' of this machine" in capsys.readouterr().err
    elsewhere = written(root, "second", restarts_of(), fingerprint="other")
    baselines.save("main", elsewhere)
    assert cli.invoke(["gate", "first", "--baseline", "main"]) == 4
    assert "there are main of other" in capsys.readouterr().err
    assert cli.invoke(["gate", "--baseline", "main"]) == 2


@pytest.mark.parametrize(
    ("version", "message"), [(9, "written by a newer attnbench"), (0, "written by an older attnbench")]
)
def test_another_format_is_named(root: Path, version: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    written(root, "first", restarts_of())
    path = written(root, "second", restarts_of()).path / "run.json"
    path.write_text(path.read_text().replace('"schema_version": 1', f'"schema_version": {version}'))
    assert cli.invoke(["gate", "first", "--baseline", "second"]) == 2
    assert message in capsys.readouterr().err


def test_an_older_baseline_hinders_no_comparison_with_another(root: Path) -> None:
    runs = [written(root, name, restarts_of()) for name in ("first", "second")]
    path = baselines.save("old", runs[0]) / "run.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    assert cli.invoke(["gate", "first", "--baseline", "second"]) == 0
    assert cli.invoke(["gate", "first", "--baseline", "old"]) == 2


def test_suites_of_the_run_give_the_tolerances(root: Path, tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text('gate = { time = "60%" }\n[[problem]]\nseq = 64\n')
    written(root, "first", restarts_of())
    written(root, "second", restarts_of(1.5, seed=1), request={"suites": [str(suite)]})
    assert cli.invoke(["gate", "second", "--baseline", "first"]) == 0
    suite.unlink()  # then those of every suite hold
    assert cli.invoke(["gate", "second", "--baseline", "first"]) == 1
