"""The section of machines: shown for nodes of one hardware model, not for two versions of a kernel on one machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from attnbench.records.run_directory import Run
from attnbench.report import pages
from attnbench.report.charts.figure import Dot
from attnbench.report.formats.report_directory import ReportOptions, write
from attnbench.report.pages.page import Page, report_data
from tests.report.canned import one_winner, two_commits, two_machines
from tests.studies.test_fleet import GPU, measured, on_cluster


def section(*runs: Run) -> Page:
    _, sections = pages.contents(report_data(runs))
    return next(page for page in sections if page.name == "fleet")


def slow_c() -> Run:
    clocks = {name: 1e9 / (1.2 if name == "c" else 1) for name in "abc"}
    return on_cluster(*(measured(name, 0.2 * (name == "c"), sm_clock_hz=clock) for name, clock in clocks.items()))


def tagged(name: str, *, fingerprint: str = "aaaaaaaaaaaa", tag: bool = True, slower: float = 0.0) -> Run:
    """A run of a single machine."""
    stored = on_cluster(measured(name, slower))
    results = [msgspec.structs.replace(each, facts={}) for each in stored.results]
    manifest = msgspec.structs.replace(
        stored.manifest, nodes={}, tags={"node": name} if tag else {}, fingerprint=fingerprint, machine={"gpus": [GPU]}
    )
    return msgspec.structs.replace(stored, path=Path(f"run-{name}"), results=results, manifest=manifest)


def test_a_slow_node_is_named_with_its_cause_and_drawn_beside_the_others() -> None:
    page = section(slow_c())
    assert page.title == "Your machines"
    assert page.finding.startswith("c is slow: +2")
    assert page.finding.endswith("(SM clock 16.7 % lower)")
    (table,) = page.tables
    assert table.head == ("node", "time", "cases", "restarts", "verdict", "why")
    names = [str(row[0]) for row in table.rows]
    assert (names[0], set(names)) == ("c", {"a", "b", "c"})
    (figure,) = page.figures
    dots = [mark for mark in figure.panels[0].marks if isinstance(mark, Dot)]
    assert len(dots) == 3
    assert dots[0].x_ends
    axis = figure.panels[0].x
    assert axis.low < min(dot.x_ends[0] for dot in dots if dot.x_ends)
    assert {tick.text: tick.at for tick in axis.ticks}.items() >= {"0 %": 1.0, "+20 %": pytest.approx(1.2)}.items()
    assert 1.15 < dots[0].x_ends[0] < dots[0].x < dots[0].x_ends[1] < 1.25


def test_equal_nodes_have_a_finding_without_a_verdict() -> None:
    page = section(on_cluster(measured("a"), measured("b"), measured("c")))
    assert page.finding.startswith("No machine of 3 is slow: spread ")
    assert page.tables[0].head == ("node", "time", "cases", "restarts")


def test_hardware_models_are_apart_and_a_node_without_another_is_named() -> None:
    gpus = on_cluster(measured("a"), measured("b"), measured("c", device="cpu:threads=1"))
    others = on_cluster(measured("d"), measured("e"), measured("f", backends=("flex",)), model="NVIDIA L4")
    page = section(gpus, others)
    assert page.tables[0].head[0] == "hardware"
    assert {str(row[0]) for row in page.tables[0].rows} == {GPU, "NVIDIA L4"}
    assert any(text == "NVIDIA L4: no case in common with another node: f." for text in page.text)


def test_runs_of_single_machines_are_nodes_by_their_tag_or_fingerprint() -> None:
    assert section(tagged("a", slower=0.2), tagged("b")).finding.startswith("a is slow: +2")
    apart = tagged("a", tag=False, fingerprint="a"), tagged("b", tag=False, fingerprint="b")
    assert {str(row[0]) for row in section(*apart).tables[0].rows} == {"run-a", "run-b"}


def test_a_run_whose_manifest_lacks_its_nodes_has_the_section() -> None:
    """The driver was killed before it stored them, by an earlier version."""
    stored = on_cluster(measured("a", 0.2), measured("b"))
    manifest = msgspec.structs.replace(stored.manifest, nodes={}, machine={"gpus": [GPU]})
    assert section(msgspec.structs.replace(stored, manifest=manifest)).finding.startswith("a is slow: +2")


def test_runs_of_two_nodes_with_one_fingerprint_have_the_names_of_the_nodes() -> None:
    assert report_data([tagged("a"), tagged("b")]).names == ("a", "b")
    assert report_data([tagged("a"), tagged("a")]).names == ("old", "new")


def test_runs_of_one_machine_and_of_two_models_have_no_section() -> None:
    for runs in (one_winner(), two_commits(), two_machines(), [tagged("a", tag=False), tagged("b", tag=False)]):
        page = section(*runs)
        assert page.empty
        assert not page.hint


def test_an_anonymous_report_numbers_the_nodes(tmp_path: Path) -> None:
    options = ReportOptions(anonymize=True, plots=())
    names = ("10.77.0.1", "10.77.0.2", "secret-host")
    stored = on_cluster(*(measured(name, 0.2 * (name == "secret-host")) for name in names))
    for number, runs in enumerate(([stored], [tagged("10.77.0.1"), tagged("secret-host")])):
        folder = write(runs, tmp_path / str(number), options)
        texts = [path.read_text() for path in folder.rglob("*") if path.suffix in (".html", ".md", ".json", ".csv")]
        assert any("Your machines" in text for text in texts)
        assert any("node 2" in text for text in texts)
        assert not [name for name in names for text in texts if name in text]
