"""The answer of a run whose budget ended before the last problems, and of one that was interrupted there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from attnbench import cli
from attnbench.analysis.rows import Row, rows_of
from attnbench.attention.problem import Problem
from attnbench.cli import output
from attnbench.records.result import Result
from attnbench.records.run_directory import Run
from attnbench.report import pages, summary
from attnbench.report.answer import Answer
from attnbench.report.formats import markdown
from attnbench.report.pages.page import report_data
from attnbench.report.terminal import pivot_table
from tests import samples
from tests.records.samples import stored
from tests.report.test_answer import BUDGET, WRONG, case, of


def of_part(*winners: str) -> Answer:
    """Two backends, of which these win the first problems, a tie where it is empty; the budget cut as many as that."""
    times = {"naive": (1.0, 2.0), "flex": (2.0, 1.0), "": (1.0, 1.001)}
    lengths = [64 * 2**place for place in range(2 * len(winners))]
    measured = [
        case(name, time, seq)
        for winner, seq in zip(winners, lengths, strict=False)
        for name, time in zip(("naive", "flex"), times[winner], strict=True)
    ]
    cut = [case(name, None, seq, **BUDGET) for seq in lengths[len(winners) :] for name in ("naive", "flex")]
    return of(*measured, *cut)


@pytest.mark.parametrize(
    ("winners", "headline"),
    [
        (("flex", "flex"), "Use flex for the 2 of 4 problems measured."),
        (("", ""), "naive or flex: no difference found in the 2 of 4 problems measured."),
        (("naive", "flex"), "naive below 128, flex from 128 on (the 2 of 4 problems measured)."),
        (("flex", "naive", "flex"), "flex wins 2 of the 3 of 6 problems measured, naive 1."),
    ],
)
def test_the_headline_says_how_many_problems_were_measured(winners: tuple[str, ...], headline: str) -> None:
    assert of_part(*winners).headline == headline


def test_times_without_a_comparison_are_of_the_problems_measured() -> None:
    screen = of(case("naive", 2), case("naive", None, 128, **BUDGET))
    assert (
        screen.headline == "naive takes 2.00 ms in the 1 of 2 problems measured: there is nothing to compare it with."
    )


def test_a_phase_of_which_a_part_was_cut_is_not_named_as_a_whole() -> None:
    decode, longer, prefill = Problem(seq_q=1, seq_kv=512), Problem(seq_q=1, seq_kv=1024), Problem(seq_q=512)
    screen = of(
        case("naive", 2, problem=decode), case("flex", 1, problem=decode),
        *(case(name, None, problem=each, **BUDGET) for each in (longer, prefill) for name in ("naive", "flex")),
    )  # fmt: skip
    assert screen.headline == "Use flex for the 1 of 3 problems measured."


def rows_with_cut(*, wrong: bool = False) -> list[Row]:
    """Two masks of two lengths; of the causal one nothing is measured."""
    fields = WRONG if wrong else BUDGET
    causal = [Problem(seq_q=seq, mask="causal") for seq in (64, 128)]
    return rows_of([
        *(case(name, time, seq) for seq in (64, 128) for name, time in (("naive", 2), ("flex", 1))),
        *(case(name, None, problem=problem, **fields) for problem in causal for name in ("naive", "flex")),
    ])  # fmt: skip


def test_the_finding_in_a_terminal_says_how_many_problems_were_measured() -> None:
    assert summary.sentence(rows_with_cut()) == (
        "flex is fastest in 2 of 2 problems measured (of 4), 2.0x naive by geomean."
    )
    decode = [case(name, None, problem=Problem(seq_q=1, seq_kv=64), **BUDGET) for name in ("naive", "flex")]
    prefill = [case(name, time) for name, time in (("naive", 2), ("flex", 1))]
    assert summary.sentence(rows_of([*prefill, *decode])) == (
        "flex is fastest in 1 of 1 prefill problem, 2.0x naive by geomean; no decode problems measured (of 1)."
    )


def test_a_table_without_a_time_is_a_line_with_the_number_of_its_cases() -> None:
    text = pivot_table.text(rows_with_cut(), 80)
    assert "\n-  causal: 4 cases skipped: budget\n" in text
    assert text.count("naive") == 2  # in the heading of one table, and in the legend
    assert markdown.tables(rows_with_cut()).count("| naive") == 1
    assert "\n-  causal: 4 cases incorrect\n" in pivot_table.text(rows_with_cut(wrong=True), 80)


def test_recommend_says_how_many_problems_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [case("naive", 2), case("flex", 1), *(case(name, None, 128, **BUDGET) for name in ("naive", "flex"))]
    assert cli.invoke(["recommend", str(stored(tmp_path / "run", *results))]) == 0
    assert capsys.readouterr().err == "1 of 2 problems left out: no time to compare\n"


STOPPED = "6 of 12 cases were not measured"


def interrupted(*results: Result) -> Run:
    """A run of twelve cases, of which these have a result."""
    whole = samples.run(*results)
    return msgspec.structs.replace(whole, manifest=msgspec.structs.replace(whole.manifest, planned=12))


def report_of(*runs: Run) -> Answer:
    return pages.contents(report_data(runs))[0]


def won(*winners: str) -> list[Result]:
    """Two backends in three lengths, of which these win; a tie where it is empty."""
    times = {"naive": (1.0, 2.0), "flex": (2.0, 1.0), "": (1.0, 1.001)}
    return [
        case(name, time, 64 * 2**place)
        for place, winner in enumerate(winners)
        for name, time in zip(("naive", "flex"), times[winner], strict=True)
    ]


@pytest.mark.parametrize(
    ("winners", "headline", "lead"),
    [
        (("flex",) * 3, "Use flex for the 3 problems measured so far", "Fastest in 3 problems. Over the 3 measured"),
        (("flex", "flex", ""), "Use flex for the 3 problems measured so far", "Fastest in 2 of 3 problems, tied"),
        (("",) * 3, "naive or flex: no difference found in the 3 problems measured so far", "in any of the 3 problems"),
        (
            ("naive", "flex", "flex"), "naive below 128, flex from 128 on (the 3 problems measured so far)",
            "is fastest in the 2 problems measured so far",
        ),
    ],
)  # fmt: skip
def test_an_interrupted_run_says_in_its_answer_what_it_lacks(
    winners: tuple[str, ...], headline: str, lead: str
) -> None:
    screen = report_of(interrupted(*won(*winners)))
    assert screen.headline == f"{headline}; {STOPPED}."
    assert lead in screen.lead
    assert "all" not in f"{screen.headline} {screen.lead}".split()


def test_an_interrupted_run_does_not_speak_for_a_phase() -> None:
    """The other decode problems have no result."""
    decode = [case(name, time, problem=Problem(seq_q=1, seq_kv=64)) for name, time in (("naive", 2), ("flex", 1))]
    run = interrupted(*decode, *(case("naive", 1, seq) for seq in (64, 128, 256, 512)))
    assert report_of(run).headline == f"Use flex for the 1 problem compared so far; {STOPPED}."


def test_of_several_runs_the_interrupted_one_is_named() -> None:
    whole = interrupted(*won(*["flex"] * 6))
    assert not whole.left
    first = msgspec.structs.replace(interrupted(*won(*["flex"] * 3)), path=Path("results/first"))
    assert f"; {STOPPED} in " in report_of(first, whole).headline


def test_the_finding_of_an_interrupted_run_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run = interrupted(*won(*["flex"] * 3))
    output.show(run, "table")
    finding = f"flex is fastest in 3 of 3 problems, 2.0x naive by geomean; {STOPPED}."
    assert finding in " ".join(capsys.readouterr().out.split())
    assert summary.sentence(rows_of(run.results), run.left) == finding
