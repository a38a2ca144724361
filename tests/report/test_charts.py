"""Charts as data: segments, missing points, panels, looks; and their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.analysis import comparison
from attnbench.analysis.rows import Row, rows_of
from attnbench.attention.problem import Problem
from attnbench.errors import UsageError
from attnbench.records.ceilings import Point, Rate
from attnbench.records.result import Result, Status, sample
from attnbench.records.run_directory import Manifest, Run
from attnbench.report.charts import (
    accuracy,
    any_metric,
    block_spread,
    forest,
    latency,
    local_exponents,
    memory,
    panels,
    roofline,
    run_ratios,
    run_trend,
    speedup,
    style,
    svg,
    throughput,
)
from attnbench.report.charts.figure import Dot, Line, Note, Rule
from attnbench.report.pages import places, tables
from attnbench.studies import scaling as study
from attnbench.suite.cells import _shape_of_requests
from tests.report.charted import LENGTHS, marks, sample_results, texts
from tests.samples import ceilings, result, timed


def test_no_line_crosses_a_case_that_is_missing() -> None:
    lines = marks(latency.figure(rows_of(sample_results())), Line)
    assert [[x for x, _ in line.points] for line in lines if line.arm == "naive"] == [[256, 512], [2048, 4096]]
    assert [[x for x, _ in line.points] for line in lines if line.arm == "sdpa:flash"] == [list(LENGTHS)]


def test_a_missing_point_has_a_word_at_its_place() -> None:
    (note,) = (note for note in marks(latency.figure(rows_of(sample_results())), Note) if note.italic)
    assert (note.x, note.arm, note.text) == (1024, "naive", "OOM")


def test_what_no_arm_measured_is_said_once_in_grey() -> None:
    results = [
        result([1e-3] * 5 if n < 1024 else (), arm, problem=Problem(seq_q=n), **skipped)
        for n in (256, 512, 1024)
        for arm in ("naive", "sdpa:flash")
        for skipped in [{} if n < 1024 else {"status": Status.SKIPPED, "reason": "budget"}]
    ]
    figure = latency.figure(rows_of(results))
    (note,) = (note for note in marks(figure, Note) if note.italic)
    assert (note.text, note.arm) == ("budget", "")
    assert [rule.at for rule in marks(figure, Rule)] == [1024]


def test_an_arm_without_a_line_in_a_panel_is_named_at_its_word() -> None:
    skipped: dict[str, Any] = {"status": Status.SKIPPED, "reason": "budget"}
    results = [
        result([1e-3] * 5, problem=Problem(seq_q=n, mask=mask)) for mask in ("none", "causal") for n in (64, 128)
    ]
    results += [
        result([1e-3] * 5, "flex", problem=Problem(seq_q=64)),
        result((), "flex", problem=Problem(seq_q=128), **skipped),
    ]
    results += [result((), "flex", problem=Problem(seq_q=n, mask="causal"), **skipped) for n in (64, 128)]
    figure = latency.figure(rows_of(results))
    words = [[note.text for note in marks(figure, Note, panel) if note.italic] for panel in (0, 1)]
    assert words == [["budget"], ["flex: budget"]]


def test_every_point_has_its_interval_and_a_caption_claims_no_other() -> None:
    rows = rows_of(sample_results())
    dots = marks(latency.figure(rows), Dot)
    assert len(dots) == 2 * len(LENGTHS) - 1
    assert all(dot.y_ends[0] < dot.y < dot.y_ends[1] for dot in dots)
    assert all(dot.y_ends[0] < dot.y < dot.y_ends[1] for dot in marks(throughput.figure(rows), Dot))
    assert "95 %" in latency.figure(rows).caption  # type: ignore[union-attr]
    once = latency.figure(rows_of([result([1e-3], problem=Problem(seq_q=n)) for n in LENGTHS]))
    assert once
    assert "95 %" not in once.caption


def test_every_other_axis_that_varies_gets_a_panel_in_the_same_order_everywhere() -> None:
    rows = rows_of(sample_results(masks=("none", "causal")))
    for figure in (latency.figure(rows), throughput.figure(rows)):
        assert figure
        assert [panel.heading for panel in figure.panels] == ["no mask", "causal mask"]


def test_prefill_and_decode_are_never_joined() -> None:
    problems = [Problem(seq_q=n, mask="causal") for n in LENGTHS]
    problems += [Problem(seq_q=1, seq_kv=n, mask="causal", batch=batch) for n in LENGTHS for batch in (1, 8)]
    figure = latency.figure(rows_of([result([1e-3] * 5, problem=problem) for problem in problems]))
    assert figure
    assert [panel.heading for panel in figure.panels] == ["prefill, batch 1", "decode, batch 1", "decode, batch 8"]
    assert all([x for x, _ in line.points] == list(LENGTHS) for n in range(3) for line in marks(figure, Line, n))


def test_numbers_that_follow_others_need_no_panel() -> None:
    rows = rows_of(
        [result([1e-3] * 5, problem=Problem(seq_q=n, heads=h, head_dim=64)) for n in LENGTHS for h in (4, 8)]
    )
    assert panels.layout(rows).columns == ("heads",)
    grouped = [Problem(seq_q=512 * kv, heads=8, kv_heads=kv) for kv in (1, 2, 4)]
    assert "kv_heads" in panels.layout(rows_of([result([1e-3] * 5, problem=each) for each in grouped])).columns


def served(*texts: str) -> list[Row]:
    problems = [Problem(**_shape_of_requests(text), mask="causal") for text in texts]
    return rows_of([result([1e-3] * 5, problem=problem) for problem in problems])


def test_batches_of_requests_are_drawn_over_the_keys_of_all() -> None:
    """One panel for decode, and one for batches with a prefill, whose longest requests are alike."""
    rows = served("8q1s512", "2q1s512", "q512", "q512_4q1s512")
    layout = panels.layout(rows)
    assert (layout.axis, layout.columns) == ("tokens_kv", ("phase",))
    assert [row.number(layout.axis) for row in rows] == [4096, 1024, 512, 2560]
    assert panels.axis_title(layout.axis, rows) == "number of keys of all requests"
    figure = latency.figure(rows)
    assert figure
    assert [panel.heading for panel in figure.panels] == ["decode", "requests"]
    assert [[x for x, _ in marks(figure, Line, n)[0].points] for n in range(2)] == [[1024, 4096], [512, 2560]]
    assert tables.problem(rows[0], layout) == ("decode", "8q1s512")
    assert tables.head(rows, layout) == ["phase", "requests"]
    assert places.at(rows[3], layout) == "for requests q512_4q1s512"
    assert places.of(rows[3], layout) == "requests q512_4q1s512"
    assert places.of(rows[0], layout) == "decode, requests 8q1s512"
    # Batches with as many keys need panels of their own, and so does one beside equal lengths.
    assert panels.layout(served("8q1s512", "4q1s1k")).columns == ("requests",)
    assert panels.layout([*rows, *rows_of([result([1e-3] * 5)])]).axis != "tokens_kv"


def test_a_chart_over_the_longest_request_says_so() -> None:
    rows = served(*(f"q1s9_q1s{keys}" for keys in (64, 256, 512)))
    assert panels.axis_title("seq_kv", rows) == "number of keys of the longest request"
    assert panels.axis_title("seq_kv", [*rows, *rows_of([result([1e-3] * 5)])]) == "number of keys"


def test_a_label_of_requests_says_their_lengths_once() -> None:
    served = [
        Problem(seq_q=1, seq_kv=keys, requests=f"q1s{keys}", mask=mask)
        for keys in (64, 1147)
        for mask in ("none", "causal")
    ]
    rows = rows_of([result([1e-3] * 5, problem=problem) for problem in served])
    places = [panels.layout(rows).place(row) for row in rows]
    assert places[:2] == [("no mask", "q1s64"), ("causal mask", "q1s64")]
    assert places[-1] == ("causal mask", "q1s1147")
    plain = rows_of([result([1e-3] * 5, problem=Problem(seq_q=64, mask=mask)) for mask in ("none", "causal")])
    assert [panels.layout(plain).place(row) for row in plain] == [("no mask", "64"), ("causal mask", "64")]


def test_facets_that_would_join_problems_are_refused_with_the_one_to_add() -> None:
    rows = rows_of(sample_results(masks=("none", "causal")))
    with pytest.raises(UsageError, match=r"differ in mask .* use --facet device,mask"):
        panels.layout(rows, "seq_kv", ("device",))
    assert panels.layout(rows, "seq_kv", ("mask",)).columns == ("mask",)


lengths = st.sampled_from([1, 64, 128, 192, 256])
problems = st.builds(
    lambda q, kv, **rest: Problem(seq_q=min(q, kv), seq_kv=kv, **rest), lengths, lengths,
    batch=st.sampled_from([1, 2]), heads=st.sampled_from([4, 8]), kv_heads=st.sampled_from([1, 4]),
    mask=st.sampled_from(["none", "causal"]), head_dim=st.sampled_from([16, 32]),
)  # fmt: skip


def some_rows(cases: Sequence[tuple[Problem, str, bool]]) -> list[Row]:
    return rows_of([
        result([1e-3] * 5 if ok else (), arm, problem=problem, **({} if ok else {"status": Status.OOM, "reason": "x"}))
        for problem, arm, ok in cases
    ])  # fmt: skip


arms = st.sampled_from(["naive", "sdpa:flash", "my.py:f"])
cases_of_run = st.lists(
    st.tuples(problems, arms, st.booleans()), min_size=1, max_size=25, unique_by=lambda case: (case[0], case[1])
)


@given(cases_of_run)
def test_no_place_of_a_chart_stands_for_two_problems(cases: list[tuple[Problem, str, bool]]) -> None:
    rows = some_rows(cases)
    for axis in ("", "batch", "seq_q", "head_dim"):
        layout = panels.layout(rows, axis)
        places: dict[tuple[object, ...], set[str]] = {}
        for row in rows:
            places.setdefault((layout.panel(row), row.value(layout.axis)), set()).add(row.problem)
        assert all(len(problems) == 1 for problems in places.values())


@given(cases_of_run)
def test_every_measured_case_is_one_mark_at_its_place(cases: list[tuple[Problem, str, bool]]) -> None:
    rows = some_rows(cases)
    figure = latency.figure(rows)
    measured = [row for row in rows if row.time_s]
    if figure is None:
        assert not measured
        return
    layout = panels.layout(rows)
    groups = [group for group in layout.panels(rows).values() if any(row.time_s for row in group)]
    for panel, group in zip(figure.panels, groups, strict=False):
        drawn = Counter((mark.arm, mark.x) for mark in panel.marks if isinstance(mark, Dot))
        assert drawn == Counter((row.arm_name, row.value(layout.axis)) for row in group if row.time_s)


def test_ticks_have_units_and_lengths_their_values() -> None:
    figure = latency.figure(rows_of(sample_results()))
    assert figure
    assert [tick.text for tick in figure.panels[0].x.ticks] == ["256", "512", "1k", "2k", "4k"]
    assert {tick.text for tick in figure.panels[0].y.ticks} == {"100 µs", "1 ms", "10 ms"}
    many = latency.figure(rows_of([result([1e-3] * 3, problem=Problem(seq_q=n)) for n in range(100, 4100, 100)]))
    assert many
    assert len(many.panels[0].x.ticks) < 12  # as many as fit


def test_a_quantity_that_was_not_measured_has_no_chart() -> None:
    assert accuracy.figure(rows_of(sample_results())) is None
    assert memory.figure(rows_of(sample_results())) is None
    assert speedup.figure(rows_of([result([1e-3] * 5)])) is None
    assert latency.figure([]) is None


def test_more_than_six_arms_have_a_legend_and_more_than_eight_lengths_a_band() -> None:
    results = [
        result([1e-3, 1.1e-3, 1.2e-3], f"k.py:f{arm}", problem=Problem(seq_q=n)) for n in LENGTHS for arm in range(7)
    ]
    figure = latency.figure(rows_of(results))
    assert figure
    assert figure.legend
    assert "<text" in svg.inline(figure.panels[0], style.looks(figure.arms))
    assert not [note for note in marks(figure, Note) if note.bold]
    long = latency.figure(rows_of([result([1e-3, 1.1e-3] * 3, problem=Problem(seq_q=64 * n)) for n in range(1, 11)]))
    assert all(dot.y_ends is None for dot in marks(long, Dot))


def test_rows_of_a_run_with_very_many_backends_stay_readable() -> None:
    results = [result([1.0] * 6, problem=Problem(seq_q=64))]
    facts = {"reference": "naive@cpu:threads=1"}
    results += [result([0.5] * 6, f"k.py:f{number}", problem=Problem(seq_q=64), facts=facts) for number in range(300)]
    figure = speedup.figure(rows_of(results))
    assert figure
    assert figure.panels[0].height < 400
    assert figure.left_out == "the first 12 of 300 backends; the table has all"


def test_two_kernels_with_the_name_of_one_function_have_two_names() -> None:
    facts = {"reference": "naive@cpu:threads=1"}
    results = [result([1.0] * 6, problem=Problem(seq_q=64))]
    results += [
        result([0.5] * 6, name, problem=Problem(seq_q=64), facts=facts)
        for name in ("kernels/a.py:attend", "kernels/b.py:attend", "sdpa:flash")
    ]
    figure = speedup.figure(rows_of(results))
    assert figure
    names = {note.arm: note.text for note in marks(figure, Note) if note.arm}
    assert names["sdpa:flash"] == "flash"
    first, second = names["kernels/a.py:attend"], names["kernels/b.py:attend"]
    assert first.startswith("a.py")
    assert second.startswith("b.py")
    assert forest.short_names(["x/a.py:f", "y/a.py:f"]) == {"x/a.py:f": "x/a.py:f", "y/a.py:f": "y/a.py:f"}


def test_panels_above_the_maximum_are_left_out_with_a_note() -> None:
    rows = [row for batch in range(1, 31) for row in rows_of(sample_results(batch=batch))]
    figure = latency.figure(rows)
    assert figure
    assert [panel.heading for panel in figure.panels] == [f"batch {batch}" for batch in range(1, 13)]
    assert figure.left_out == "12 of 30 panels; attnbench plot --only draws the others"


def known_ceilings() -> dict[str, Any]:
    return {"cpu:threads=1": ceilings(matmul={"fp32": Rate(burst=3e12, sustained=2e12, size=512)})}


def test_rates_are_drawn_below_the_measured_peak() -> None:
    rows = rows_of(sample_results())
    (peak,) = marks(throughput.figure(rows, known_ceilings()), Rule)
    assert (peak.at, peak.along, peak.text) == (3e12, "y", "measured peak 3.00 TFLOP/s (fp32)")
    figure = throughput.figure(rows, known_ceilings())
    assert figure
    assert figure.panels[0].y.low == 0
    assert figure.panels[0].y.high > 3e12


def test_a_peak_far_above_is_named_in_the_caption() -> None:
    far = {"cpu:threads=1": ceilings(name="NVIDIA H200", matmul={"fp32": Rate(burst=1e15, sustained=1e15, size=9)})}
    figure = throughput.figure(rows_of(sample_results()), far)
    assert figure
    assert marks(figure, Rule) == []
    assert "far above: measured peak 1.00 PFLOP/s (fp32), data sheet 67.0 TFLOP/s (fp32)" in figure.caption


def with_memory() -> list[Result]:
    return [
        result((1e-3,) * 3, problem=Problem(seq_q=n), samples={"time": timed((1e-3,) * 3), "total_memory": peak})
        for n in LENGTHS
        for peak in [sample("B", [8.0 * n * n])]
    ]


def test_memory_has_guides_of_both_orders_within_the_axis() -> None:
    figure = memory.figure(rows_of(with_memory()))
    assert figure
    start = 8.0 * 256 * 256
    linear, square = (line.points for line in marks(figure, Line) if not line.arm)
    assert linear == ((256, start), (4096, start * 16))
    assert square == ((256, start), (4096, start * 256))
    assert all(y <= figure.panels[0].y.high for line in (linear, square) for _, y in line)


def test_a_speed_up_has_one_row_a_problem_and_its_number() -> None:
    close = [result([1.0] * 6, problem=Problem(seq_q=n)) for n in (64, 128, 256)]
    close += [
        result([factor] * 6, "sdpa:flash", problem=Problem(seq_q=n), facts={"reference": "naive@cpu:threads=1"})
        for n, factor in ((64, 1.0), (128, 2.0), (256, 0.5))
    ]
    figure = speedup.figure(rows_of(close))
    assert figure
    assert [dot.x for dot in marks(figure, Dot)] == [1.0, 0.5, 2.0]
    assert {"64", "128", "256", "0.50×", "2.0×", "← slower", "faster →"} <= set(texts(figure))
    assert {dot.arm for dot in marks(figure, Dot)} == {"sdpa:flash"}
    assert figure.narrow[0].width < figure.panels[0].width


def test_errors_are_dots_before_the_limit() -> None:
    rows = rows_of([
        result([1e-3] * 5, arm, problem=Problem(seq_q=n), facts={"errors": {"out": error}})
        for arm, ratio in (("naive", 1.0), ("sdpa:flash", 1.7))
        for n in (64, 128)
        for error in [{"max_abs": ratio, "plain_max": 1.0}]
    ])  # fmt: skip
    figure = accuracy.figure(rows)
    assert [(dot.arm, dot.x) for dot in marks(figure, Dot)] == [("naive", 1.0)] * 2 + [("sdpa:flash", 1.7)] * 2
    assert [(rule.at, rule.text) for rule in marks(figure, Rule)] == [(2.0, "limit")]


def test_of_many_errors_the_largest_stay() -> None:
    rows = rows_of(
        [
            result(
                [1e-3] * 5,
                problem=Problem(seq_q=n + 1),
                facts={"errors": {"out": {"max_abs": n / 500, "plain_max": 1.0}}},
            )
            for n in range(1000)
        ]
    )
    figure = accuracy.figure(rows)
    values = sorted((dot.x for dot in marks(figure, Dot)), reverse=True)
    assert len(values) <= accuracy.MAX_DOTS
    assert values[: accuracy.MAX_LARGEST] == [n / 500 for n in range(999, 979, -1)]
    assert figure
    assert figure.left_out == f"{len(values)} of 1000 cases, the largest errors among them"


def test_local_exponents_are_those_of_the_laws() -> None:
    laws = list(study.laws(rows_of(sample_results())))
    figure = local_exponents.figure(laws)
    dots = marks(figure, Dot)
    assert {dot.arm for dot in dots} == {"sdpa:flash", "naive"}
    assert all(dot.y == pytest.approx(2.0) for dot in dots)
    assert figure
    assert figure.panels[0].x.ticks[0].text == "256 to 512"
    assert local_exponents.figure([]) is None


def stored(results: list[Result], name: str) -> Run:
    manifest = Manifest(schema_version=1, attnbench="0", created_at="", suite="made", fingerprint="f")
    return Run(path=Path(name), manifest=manifest, results=results)


def test_ratios_stand_by_problem_and_the_trend_by_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slower = [result([1.0, 1.01, 1.02], problem=Problem(seq_q=n)) for n in (64, 128)], []
    for factor, n in ((1.5, 64), (3.0, 128)):
        slower.append(result([factor, factor * 1.01, factor * 1.02], problem=Problem(seq_q=n)))
    pairs = comparison.compare(stored(fast, "a"), stored(slower, "b"))
    dots = marks(run_ratios.figure(pairs.pairs, rows_of(slower), "a", "b"), Dot)
    assert [dot.x for dot in dots] == [pytest.approx(1.5), pytest.approx(3.0)]
    assert all(dot.x_ends[0] < dot.x < dot.x_ends[1] for dot in dots)
    monkeypatch.setattr(run_ratios, "MAX_ROWS", 1)
    figure = run_ratios.figure(pairs.pairs, rows_of(slower), "a", "b")
    assert [dot.x for dot in marks(figure, Dot)] == [pytest.approx(3.0)]
    assert figure
    assert figure.left_out == "the 1 problems with the largest effects of 2"
    trend = run_trend.figure([("b", pairs.geomeans), ("c", pairs.geomeans)])
    assert [(dot.x, dot.y) for dot in marks(trend, Dot)] == [(0, pytest.approx(4.5**0.5)), (1, pytest.approx(4.5**0.5))]
    assert run_trend.figure([("b", pairs.geomeans)]) is None


class Case:
    """A case of `block_spread`."""

    def __init__(self, label: str, *blocks: float) -> None:
        self.label, self.blocks, self.arm, self.noisy = label, blocks, "naive", max(blocks) > 1.25


def test_noise_is_a_dot_a_block_the_widest_case_first() -> None:
    figure = block_spread.figure([Case("quiet", 1.0, 1.01, 0.99), Case("wide", 1.0, 1.0, 2.0), Case("once", 1.0)])
    assert [(dot.x, dot.y) for dot in marks(figure, Dot)] == [
        (1.0, 0.5), (1.0, 0.5), (2.0, 0.5), (1.0, 1.5), (1.01, 1.5), (0.99, 1.5),
    ]  # fmt: skip
    assert texts(figure) == ["wide !", "quiet"]
    assert block_spread.figure([]) is None


def test_a_chosen_metric_has_the_chosen_axis_lines_and_panels() -> None:
    rows = rows_of(sample_results(masks=("none", "causal")))
    figure = any_metric.figure(rows, "seq_q", "flop_per_s", "mask", None)
    assert figure
    assert [panel.heading for panel in figure.panels] == ["naive", "sdpa:flash"]
    dots = [dot for number in (0, 1) for dot in marks(figure, Dot, number)]
    assert {dot.arm for dot in dots} == {"none", "causal"}
    assert {dot.y for dot in dots} == {row.flop_per_s for row in rows if row.flop_per_s}
    assert any_metric.figure(rows, "seq_q", "energy_j", "mask", None) is None


def test_the_bound_bends_at_the_ridge() -> None:
    known = ceilings(
        matmul={"fp32": Rate(burst=1e12, sustained=9e11, size=512)},
        bandwidth={"read": (Point(bytes=2**30, rate=5e10),)},
    )
    ceilings_of_device = {"cpu:threads=1": known}
    rows = rows_of(sample_results(), ceilings=ceilings_of_device)
    figure = roofline.figure(rows, ceilings_of_device)
    dots = marks(figure, Dot)
    (bound,) = (line.points for line in marks(figure, Line) if not line.arm)
    assert {(dot.x, dot.y) for dot in dots} == {(r.intensity, r.flop_per_s) for r in rows if r.time_s}
    assert list(bound[1:]) == [(20.0, 1e12), (2 * max(dot.x for dot in dots), 1e12)]
    assert bound[0][1] == pytest.approx(5e10 * bound[0][0])
    assert "of its bound" in dots[0].tip
    assert roofline.figure(rows_of(sample_results()), {}) is None
