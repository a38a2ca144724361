"""The section of a replayed trace, its text in a terminal, and `replay.json`."""

from pathlib import Path

import msgspec
import pytest

from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic_mix import mix
from attnbench.analysis.traffic_totals import Policy, PolicyName
from attnbench.errors import SchemaError, StoreError
from attnbench.report import pages, quantities
from attnbench.report.formats import markdown, report_directory
from attnbench.report.formats.report_directory import ReportOptions
from attnbench.report.pages.page import report_data
from attnbench.report.terminal import traffic as terminal
from attnbench.report.terminal.text_layout import cell_width
from attnbench.studies import traffic_answer
from tests.analysis.made_steps import made_steps
from tests.report.canned import one_winner, store, traffic

HEADLINE = (
    "flex for decode and sdpa for prefill and mixed take 5.00 s of attention per hour of traffic; sdpa alone takes "
    "10.2 % more"
)


@pytest.fixture(scope="module")
def answer():
    return traffic()


def section(*answers):
    runs = [run for _ in answers for run in one_winner()]
    _, sections = pages.contents(report_data(runs, traffic=answers))
    return next(page for page in sections if page.name == "traffic")


def with_single(answer, **fields):
    """The answer with another policy of one backend."""
    single, *others = answer.totals.policies
    changed = (msgspec.structs.replace(single, **fields), *others)
    return msgspec.structs.replace(answer, totals=msgspec.structs.replace(answer.totals, policies=changed))


def test_an_answer_is_read_back_as_it_was_stored(answer, tmp_path):
    assert traffic_answer.read(tmp_path) is None
    path = traffic_answer.write(answer, tmp_path)
    assert path.name == "replay.json"
    assert traffic_answer.read(tmp_path) == answer
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('{"version": 2}', SchemaError, "format 2, and this attnbench reads 1: replay the trace again"),
        ('{"version": 1}', StoreError, "replay.json cannot be read"),
        ("{", StoreError, "replay.json cannot be read"),
    ],
)
def test_a_file_that_holds_no_answer_is_named(text, error, words, tmp_path):
    (tmp_path / traffic_answer.FILE).write_text(text)
    with pytest.raises(error, match=words):
        traffic_answer.read(tmp_path)


def test_an_answer_that_cannot_be_written_or_read_is_named(answer, tmp_path):
    with pytest.raises(StoreError, match="cannot write to"):
        traffic_answer.write(answer, tmp_path / "none")
    (tmp_path / traffic_answer.FILE).mkdir()
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        traffic_answer.read(tmp_path)


def test_the_headline_names_one_backend_per_phase_where_it_gains(answer):
    assert answer.headline == HEADLINE


def test_the_headline_names_one_backend_where_phases_gain_less_than_a_percent(answer):
    little = with_single(answer, over_phase=Estimate(value=0.02, low=0.009, high=0.03))
    assert little.headline == "sdpa takes 5.51 s of attention per hour of traffic"


def test_the_headline_names_backends_without_a_difference(answer):
    first, second = answer.totals.totals
    tied = (first, msgspec.structs.replace(second, over_fastest=Estimate(value=1.01, low=0.99, high=1.03)))
    little = with_single(answer, over_phase=None)
    totals = msgspec.structs.replace(little.totals, totals=tied)
    assert msgspec.structs.replace(little, totals=totals).headline.endswith("; no difference was found to flex")


def test_the_headline_says_that_nothing_ran_everything(answer):
    nothing = tuple(Policy(name=name) for name in PolicyName)
    totals = msgspec.structs.replace(answer.totals, policies=nothing, totals=())
    empty = msgspec.structs.replace(answer, totals=totals)
    assert empty.headline == "No backend ran every drawn step"
    empty = msgspec.structs.replace(empty, settings=())
    assert "no backend ran every step" in markdown.page(None, [section(empty)], "")
    assert "No backend ran every drawn step" in "\n".join(terminal.lines(empty, 80))


def test_the_section_shows_policies_backends_settings_mix_and_exclusions(answer):
    page = section(answer)
    assert (page.title, page.finding) == ("Your traffic", HEADLINE)
    tables = {table.heading: table for table in page.tables}
    assert [[str(cell) for cell in row[:2]] for row in tables["Policies"].rows] == [
        ["one backend", "sdpa"], ["one per phase", "flex for decode and sdpa for prefill and mixed"],
        ["one per step", "sdpa or flex"],
    ]  # fmt: skip
    assert tables["Policies"].head[2] == "s per hour"
    assert [str(row[0]) for row in tables["One backend for all steps"].rows] == ["sdpa", "flex"]
    assert [row[0] for row in tables["What to set"].rows] == ["vLLM", "sglang", "transformers"]
    assert [row[0] for row in tables["Steps by kind"].rows] == ["decode", "prefill", "mixed"]
    assert tables["Steps by context length"].rows[0][0] == "256..512"
    assert tables["Steps by context length"].rows[0][-1] == "–"  # no step of this length was drawn
    [*_, excluded] = tables["Backends that cannot run every step"].rows
    assert excluded == (
        "one per phase", "prefill and mixed", "sdpa:padded", "1 of 25", "out of memory: needs 18 GiB, limit 9.6 GiB",
    )  # fmt: skip
    assert [figure.name for figure in page.figures] == ["context"]
    assert page.text[0].startswith(
        "azure-like and tiny-llama: 5,000 steps in 2.00 h of traffic, of which 64 were drawn"
    )


def test_every_number_of_a_policy_has_its_interval(answer):
    single, phase, step = section(answer).tables[0].rows
    for row, policy in zip((single, phase, step), answer.totals.policies, strict=True):
        seconds = answer.totals.per_hour(policy.seconds)
        assert str(row[2]) == f"{seconds.value:.2f} {seconds.low:.2f}..{seconds.high:.2f}"
    assert str(single[3]) == "10 % 9.7 % .. 12 %"
    assert str(phase[3]) == "0.15 % 0 % .. 1.3 %"
    assert step[3] == "–"


def test_columns_of_intervals_are_left_out_of_the_terminal_where_no_row_has_one(answer):
    assert any(line.startswith("policy") and line.count("95 %") == 2 for line in terminal.lines(answer, 100))
    bare = [
        msgspec.structs.replace(
            policy, seconds=Estimate(value=policy.seconds.value),
            regret=policy.regret and Estimate(value=policy.regret.value),
        )
        for policy in answer.totals.policies
    ]  # fmt: skip
    totals = msgspec.structs.replace(answer.totals, policies=tuple(bare))
    lines = list(terminal.lines(msgspec.structs.replace(answer, totals=totals), 100))
    (head,) = (line for line in lines if line.startswith("policy"))
    assert head.split() == ["policy", "s", "per", "hour", "regret"]


def test_one_range_of_context_lengths_has_no_chart(answer):
    single = msgspec.structs.replace(answer.mix, by_context=answer.mix.by_context[:1])
    page = section(msgspec.structs.replace(answer, mix=single))
    assert not page.figures
    assert "Steps by context length" in {table.heading for table in page.tables}


def test_several_runs_are_told_apart(answer):
    page = section(answer, None, answer)
    assert page.finding.count(HEADLINE) == 2
    assert sum(table.heading.endswith("Policies") for table in page.tables) == 2
    assert len({table.heading for table in page.tables}) == len(page.tables)


def test_a_run_without_a_trace_has_no_section():
    page = section(None)
    assert page.empty
    assert not page.hint
    _, sections = pages.contents(report_data(one_winner(), traffic=[None]))
    assert "Your traffic" not in markdown.page(None, sections, "")


def test_a_report_reads_the_answer_beside_the_results_and_can_hide_its_names(answer, tmp_path: Path):
    run = one_winner()[0]
    run.path = store(run, tmp_path)
    traffic_answer.write(answer, run.path)
    shown, hidden = (
        report_directory.write([run], tmp_path / name, ReportOptions(plots=(), anonymize=hide))
        for name, hide in (("shown", False), ("hidden", True))
    )
    for folder in (shown, hidden):
        assert HEADLINE in (folder / "index.html").read_text(encoding="utf-8")
        assert (folder / "tables" / "traffic-policies.csv").is_file()
    assert "azure-like" in (shown / "report.md").read_text(encoding="utf-8")
    assert not any("azure-like" in path.read_text(encoding="utf-8") for path in hidden.rglob("*.md"))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_terminal_shows_every_part_within_its_width(answer, width):
    lines = list(terminal.lines(answer, width))
    assert max(map(cell_width, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for words in (
        "10.2 % more", "one per phase: flex for decode", "over fastest", "mixed", "2k..4k", "vLLM has no flag for sdpa",
        "sglang: --prefill-attention-backend", "sdpa:padded has no time for 1 of 64 drawn steps",
    ):  # fmt: skip
        assert words in text


def test_the_mix_of_a_simulation_has_no_column_of_measured_time():
    steps, _ = made_steps(1000)
    head, decode, *_ = terminal.mix(mix(steps), 80)
    assert head.split() == ["kind", "steps", "of", "steps", "predicted"]
    assert decode.split()[:2] == ["decode", str((steps.kinds == 0).sum())]


def test_the_first_screen_of_a_replay_is_the_answer_for_its_traffic(answer):
    runs, stored = one_winner(), (answer,)
    shown = pages.contents(report_data(runs, traffic=stored))[0]
    without = pages.contents(report_data(runs))[0]
    assert shown.headline == f"{answer.headline}."
    assert shown.lead.startswith(f"Each drawn step counted once: {without.headline}")
    assert not without.lead.startswith("Each drawn")


def test_a_kind_without_a_drawn_step_is_named(answer):
    parts = tuple(
        msgspec.structs.replace(part, measured_s=None if part.name == "prefill" else 1.0) for part in answer.mix.by_kind
    )
    lacking = msgspec.structs.replace(answer, mix=msgspec.structs.replace(answer.mix, by_kind=parts))
    steps = next(part.steps for part in parts if part.name == "prefill")
    expected = f"no prefill step was drawn, of {steps:,}: totals and intervals lack their time; draw more steps"
    assert lacking.cautions == (expected,)
    assert expected in " ".join(" ".join(terminal.lines(lacking, 200)).split())
    assert any(expected[1:] in line for line in section(lacking).text)


def test_too_few_draws_show_no_interval_and_how_many_more_are_needed():
    few = traffic(draws=16)
    assert few.totals.missing == 24
    assert "no difference" not in few.headline
    words = "16 drawn steps: intervals need 24 more (--steps 40, and --budget for the time)"
    assert words in " ".join(" ".join(terminal.lines(few, 200)).split())
    assert words[3:] in " ".join(section(few).text)
    assert ".." not in next(line for line in terminal.lines(few, 200) if line.startswith("one per phase "))


def test_an_answer_from_a_part_of_the_drawn_steps_says_so():
    whole, part = traffic(), traffic(lacking=14)
    assert part.totals.drawn == 50
    assert "of attention per hour of traffic, from 50 of 64 steps; sdpa alone takes" in part.headline
    assert part.cautions[0] == (
        "14 drawn steps not measured yet: the others are a random part of all, with wider intervals"
    )
    assert part.cautions[0] in " ".join(" ".join(terminal.lines(part, 200)).split())
    assert "of which 50 were measured, and 14 more drawn" in section(part).text[0]
    for all_steps, some in zip(whole.totals.totals, part.totals.totals, strict=True):
        assert some.seconds.value == pytest.approx(all_steps.seconds.value, rel=0.15)
        assert some.seconds.high / some.seconds.low > all_steps.seconds.high / all_steps.seconds.low


def test_an_answer_from_fewer_steps_than_intervals_need_has_none():
    part = traffic(lacking=30)
    assert part.totals.totals[0].seconds.low is None
    assert part.cautions[:2] == (
        "30 drawn steps not measured yet: the others are a random part of all",
        "34 drawn steps: intervals need 6 more; continue the run",
    )


def test_steps_that_stand_for_no_others_give_the_reason_in_place_of_an_answer():
    none = traffic(lacking=64)
    assert none.headline == "Too few drawn steps are measured"
    assert none.cautions == (
        "64 drawn steps not measured yet, and the others cannot stand for them: an answer needs 4 that are measured; "
        "continue the run",
    )


def test_one_backend_has_one_total_in_the_headline_and_in_the_table_of_backends(answer):
    """Where halves of the rounds choose differently, its policy is scored with others, and says so."""
    single = answer.totals.policy(PolicyName.SINGLE)
    seconds = Estimate(value=2 * single.seconds.value)
    changed = with_single(answer, over_phase=None, seconds=seconds, halves=("sdpa", "flex"))
    total = next(total for total in changed.totals.totals if total.backend == "sdpa")
    per_hour = changed.totals.per_hour(total.seconds).value
    assert f"sdpa takes {per_hour:.2f} s of attention" in changed.headline
    words = "one backend: sdpa; its seconds are of sdpa in half of the rounds and of flex in the others"
    assert words in " ".join(" ".join(terminal.lines(changed, 80)).split())
    assert words.replace(": sdpa;", ":") in section(changed).tables[0].note


@pytest.mark.parametrize(
    ("hours", "words", "unit", "value"),
    [
        (2, "take 5.00 s", "s", "4.998"),
        (0.02, "take 8 min 20 s", "min", "8.329"),
        (0.001428, "take 116 min 40 s", "min", "116.7"),
        (2e-4, "take 13.9 h", "h", "13.88"),
    ],
)
def test_times_per_hour_have_the_unit_of_the_headline_in_every_table(answer, hours, words, unit, value):
    long = msgspec.structs.replace(answer, totals=msgspec.structs.replace(answer.totals, hours=hours))
    assert words in long.headline
    policies, backends = section(long).tables[:2]
    assert (policies.head[2], backends.head[1]) == (f"{unit} per hour",) * 2
    shown = [line.split() for line in terminal.lines(long, 120)]
    assert [line[1:4] for line in shown if line[:1] in (["policy"], ["backend"])] == [[unit, "per", "hour"]] * 2
    assert next(line[3] for line in shown if line[:3] == ["one", "per", "phase"]) == value


def test_the_mix_shows_draws_and_the_interval_of_a_share(answer):
    tables = {table.heading: table for table in section(answer).tables}
    by_kind = tables["Steps by kind"]
    assert by_kind.head[-2:] == ("drawn", "measured")
    decode, prefill, _ = (part for part in answer.mix.by_kind)
    assert decode.share.low is not None
    assert str(by_kind.rows[0][-1]).count("%") == 3
    assert (prefill.share.low is None) == (prefill.drawn < 8)
    assert sum(int(row[-2]) for row in by_kind.rows) == answer.totals.drawn


def test_planning_is_shown_for_a_layer_of_the_backends_that_plan(answer):
    (line,) = (line for line in terminal.lines(answer, 200) if line.startswith("planning"))
    flex = next(total for total in answer.totals.totals if total.backend == "flex")
    assert line == f"planning a step, for each layer: flex 2.00 us ({100 * flex.planning:.1f} % of its time)"
    table = next(table for table in section(answer).tables if table.heading == "One backend for all steps")
    assert table.head[3] == "plan a layer, µs"
    assert [row[3] for row in table.rows] == ["–", "2.00"]


def test_a_column_of_regrets_has_one_unit_and_ratios_have_three_digits(answer):
    small, large = Estimate(value=0.015, low=0.0, high=0.02), Estimate(value=2.4, low=2.1, high=2.8)
    text = "\n".join(terminal.lines(with_single(answer, regret=large), 100))
    (single,) = (line for line in text.splitlines() if line.startswith("one backend "))
    assert single.endswith("3.4x  3.1x..3.8x")
    (phase,) = (line for line in text.splitlines() if line.startswith("one per phase "))
    assert "%" not in phase
    assert "1.5 %" in "\n".join(terminal.lines(with_single(answer, regret=small), 100))
    assert "regret: how much longer than the best backend of each step" in " ".join(text.split())


def test_a_number_has_as_many_digits_as_asked_for():
    assert [quantities.number(value, 4) for value in (60.0, 382.64, 1234.5, 0.9754)] == [
        "60.00", "382.6", "1234", "0.9754",
    ]  # fmt: skip
