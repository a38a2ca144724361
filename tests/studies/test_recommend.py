"""A dispatch table by hand: who is taken, who is as good, and what a fixed choice costs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli
from attnbench.analysis.rows import Place, leaders, rows_of
from attnbench.attention.problem import Problem
from attnbench.records.result import Result
from attnbench.studies.recommend import dispatch
from tests.golden import made
from tests.report.canned import CANNED
from tests.studies.test_claims import measured


def rows(times: dict[tuple[int, str], float]) -> list[Any]:
    results: list[Result] = [
        measured(seconds, backend, seq_q=seq, heads=4) for (seq, backend), seconds in times.items()
    ]
    return rows_of(results)


TIMES = {
    (128, "naive"): 1.0, (128, "sdpa:flash"): 2.0, (128, "flex"): 4.0,
    (256, "naive"): 9.0, (256, "sdpa:flash"): 3.0, (256, "flex"): 3.0001,
    (512, "naive"): 30.0, (512, "flex"): 5.0,
}  # fmt: skip


def test_the_fastest_is_taken_and_a_tie_goes_to_who_wins_more() -> None:
    by_length = {choice.shape["seq_q"]: choice for choice in dispatch(rows(TIMES | {(1024, "flex"): 8.0})).choices}
    assert {seq: choice.backend for seq, choice in by_length.items()} == {
        128: "naive",
        256: "flex",
        512: "flex",
        1024: "flex",
    }
    assert by_length[256].tied == ("sdpa:flash",)
    assert by_length[128].second == "sdpa:flash"
    assert by_length[128].gain == pytest.approx(2.0, rel=1e-3)
    assert by_length[1024].gain is None
    assert set(by_length[128].shape) == {"seq_q", "seq_kv"}


def drifting(backend: str, seconds: float) -> Result:
    """Readings that rise and fall by a fifth in the same rounds for every backend."""
    return made.measured(Problem(seq_q=128), backend, seconds, spread=(0.2, -0.2, 0.1, -0.1))


def test_the_dispatch_table_and_the_places_of_a_run_agree_where_intervals_of_times_overlap() -> None:
    """The ratio is 1.1 in every round, while the intervals of the times overlap by far."""
    run = rows_of([drifting("naive", 1.1e-3), drifting("sdpa:flash", 1e-3)])
    assert {row.arm_name: row.place for row in run} == {"naive": Place.BEHIND, "sdpa:flash": Place.FASTEST}
    naive, flash = run
    assert naive.time_low_s is not None
    assert flash.time_high_s is not None
    assert naive.time_low_s < flash.time_high_s
    (choice,) = dispatch(run).choices
    assert (choice.backend, choice.tied, choice.second) == ("sdpa:flash", (), "naive")


@pytest.mark.parametrize("name", CANNED)
def test_every_choice_names_exactly_the_leaders_of_its_problem(name: str) -> None:
    for run in CANNED[name]():
        measured_rows = rows_of(run.results)
        chosen = {choice.problem: {choice.backend, *choice.tied} for choice in dispatch(measured_rows).choices}
        assert chosen == {group[0].problem: {row.arm_name for row in group} for group in leaders(measured_rows)}


def test_a_backend_that_drift_made_slower_is_ranked_by_its_paired_ratio() -> None:
    """flex ran in a later pass, when the machine was slower: 847 us against 1440 us of naive in the same rounds."""
    problem = Problem(seq_q=128)
    late = {"reference_time": made.timed(1440e-6)}
    run = rows_of(
        [made.measured(problem, "naive", 806e-6), made.measured(problem, "flex", 847e-6, group="late", samples=late)]
    )
    naive, flex = run
    assert (flex.place, flex.quotient_outside, naive.quotient_outside) == (Place.FASTEST, True, False)
    table = dispatch(run)
    assert (table.choices[0].backend, table.choices[0].second) == ("flex", "naive")
    assert table.choices[0].gain == pytest.approx(1.7, rel=1e-2)
    assert {regret.backend: round(regret.mean, 2) for regret in table.regrets} == {"flex": 1.0, "naive": 1.7}


def test_regret_is_the_geometric_mean_over_what_runs() -> None:
    by_backend = {regret.backend: regret for regret in dispatch(rows(TIMES)).regrets}
    assert by_backend["naive"].mean == pytest.approx(math.prod((1, 3, 6)) ** (1 / 3), rel=1e-3)
    assert by_backend["flex"].mean == pytest.approx(4 ** (1 / 3), rel=1e-3)
    assert by_backend["flex"].worst == pytest.approx(4.0, rel=1e-3)
    assert "q128" in by_backend["flex"].worst_at
    assert (by_backend["sdpa:flash"].runs, by_backend["sdpa:flash"].of) == (2, 3)


def test_shapes_are_in_order_of_size_whatever_the_order_of_the_run() -> None:
    shapes = [choice.shape for choice in dispatch(rows(TIMES)[::-1]).choices]
    assert shapes == [choice.shape for choice in dispatch(rows(TIMES)).choices]
    assert [shape["seq_q"] for shape in shapes] == sorted(shape["seq_q"] for shape in shapes)


def test_whoever_runs_everything_comes_first() -> None:
    (device,) = dispatch(rows(TIMES)).by_device.values()
    assert [regret.backend for regret in device] == ["flex", "naive", "sdpa:flash"]


def test_the_command_writes_the_table(
    stored_run: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(stored_run.parent))
    assert cli.invoke(["recommend", "-o", "dispatch.json"]) == 0
    out, err = capsys.readouterr()
    assert "one backend for everything" in out
    assert err == "wrote dispatch.json\n"
    held = json.loads(Path("dispatch.json").read_text())
    assert [choice["shape"]["seq_q"] for choice in held["choices"]] == [32, 32, 48, 48]  # of two masks
    assert {regret["backend"] for regret in held["regrets"]} == {"naive", "sdpa:flash"}  # triton runs on GPUs
