"""What the terminal says of the twelve canned runs: below the table, in the table, in `recommend` and in `compare`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rich.cells import cell_len

from attnbench.analysis import comparison
from attnbench.analysis.rows import Row, rows_of
from attnbench.report import summary
from attnbench.report.formats import comparison as comparison_formats
from attnbench.report.terminal import dispatch_table, pivot_table
from attnbench.studies.recommend import dispatch
from tests.report.canned import CANNED

EXPECTED = {
    "one_winner": ["sdpa:flash is fastest in 6 of 6 problems, 3.0x naive by geomean.", "18 cases: 18 ok."],
    "tie": ["sdpa:math or sdpa:flash: no difference found in 3 problems.", "9 cases: 9 ok."],
    "split": [
        "sdpa:flash is fastest in 3 of 3 prefill problems, 3.0x naive by geomean; "
        "sdpa:math is fastest in 6 of 6 decode problems, 3.0x naive by geomean.",
        "27 cases: 27 ok.",
    ],
    "all_wrong": [
        "my.py:f is wrong in 6 cases (error 5.2, allowed 1.5e-5)",
        "nothing was measured.",
        "6 cases: 6 incorrect.",
    ],
    "all_refused": [
        "nothing was measured.",
        "6 cases: 3 unsupported (no window), 3 skipped (needs 512 GiB, limit 9.6 GiB).",
    ],
    "one_case": ["one backend was measured for each problem: nothing to compare.", "1 case: 1 ok."],
    "decode_only": ["sdpa:flash is fastest in 6 of 6 problems, 3.0x naive by geomean.", "18 cases: 18 ok."],
    "prefill_and_decode": [
        "sdpa:flash is fastest in 3 of 3 prefill problems, 3.0x naive by geomean; "
        "sdpa:flash is fastest in 6 of 6 decode problems, 1.2x naive by geomean.",
        "27 cases: 27 ok.",
    ],
    "two_machines": ["sdpa:flash is fastest in 3 of 3 problems, 3.0x naive by geomean.", "6 cases: 6 ok."],
    "two_commits": ["sdpa:flash is fastest in 3 of 3 problems, 3.0x naive by geomean.", "9 cases: 9 ok."],
    "many_rows": [
        "sdpa:math is fastest in 25 of 50 problems, 3.0x naive by geomean; sdpa:flash in 25.",
        "200 cases: 200 ok.",
    ],
    "right_to_left": [
        "קשב.py:קשב failed with an error in 1 case: ValueError: אורך",
        "انتباه.py:انتبه is fastest in 3 of 3 problems, 3.0x naive by geomean.",
        "9 cases: 8 ok, 1 error.",
    ],
}


def rows(name: str, number: int = 0) -> list[Row]:
    run = CANNED[name]()[number]
    return rows_of(run.results, arms=run.manifest.arms)


@pytest.mark.parametrize("name", CANNED)
def test_the_summary_says_what_the_run_is_made_to_show(name: str) -> None:
    assert summary.text(rows(name)) == EXPECTED[name]


def texts(name: str, width: int) -> Iterator[str]:
    yield from pivot_table.text(rows(name), width).splitlines()
    yield from dispatch_table.lines(dispatch(rows(name)), width)
    runs = CANNED[name]()
    if not any(row.place for row in rows(name)):
        return  # nothing to compare
    for line in comparison_formats.text([comparison.compare(runs[0], runs[-1], cross_machine=True)], "table", width):
        if "attnbench " not in line:  # a command is one line of any length, so that it can be copied
            yield line


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", CANNED)
def test_no_line_of_a_table_is_wider_than_the_terminal(name: str, width: int) -> None:
    assert [line for line in texts(name, width) if cell_len(line) > width] == []


@pytest.mark.parametrize("name", ["one_winner", "split", "many_rows", "two_commits"])
def test_what_all_cases_share_is_printed_once(name: str) -> None:
    for text in (
        pivot_table.text(rows(name), 200),
        "\n".join(dispatch_table.lines(dispatch(rows(name)), 200)).partition("one backend")[0],
    ):
        assert text.count("fp32") == 1
        assert text.count("d64") == 1


def test_a_tie_is_named_as_good_by_recommend_and_marked_by_the_table() -> None:
    text = "\n".join(dispatch_table.lines(dispatch(rows("tie")), 80))
    assert text.count("as good: sdpa:math") == 3
    assert pivot_table.text(rows("tie"), 80).count("x~") == 6


def test_one_backend_has_no_speed_up_and_no_regret() -> None:
    text = "\n".join(dispatch_table.lines(dispatch(rows("one_case")), 80))
    assert "backend" in text
    assert "speed-up" not in text
    assert "over" not in text


def test_findings_on_two_devices_are_apart() -> None:
    cpu = rows("one_winner")
    gpu = [row.__class__(**{**_fields(row), "device": "cuda:0"}) for row in rows("decode_only")]
    assert summary.sentence([*cpu, *gpu]) == (
        "sdpa:flash is fastest in 6 of 6 prefill problems on cpu, 3.0x naive by geomean; "
        "sdpa:flash is fastest in 6 of 6 decode problems on cuda:0, 3.0x naive by geomean."
    )


def _fields(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def test_the_finding_of_many_rows_takes_linear_time() -> None:
    """The device of a row is read a fixed number of times."""

    class Counting(str):
        reads = 0
        __slots__ = ()

        def __hash__(self) -> int:
            Counting.reads += 1
            return super().__hash__()

    many = [row.__class__(**{**_fields(row), "device": Counting(row.device)}) for row in rows("many_rows")]
    summary.sentence(many)
    assert Counting.reads < 10 * len(many)
