"""How figures are drawn: looks, ticks, places of names, and their files."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attnbench import cli
from attnbench.analysis.rows import rows_of
from attnbench.attention.problem import Problem
from attnbench.report.charts import any_metric, axes, latency, rendering, sizes, standing, style, svg
from attnbench.report.charts.figure import Dot, Panel
from tests.report.charted import LENGTHS, marks, sample_results
from tests.samples import result


@given(st.lists(st.floats(0, 300), max_size=12), st.floats(1, 20))
def test_names_at_line_ends_are_far_enough_apart(heights: list[float], least: float) -> None:
    placed = svg.spread(heights, least, 0, 300)
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    gaps = [placed[after] - placed[before] for before, after in pairwise(order)]
    assert all(gap >= least - 1e-6 for gap in gaps)
    if least * len(heights) <= 300:
        assert all(-1e-6 <= value <= 300 + 1e-6 for value in placed)


@given(st.lists(st.floats(1e-9, 1e15), min_size=1, max_size=9), st.sampled_from(["s", "B", "x", "", "FLOP/s"]))
@example([1.192092896e-07], "")  # steps of 2.5e-08
def test_ticks_are_few_distinct_and_within_the_axis(values: list[float], unit: str) -> None:
    for axis in (axes.log_axis(values, unit, ""), axes.linear_axis(values, unit, "")):
        labels = [tick.text for tick in axis.ticks]
        assert len(set(labels)) == len(labels) <= axes.MAX_TICKS + 1
        assert all(axis.low * (1 - 1e-9) <= tick.at <= axis.high * (1 + 1e-9) for tick in axis.ticks)
        assert axis.low <= min(values) <= max(values) <= axis.high or not axis.log


@pytest.mark.parametrize("arm", [*style.KNOWN, "my.py:attend", "xformers:cutlass"])
def test_a_control_is_drawn_unlike_the_arm_that_it_copies(arm: str) -> None:
    looks = style.looks([arm, f"{arm}#2"])
    assert looks[arm] != looks[f"{arm}#2"]
    assert looks[arm].color == looks[f"{arm}#2"].color


def test_no_two_backends_look_alike() -> None:
    looks = [(look.color, look.shape, look.dash) for look in style.KNOWN.values()]
    assert len(set(looks)) == len(looks)


def test_a_kernel_of_a_user_gets_the_first_colour_that_no_other_uses() -> None:
    looks = style.looks(["naive", "sdpa:flash", "my.py:f", "my.py:g"])
    colors = [looks[arm].color for arm in ("naive", "sdpa:flash", "my.py:f", "my.py:g")]
    assert len(set(colors)) == 4
    assert colors[2] == next(color for color in style.COLORS if color not in (style.GREY, style.BLUE))
    assert len(style.looks(map(str, range(300)))) == 300


def contrast(color: str, paper: str) -> float:
    """The contrast ratio of WCAG 2.2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""

    def luminance(text: str) -> float:
        shares = [int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(color), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [style.light_colors(), style.dark_colors()], ids=["light", "dark"])
def test_marks_and_names_can_be_seen_in_both_themes(theme: dict[str, str]) -> None:
    for color in style.COLORS:
        assert contrast(theme[color.name], theme["paper"]) >= 3, color.name
        assert contrast(theme[f"{color.name}-text"], theme["paper"]) >= 4.5, color.name
    assert contrast(theme["soft"], theme["paper"]) >= 4.5


def test_known_backends_come_first_in_their_order() -> None:
    assert style.in_order(["z", "triton", "naive", "a", "sdpa:flash"]) == ["naive", "sdpa:flash", "triton", "a", "z"]


@pytest.mark.parametrize(("format_", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_same_data_gives_the_same_file(format_: str, begins: bytes) -> None:
    if format_ != "svg":
        pytest.importorskip("vl_convert")
    figure = latency.figure(rows_of(sample_results()))
    assert figure
    first, again = (rendering.render(figure, format_) for _ in range(2))
    assert first.startswith(begins)
    if format_ != "pdf":  # which holds the time of its making
        assert first == again


def test_a_file_has_colours_and_titles_and_inline_svg_the_variables_of_the_page(tmp_path: Path) -> None:
    figure = latency.figure(rows_of(sample_results()))
    assert figure
    (path,) = rendering.write([("latency", figure)], tmp_path, ("svg",))
    text = path.read_text()
    assert "Time of a call" in text
    assert "sequence length" in text
    assert "var(" not in text
    assert 'fill="#ffffff"' in text
    inside = svg.inline(figure.panels[0], style.looks(figure.arms), "no mask")
    assert 'color="var(--blue)"' in inside
    assert 'aria-label="no mask"' in inside


def test_a_backend_has_one_colour_in_every_file_of_a_report(tmp_path: Path) -> None:
    results = [result([1e-3] * 5, arm, problem=Problem(seq_q=n)) for n in LENGTHS for arm in ("a.py:f", "b.py:f")]
    both, alone = (latency.figure(rows_of(some)) for some in (results, results[1::2]))
    assert both
    assert alone
    arms = {"a.py:f", "b.py:f"}
    paths = rendering.write([("both", both), ("alone", alone)], tmp_path, ("svg",), arms)
    colors = [re.findall(r'data-arm="b.py:f" color="(#\w+)"', path.read_text())[0] for path in paths]
    assert colors[0] == colors[1] != re.findall(r'data-arm="a.py:f" color="(#\w+)"', paths[0].read_text())[0]


def test_every_mark_is_in_the_svg_where_its_values_say() -> None:
    figure = latency.figure(rows_of(sample_results()))
    assert figure
    panel = figure.panels[0]
    inside = svg.inline(panel, style.looks(figure.arms))
    flash = re.search(r'<g class="arm" data-arm="sdpa:flash".*?</g>', inside)
    assert flash
    diamonds = re.findall(r'<path d="M([\d.]+) ([\d.]+)L[^"]*z" fill="currentColor"[^>]*data-tip="([^"]*)"', flash[0])
    assert len(diamonds) == len(LENGTHS)
    width, height = panel.width - panel.margins.left - panel.margins.right, panel.height - 0.0
    for (x, y, tip), n in zip(diamonds, LENGTHS, strict=True):
        dot = next(d for d in marks(figure, Dot) if d.arm == "sdpa:flash" and d.x == n)
        assert float(x) == pytest.approx(panel.margins.left + panel.x.share(n) * width + dot.shift, abs=0.11)
        inner = height - panel.margins.top - panel.margins.bottom
        top = panel.margins.top + (1 - panel.y.share(dot.y)) * inner - 1.15 * svg.RADIUS
        assert float(y) == pytest.approx(top, abs=0.11)
        assert tip.startswith("sdpa:flash, ")


def test_markup_in_a_name_is_escaped() -> None:
    evil = [result([1e-3] * 5, "x</text><script>alert(1)</script>.py:f", problem=Problem(seq_q=n)) for n in (64, 128)]
    figure = latency.figure(rows_of(evil))
    assert figure
    assert b"<script>" not in rendering.render(figure, "svg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--x", "sq"], "--x: no column 'sq'; did you mean 'seq'"),
        (["--y", "tim_s"], "--y: no metric 'tim_s'; did you mean 'time_s'"),
        (["--facet", "maks"], "--facet: no column 'maks'; did you mean 'mask'"),
        (["-o", "p.gif"], "ends with none of .svg, .png, .pdf"),
        (["--y", "energy_j"], "it was not measured"),
        (["--size", "a4"], "--size a4: use column, page, or WIDTHxHEIGHT in mm from 40 to 1000"),
        (["--size", "9x9"], "--size 9x9: use column, page"),
    ],
)
def test_what_cannot_be_plotted_is_named(
    options: list[str], message: str, stored_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["plot", str(stored_run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_plot_with_a_panel_for_each_backend(stored_run: str, tmp_path: Path) -> None:
    file = tmp_path / "p.svg"
    assert cli.invoke(["plot", str(stored_run), "--color", "dtype", "--facet", "backend,mask", "-o", str(file)]) == 0
    assert ">sdpa:flash, causal mask</text>" in file.read_text()


def test_a_plot_of_a_stored_run(stored_run: str, tmp_path: Path) -> None:
    assert cli.invoke(["plot", str(stored_run), "--x", "seq", "--y", "time_s", "-o", str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("size", "width"), [("column", "85"), ("page", "178"), ("120x80", "120")])
def test_a_figure_for_paper_has_its_width_small_text_and_no_title(size: str, width: str) -> None:
    paper = sizes.parse(size)
    figure = any_metric.figure(
        rows_of(sample_results(masks=("none", "causal"))), "", "time_s", "arm_name", None, paper.panel
    )
    assert figure
    picture = rendering.Picture(figure, paper)
    head = re.match(
        r'<svg [^>]*width="([\d.]+)mm" height="([\d.]+)mm" viewBox="0 0 ([\d.]+) ([\d.]+)" font-size="([\d.]+)"',
        picture.text,
    )
    assert head
    millimetres, _, pixels, _, font = map(float, head.groups())
    assert head[1] == width
    points = font * millimetres / pixels * 72 / 25.4
    assert 7 <= points <= 8
    assert "Time" not in picture.text
    assert "95 % interval" in picture.caption


def test_a_size_in_millimetres_is_that_of_the_file() -> None:
    paper = sizes.parse("120x80")
    figure = any_metric.figure(rows_of(sample_results()), "", "time_s", "arm_name", None, paper.panel)
    assert figure
    height = re.search(r'height="([\d.]+)mm"', standing.picture(figure, font=paper.panel.font, bare=True, width_mm=120))
    assert height
    assert float(height[1]) == pytest.approx(80, abs=0.5)


def test_a_panel_without_a_range_is_drawn() -> None:
    figure = latency.figure(rows_of([result([1e-3] * 5)]))
    assert figure
    panel: Panel = figure.panels[0]
    assert "nan" not in svg.inline(panel, style.looks(figure.arms))
