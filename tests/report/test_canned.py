"""The canned runs are what they say: they can be stored, read and shown."""

from pathlib import Path

import pytest

from attnbench.analysis.rows import Place, Row, rows_of
from attnbench.records import run_directory
from tests.report.canned import CANNED, store


def rows(name: str) -> list[Row]:
    return [row for run in CANNED[name]() for row in rows_of(run.results, arms=run.manifest.arms)]


@pytest.mark.parametrize("name", CANNED)
def test_a_canned_run_is_read_back_as_it_was_built(name: str, tmp_path: Path) -> None:
    for run in CANNED[name]():
        again = run_directory.read(store(run, tmp_path))
        assert (again.skipped_lines, again.manifest) == (0, run.manifest)
        assert list(again.results) == list(run.results)


def test_the_winners_are_those_that_the_names_promise() -> None:
    assert {row.arm_name for row in rows("one_winner") if row.place is Place.FASTEST} == {"sdpa:flash"}
    assert {row.arm_name for row in rows("tie") if row.place is Place.TIED} == {"sdpa:math", "sdpa:flash"}
    winners = {(row.seq_q == 1, row.arm_name) for row in rows("split") if row.place is Place.FASTEST}
    assert winners == {(True, "sdpa:math"), (False, "sdpa:flash")}
    assert len(rows("many_rows")) == 200
    assert not any(row.place for name in ("all_wrong", "all_refused") for row in rows(name))
