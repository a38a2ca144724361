"""Charts as data: segments, refusals, panels, looks; and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli
from attnbench.analysis import comparison
from attnbench.analysis.rows import rows_of
from attnbench.attention.problem import Problem
from attnbench.records.ceilings import Point, Rate
from attnbench.records.result import Result, Status, sample
from attnbench.records.run_directory import Manifest, Run
from attnbench.report.charts import (
    accuracy,
    any_metric,
    best_backend,
    block_drift,
    drawing,
    latency,
    local_exponents,
    memory,
    rendering,
    roofline,
    run_ratios,
    run_trend,
    style,
    throughput,
)
from attnbench.report.pages.page import report_data
from attnbench.studies import scaling as study
from tests.samples import ceilings, result, timed

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

LENGTHS = (256, 512, 1024, 2048, 4096)


def sample_results(**fields: Any) -> list[Result]:
    """Results of naive, which fails at 1024, and of flash, under each of `masks`."""
    results = []
    for mask in fields.pop("masks", ("none",)):
        for n in LENGTHS:
            problem = Problem(seq_q=n, mask=mask, **fields)
            naive = [1e-9 * n * n * (1 + 0.01 * k) for k in range(6)] if n != 1024 else ()
            status = {} if naive else {"status": Status.OOM, "reason": "no memory"}
            results.append(result(naive, problem=problem, **status))
            results.append(result([5e-10 * n * n * (1 + 0.01 * k) for k in range(6)], "sdpa:flash", problem=problem))
    return results


def values(chart: Any, kind: str) -> list[dict[str, Any]]:
    """The rows of this kind in the chart's table."""
    spec = chart.to_dict()
    (table,) = spec["datasets"].values() if "datasets" in spec else [spec["data"]["values"]]
    return [row for row in table if row["kind"] == kind]


def test_no_line_crosses_a_case_that_is_missing() -> None:
    chart = latency.chart(rows_of(sample_results()), "")
    segments = {(row["arm"], row["x"]): row["segment"] for row in values(chart, "point")}
    assert segments["naive", 256] == segments["naive", 512] != segments["naive", 2048] == segments["naive", 4096]
    assert len({segments["sdpa:flash", n] for n in LENGTHS}) == 1


def test_what_was_refused_is_marked_with_its_reason() -> None:
    (cross,) = values(latency.chart(rows_of(sample_results()), ""), "refusal")
    assert (cross["x"], cross["arm"], cross["reason"]) == (1024, "naive", "oom: no memory")
    assert values(throughput.chart(rows_of(sample_results()), ""), "refusal") == []


def test_every_point_has_its_interval() -> None:
    points = values(latency.chart(rows_of(sample_results()), ""), "point")
    assert len(points) == 2 * len(LENGTHS) - 1
    assert all(row["low"] < row["y"] < row["high"] for row in points)
    rates = values(throughput.chart(rows_of(sample_results()), ""), "point")
    assert all(row["low"] < row["y"] < row["high"] for row in rates)


def test_every_other_axis_that_varies_gets_a_panel() -> None:
    rows = rows_of(sample_results(masks=("none", "causal")))
    panels = {row["panel"] for row in values(latency.chart(rows, ""), "point")}
    assert panels == {"none", "causal"}
    assert latency.chart(rows, "").to_dict()["columns"] == 2


def test_a_quantity_that_was_not_measured_has_no_chart() -> None:
    assert accuracy.chart(rows_of(sample_results()), "") is None
    assert memory.chart(rows_of(sample_results()), "") is None
    assert latency.chart([], "") is None


def test_axes_have_units_and_lengths_their_values() -> None:
    spec = json.dumps(latency.chart(rows_of(sample_results()), "").to_dict())
    assert "' ms'" in spec
    assert '"values": [256, 512, 1024, 2048, 4096]' in spec
    assert '"base": 2' in spec


def test_the_caption_has_what_all_cases_share() -> None:
    caption = drawing.caption_of(rows_of(sample_results(masks=("none", "causal"))), "0.1.0")
    assert caption.startswith("cpu:threads=1, fp32, fwd, batch 1, heads 8, head_dim 64")
    assert caption.endswith("attnbench 0.1.0")
    assert "causal" not in caption


@pytest.mark.parametrize("arm", [*style.KNOWN, "my.py:attend", "xformers:cutlass"])
def test_a_control_is_drawn_unlike_the_arm_that_it_copies(arm: str) -> None:
    assert style.look(arm) != style.look(f"{arm}#2")


def test_no_two_backends_look_alike() -> None:
    looks = [(look.color, look.shape, look.dash) for look in style.KNOWN.values()]
    assert len(set(looks)) == len(looks)


def test_known_backends_come_first_in_their_order() -> None:
    assert style.in_order(["z", "triton", "naive", "a", "sdpa:flash"]) == ["naive", "sdpa:flash", "triton", "a", "z"]


@pytest.mark.parametrize(("format_", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_same_data_gives_the_same_file(format_: str, begins: bytes) -> None:
    first, again = (rendering.render(latency.chart(rows_of(sample_results()), "x"), format_) for _ in range(2))
    assert first.startswith(begins)
    if format_ != "pdf":  # which holds the time of its making
        assert first == again


def test_a_file_has_a_white_background_and_inline_svg_has_none(tmp_path: Path) -> None:
    svg = rendering.inline(rendering.spec(latency.chart(rows_of(sample_results()), "")))
    (path,) = rendering.write({"latency": svg}, tmp_path, ("svg",))
    text = path.read_text()
    assert "sdpa:flash is fastest" in text
    assert "sequence length" in text
    assert 'fill="white"' in text
    assert 'fill="white"' not in svg


def test_markup_in_a_name_is_escaped() -> None:
    evil = [result([1e-3] * 5, "x</text><script>alert(1)</script>.py:f", problem=Problem(seq_q=n)) for n in (64, 128)]
    assert b"<script>" not in rendering.render(latency.chart(rows_of(evil), ""), "svg")


def test_panels_above_the_maximum_are_left_out_with_a_note() -> None:
    rows = [row for batch in range(1, 31) for row in rows_of(sample_results(batch=batch))]
    chart = latency.chart(rows, "below")
    panels = {row["panel"] for row in values(chart, "point")}
    assert panels == {f"batch {batch}" for batch in range(1, 13)}
    assert "12 of 30 panels; attnbench plot --only draws the others" in chart.to_dict()["title"]["subtitle"]


def test_many_points_are_thinned_and_the_first_and_the_last_stay() -> None:
    lengths = range(16, 16 * 4001, 16)
    rows = rows_of([result([1e-3] * 3, problem=Problem(seq_q=n)) for n in lengths])
    chart = latency.chart(rows, "")
    drawn = [row["x"] for row in values(chart, "point")]
    assert drawn == [*list(lengths)[::2], lengths[-1]]
    assert len({row["segment"] for row in values(chart, "point")}) == 1
    assert any("one of 2 values of seq_q shown" in line for line in chart.to_dict()["title"]["subtitle"])


def test_with_very_many_rows_charts_show_the_first_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for batch in range(1, 31) for row in rows_of(sample_results(batch=batch))]
    assert drawing.limit_rows(rows) == (rows, "")
    monkeypatch.setattr(drawing, "MAX_ROWS", 100)
    charted, left_out = drawing.limit_rows(rows)
    assert {row.batch for row in charted} == set(range(1, 13))
    assert left_out == "charts show 120 of 300 cases; attnbench plot --only draws the others"


def known_ceilings() -> dict[str, Any]:
    return {"cpu:threads=1": ceilings(matmul={"fp32": Rate(burst=3e11, sustained=2e11, size=512)})}


def test_rates_are_drawn_below_the_measured_peak() -> None:
    rows = rows_of(sample_results())
    (peak,) = values(throughput.chart(rows, "", known_ceilings()), "peak")
    assert (peak["y"], peak["label"]) == (3e11, "measured peak 300 GFLOP/s")
    assert values(throughput.chart(rows, ""), "peak") == []


def test_a_peak_far_above_is_named_below_the_title() -> None:
    far = {"cpu:threads=1": ceilings(name="NVIDIA H200", matmul={"fp32": Rate(burst=1e15, sustained=1e15, size=9)})}
    chart = throughput.chart(rows_of(sample_results()), "", far)
    assert values(chart, "peak") == []
    below = " ".join(chart.to_dict()["title"]["subtitle"])
    assert "measured peak 1.00 PFLOP/s (fp32) is far above" in below
    assert "data sheet 67.0 TFLOP/s (fp32) is far above" in below


def test_bars_become_lines_where_there_are_too_many() -> None:
    few = json.dumps(throughput.chart(rows_of(sample_results()), "").to_dict())
    many = [result([1e-3] * 3, problem=Problem(seq_q=n)) for n in range(64, 64 * 50, 64)]
    lines = json.dumps(throughput.chart(rows_of(many), "").to_dict())
    assert '"bar"' in few
    assert '"bar"' not in lines
    assert '"zero": true' in few
    assert '"zero": true' in lines


def with_memory() -> list[Result]:
    return [
        result((1e-3,) * 3, problem=Problem(seq_q=n), samples={"time": timed((1e-3,) * 3), "total_memory": peak})
        for n in LENGTHS
        for peak in [sample("B", [8.0 * n * n])]
    ]


def test_memory_has_guides_of_both_orders() -> None:
    guides = values(memory.chart(rows_of(with_memory()), ""), "guide")
    ends = {guide["label"]: guide["y"] for guide in guides if guide["last"]}
    start = 8.0 * 256 * 256
    assert ends == {"O(n)": start * 16, "O(n²)": start * 256}
    assert {guide["y"] for guide in guides if not guide["last"]} == {start}


def test_the_grid_names_the_best_backend_and_greys_ties() -> None:
    close = [result([1.0] * 6, problem=Problem(seq_q=n)) for n in (64, 128, 256)]
    close += [result([1.001] * 6, "sdpa:flash", problem=Problem(seq_q=n)) for n in (64, 128)]
    close += [result([0.5] * 6, "sdpa:flash", problem=Problem(seq_q=256), facts={"reference": "naive@cpu:threads=1"})]
    cells = values(best_backend.chart(rows_of(close), ""), "cell")
    assert [(cell["x"], cell["best"], cell["text"]) for cell in cells] == [
        (64, "tied", "~"), (128, "tied", "~"), (256, "sdpa:flash", "2x"),
    ]  # fmt: skip
    assert cells[0]["names"] == "naive, sdpa:flash"
    assert best_backend.chart(rows_of([result([1.0] * 6)]), "") is None


def test_local_exponents_are_those_of_the_laws() -> None:
    laws = list(study.laws(rows_of(sample_results())))
    points = values(local_exponents.chart(laws, ""), "point")
    assert {point["arm"] for point in points} == {"sdpa:flash", "naive"}
    assert all(point["y"] == pytest.approx(2.0) for point in points)
    assert "256 to 512" in {point["x"] for point in points}
    assert local_exponents.chart([], "") is None


def stored(results: list[Result], name: str) -> Run:
    manifest = Manifest(schema_version=1, attnbench="0", created_at="", suite="made", fingerprint="f")
    return Run(path=Path(name), manifest=manifest, results=results)


def test_ratios_are_sorted_by_effect_and_the_trend_by_run() -> None:
    fast, slower = [result([1.0, 1.01, 1.02], problem=Problem(seq_q=n)) for n in (64, 128)], []
    for factor, n in ((1.5, 64), (3.0, 128)):
        slower.append(result([factor, factor * 1.01, factor * 1.02], problem=Problem(seq_q=n)))
    pairs = comparison.compare(stored(fast, "a"), stored(slower, "b"))
    points = values(run_ratios.chart(pairs.pairs, "a", "b"), "point")
    assert [point["x"] for point in points] == [pytest.approx(3.0), pytest.approx(1.5)]
    assert all(point["low"] < point["x"] < point["high"] for point in points)
    trend = values(run_trend.chart([("b", pairs.geomeans), ("c", pairs.geomeans)]), "point")
    assert [(point["x"], point["y"]) for point in trend] == [
        ("b", pytest.approx(4.5**0.5)),
        ("c", pytest.approx(4.5**0.5)),
    ]
    assert run_trend.chart([("b", pairs.geomeans)]) is None


def test_noise_is_shown_block_by_block() -> None:
    run = stored([result([1.0, 1.0, 1.0, 2.0])], "a")
    (detail,) = report_data([run]).details
    assert [(block["x"], block["y"]) for block in detail.blocks] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]
    assert len(values(block_drift.chart(detail.blocks, "", ""), "point")) == 4
    assert block_drift.chart([], "", "") is None


def test_a_chosen_metric_has_the_chosen_axis_lines_and_panels() -> None:
    rows = rows_of(sample_results(masks=("none", "causal")))
    chart = any_metric.chart(rows, "seq_q", "flop_per_s", "mask", ("device",), "")
    points = values(chart, "point")
    assert {row["arm"] for row in points} == {"none", "causal"}
    assert {row["panel"] for row in points} == {"cpu:threads=1"}
    assert {row["y"] for row in points} == {row.flop_per_s for row in rows if row.flop_per_s}
    assert any_metric.chart(rows, "seq_q", "energy_j", "mask", None, "") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--x", "sq"], "--x: no column 'sq'; did you mean 'seq'"),
        (["--y", "tim_s"], "--y: no metric 'tim_s'; did you mean 'time_s'"),
        (["--facet", "maks"], "--facet: no column 'maks'; did you mean 'mask'"),
        (["-o", "p.gif"], "ends with none of .svg, .png, .pdf"),
        (["--y", "energy_j"], "it was not measured"),
    ],
)
def test_what_cannot_be_plotted_is_named(
    options: list[str], message: str, stored_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["plot", str(stored_run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_plot_of_a_stored_run(stored_run: str, tmp_path: Path) -> None:
    assert cli.invoke(["plot", str(stored_run), "--x", "seq", "--y", "time_s", "-o", str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_the_bound_bends_at_the_ridge() -> None:
    known = ceilings(
        matmul={"fp32": Rate(burst=1e12, sustained=9e11, size=512)},
        bandwidth={"read": (Point(bytes=2**30, rate=5e10),)},
    )
    ceilings_of_device = {"cpu:threads=1": known}
    rows = rows_of(sample_results(), ceilings=ceilings_of_device)
    chart = roofline.chart(rows, ceilings_of_device, "x")
    points, bound = values(chart, "point"), values(chart, "bound")
    assert {(row["x"], row["y"]) for row in points} == {(r.intensity, r.flop_per_s) for r in rows if r.time_s}
    assert [(row["x"], row["y"]) for row in bound][1:] == [(20.0, 1e12), (2 * max(row["x"] for row in points), 1e12)]
    assert bound[0]["y"] == pytest.approx(5e10 * bound[0]["x"])
    assert "comes nearest to its roofline bound" in json.dumps(chart.to_dict())
    assert rendering.render(chart, "svg").startswith(b"<svg")
    assert roofline.chart(rows_of(sample_results()), {}, "x") is None
