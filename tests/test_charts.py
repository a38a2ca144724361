"""Charts as data: segments, refusals, panels, looks; and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli, frame
from attnbench.attention.problem import Problem
from attnbench.ceilings import Point, Rate
from attnbench.report import charts, plots, style
from attnbench.result import Result, Status
from tests.samples import ceilings, result

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

LENGTHS = (256, 512, 1024, 2048, 4096)


def made(**fields: Any) -> list[Result]:
    """naive fails at 1024; flash does all; both under a mask or two."""
    found = []
    for mask in fields.pop("masks", ("none",)):
        for n in LENGTHS:
            problem = Problem(seq_q=n, mask=mask, **fields)
            naive = [1e-9 * n * n * (1 + 0.01 * k) for k in range(6)] if n != 1024 else ()
            status = {} if naive else {"status": Status.OOM, "reason": "no memory"}
            found.append(result(naive, problem=problem, **status))
            found.append(result([5e-10 * n * n * (1 + 0.01 * k) for k in range(6)], "sdpa:flash", problem=problem))
    return found


def values(chart: Any, kind: str) -> list[dict[str, Any]]:
    """The rows of the chart's table that are of this kind."""
    spec = chart.to_dict()
    (table,) = spec["datasets"].values() if "datasets" in spec else [spec["data"]["values"]]
    return [row for row in table if row["kind"] == kind]


def test_no_line_crosses_a_case_that_is_missing() -> None:
    chart = charts.latency(frame.rows(made()), "")
    segments = {(row["arm"], row["x"]): row["segment"] for row in values(chart, "point")}
    assert segments["naive", 256] == segments["naive", 512] != segments["naive", 2048] == segments["naive", 4096]
    assert len({segments["sdpa:flash", n] for n in LENGTHS}) == 1


def test_what_was_refused_is_marked_with_its_reason() -> None:
    (cross,) = values(charts.latency(frame.rows(made()), ""), "refusal")
    assert (cross["x"], cross["arm"], cross["reason"]) == (1024, "naive", "oom: no memory")
    assert values(charts.throughput(frame.rows(made()), ""), "refusal") == []


def test_every_point_has_its_interval() -> None:
    points = values(charts.latency(frame.rows(made()), ""), "point")
    assert len(points) == 2 * len(LENGTHS) - 1
    assert all(row["low"] < row["y"] < row["high"] for row in points)
    rates = values(charts.throughput(frame.rows(made()), ""), "point")
    assert all(row["low"] < row["y"] < row["high"] for row in rates)


def test_all_else_that_varies_gets_a_panel() -> None:
    rows = frame.rows(made(masks=("none", "causal")))
    panels = {row["panel"] for row in values(charts.latency(rows, ""), "point")}
    assert panels == {"none", "causal"}
    assert charts.latency(rows, "").to_dict()["columns"] == 2


def test_there_is_no_chart_of_what_nobody_measured() -> None:
    assert charts.error(frame.rows(made()), "") is None
    assert charts.memory(frame.rows(made()), "") is None
    assert charts.latency([], "") is None


def test_axes_have_units_and_lengths_their_values() -> None:
    spec = json.dumps(charts.latency(frame.rows(made()), "").to_dict())
    assert "' ms'" in spec
    assert '"values": [256, 512, 1024, 2048, 4096]' in spec
    assert '"base": 2' in spec


def test_the_caption_has_what_all_cases_share() -> None:
    said = charts.caption_of(frame.rows(made(masks=("none", "causal"))), "0.1.0")
    assert said.startswith("cpu:threads=1, fp32, fwd, batch 1, heads 8, head_dim 64")
    assert said.endswith("attnbench 0.1.0")
    assert "causal" not in said


@pytest.mark.parametrize("arm", [*style.KNOWN, "my.py:attend", "xformers:cutlass"])
def test_a_backend_looks_the_same_whoever_stands_beside_it(arm: str) -> None:
    assert style.look(arm) != style.look(f"{arm}#2")


def test_no_two_backends_look_alike() -> None:
    looks = [(look.color, look.shape, look.dash) for look in style.KNOWN.values()]
    assert len(set(looks)) == len(looks)


def test_known_backends_come_first_in_their_order() -> None:
    assert style.in_order(["z", "triton", "naive", "a", "sdpa:flash"]) == ["naive", "sdpa:flash", "triton", "a", "z"]


@pytest.mark.parametrize(("format_", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_same_data_gives_the_same_file(format_: str, begins: bytes) -> None:
    one, again = (plots.render(charts.latency(frame.rows(made()), "x"), format_) for _ in range(2))
    assert one.startswith(begins)
    if format_ != "pdf":  # which holds the time of its making
        assert one == again


def test_files_are_written_for_what_has_data(tmp_path: Path) -> None:
    names = [path.name for path in plots.write(frame.rows(made()), tmp_path, ("svg",))]
    assert names == ["latency.svg", "throughput.svg"]
    text = (tmp_path / "latency.svg").read_text()
    assert "sdpa:flash is fastest" in text
    assert "sequence length" in text


def test_a_name_that_would_be_markup_stays_text(tmp_path: Path) -> None:
    evil = [result([1e-3] * 5, "x</text><script>alert(1)</script>.py:f", problem=Problem(seq_q=n)) for n in (64, 128)]
    (path, *_) = plots.write(frame.rows(evil), tmp_path, ("svg",))
    assert "<script>" not in path.read_text()


def test_a_chart_of_ones_own_has_its_axes_and_lines() -> None:
    rows = frame.rows(made(masks=("none", "causal")))
    chart = charts.custom(rows, "seq_q", "flop_per_s", "mask", ("device",), "")
    points = values(chart, "point")
    assert {row["arm"] for row in points} == {"none", "causal"}
    assert {row["panel"] for row in points} == {"cpu:threads=1"}
    assert {row["y"] for row in points} == {row["flop_per_s"] for row in rows if row["flop_per_s"]}
    assert charts.custom(rows, "seq_q", "energy_j", "mask", None, "") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--x", "sq"], "--x: no column 'sq'; did you mean 'seq'"),
        (["--y", "tim_s"], "--y: no column 'tim_s'; did you mean 'time_s'"),
        (["--facet", "maks"], "--facet: no column 'maks'; did you mean 'mask'"),
        (["-o", "p.gif"], "ends with none of .svg, .png, .pdf"),
        (["--y", "energy_j"], "nothing of it was measured"),
    ],
)
def test_what_cannot_be_plotted_is_named(
    options: list[str], said: str, stored_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["plot", str(stored_run), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_plot_of_a_stored_run(stored_run: str, tmp_path: Path) -> None:
    assert cli.invoke(["plot", str(stored_run), "--x", "seq", "--y", "time_s", "-o", str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_the_roof_bends_where_memory_and_products_meet() -> None:
    known = ceilings(
        matmul={"fp32": Rate(burst=1e12, sustained=9e11, size=512)},
        bandwidth={"read": (Point(bytes=2**30, rate=5e10),)},
    )
    roofs = {"cpu:threads=1": known}
    rows = frame.rows(made(), roofs=roofs)
    chart = charts.roofline(rows, roofs, "x")
    points, roof = values(chart, "point"), values(chart, "roof")
    assert {(row["x"], row["y"]) for row in points} == {(r["intensity"], r["flop_per_s"]) for r in rows if r["time_s"]}
    assert [(row["x"], row["y"]) for row in roof][1:] == [
        (20.0, 1e12),
        (2 * max(row["x"] for row in points), 1e12),
    ]
    assert roof[0]["y"] == pytest.approx(5e10 * roof[0]["x"])
    assert "comes nearest to its roof" in json.dumps(chart.to_dict())
    assert plots.render(chart, "svg").startswith(b"<svg")
    assert charts.roofline(frame.rows(made()), {}, "x") is None
