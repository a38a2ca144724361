"""The report as one HTML file, and its folder."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attnbench import cli
from attnbench.attention.problem import Problem
from attnbench.errors import StoreError
from attnbench.records.result import Result, Status
from attnbench.records.run_directory import Manifest, Run
from attnbench.report import pages
from attnbench.report.charts import rendering
from attnbench.report.formats.report_directory import ReportOptions, write
from attnbench.report.pages.page import report_data
from tests.samples import ceilings, result

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

EVIL = "x</script><img src=http://a.b/c onerror=alert(1)>.py:f"


class Reader(HTMLParser):
    """What a browser would see: elements, and the addresses that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [str(values["href"])] if tag == "a" else []
        self.loads += [str(values[name]) for name in ("src", "srcset", "data", "action") if values.get(name)]
        self.loads += [str(values["href"])] if tag in ("link", "image", "use") and values.get("href") else []


def run(tmp_path: Path, *results: Result, **fields: Any) -> Run:
    """A run in memory, with a folder to write to."""
    plain = {"schema_version": 1, "attnbench": "0.1.0", "created_at": "2026-11-21", "suite": "made", "fingerprint": "f"}
    return Run(path=tmp_path / "run", manifest=Manifest(**{**plain, **fields}), results=list(results))


def several(backend: str = "sdpa:flash") -> list[Result]:
    """Five lengths of two backends; one of them fails once."""
    results = []
    for n in (256, 512, 1024, 2048, 4096):
        problem = Problem(seq_q=n)
        naive = [1e-9 * n * n * (1 + 0.01 * k) for k in range(6)] if n != 1024 else ()
        results.append(
            result(naive, problem=problem, **({} if naive else {"status": Status.OOM, "reason": "no memory"}))
        )
        results.append(result([5e-10 * n * n * (1 + 0.01 * k) for k in range(6)], backend, problem=problem))
    return results


def written(tmp_path: Path, *results: Result, options: ReportOptions | None = None, **fields: Any) -> str:
    """The page of these results."""
    where = write([run(tmp_path, *results, **fields)], tmp_path / "out", options or ReportOptions(plots=("svg",)))
    return (where / "index.html").read_text()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without charts, which take most of the time."""
    monkeypatch.setattr(rendering, "available", lambda: False)


def test_the_page_loads_nothing_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    text = written(tmp_path, *several())
    seen = Reader(text)
    assert seen.loads == []
    assert "default-src 'none'" in text
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)
    assert len(text) < 6e6


def test_every_chart_is_inline_svg_for_pages_without_scripts(tmp_path: Path) -> None:
    text = written(tmp_path, *several())
    tags = Reader(text).tags
    drawn = [
        "latency/latency",
        "quality/noise",
        "scaling/slopes",
        "summary/best",
        "summary/latency",
        "throughput/throughput",
    ]
    assert tags.count("figure") == tags.count("svg") == len(drawn)  # nothing else was measured
    specs = json.loads(re.findall(r'id="specs">(.*?)</script>', text, re.DOTALL)[0])
    assert sorted(specs) == drawn
    assert "no memory" in text
    assert "sdpa:flash is fastest" in text


@pytest.mark.usefixtures("undrawn")
def test_pages_without_data_are_left_out_and_the_summary_says_what_fills_them(tmp_path: Path) -> None:
    text = written(tmp_path, result([1e-3] * 6))
    seen = Reader(text)
    assert "summary" in seen.ids
    assert "roofline" not in seen.ids
    assert "attnbench calibrate measures the ceilings" in text
    assert "attnbench run --profile looks at each case" in text


@pytest.mark.usefixtures("undrawn")
def test_the_roofline_page_follows_from_stored_ceilings(tmp_path: Path) -> None:
    known = ceilings(matmul={"fp32": {"burst": 1e12, "sustained": 9e11, "size": 512}})
    known = msgspec.convert(msgspec.to_builtins(known), type(known))
    text = written(tmp_path, *several(), ceilings={"cpu:threads=1": known})
    assert "roofline" in Reader(text).ids
    assert "compute" in text


@pytest.mark.parametrize(
    "evil", [EVIL, '"quoted" & <b>.py:f', "=cmd().py:f", "\u202eright-to-left.py:f", "x" * 300 + ".py:f", "🙂.py:f"]
)
def test_markup_in_names_is_escaped(tmp_path: Path, evil: str) -> None:
    text = written(tmp_path, *several(evil), tags={evil: evil})
    seen = Reader(text)
    assert seen.loads == []
    assert "img" not in seen.tags
    assert "b" not in seen.tags
    for path in (tmp_path / "out" / "tables").glob("*.csv"):
        assert not re.search(r"(^|,)=", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "results", [[], [result(status=Status.UNAVAILABLE, reason="not here")], [result([float("nan")] * 6)]]
)
@pytest.mark.usefixtures("undrawn")
def test_runs_with_nothing_to_show_are_reported_too(tmp_path: Path, results: list[Result]) -> None:
    text = written(tmp_path, *results)
    assert "summary" in Reader(text).ids
    assert "figure" not in Reader(text).tags


@pytest.mark.usefixtures("undrawn")
def test_several_runs_make_one_report(tmp_path: Path) -> None:
    first, other = run(tmp_path, *several()), run(tmp_path, *several("flex"))
    where = write(
        [first, msgspec.structs.replace(other, path=tmp_path / "second")], tmp_path / "out", ReportOptions(plots=())
    )
    text = (where / "index.html").read_text()
    assert "second" in text
    assert "flex" in text


@pytest.mark.usefixtures("undrawn")
def test_an_anonymous_report_names_nobody(tmp_path: Path) -> None:
    fields = {"command": "attnbench run secret.toml", "tags": {"who": "somebody"}, "commit": {"commit": "f00dcafe1234"}}
    text = written(tmp_path, *several(), options=ReportOptions(anonymize=True, plots=()), **fields)
    assert not [word for word in ("secret", "somebody", "f00dcafe", str(tmp_path)) if word in text]


@pytest.mark.usefixtures("undrawn")
def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"holds 'thesis.tex' and is no report"):
        written(tmp_path, *several())
    (folder / "thesis.tex").unlink()
    written(tmp_path, *several())
    (folder / "notes.txt").write_text("mine")
    written(tmp_path, *several())
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="cannot write the report to"):
        written(tmp_path, *several())


@pytest.mark.usefixtures("undrawn")
def test_only_some_pages_and_some_cases(tmp_path: Path) -> None:
    options = ReportOptions(only=("latency",), keep=lambda result: result.case.backend == "naive", plots=())
    text = written(tmp_path, *several(), options=options)
    assert [name for name in Reader(text).ids if name in ("summary", "latency", "memory", "raw")] == ["latency"]
    assert "sdpa:flash" not in text


def test_the_command_takes_the_last_run(
    stored_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(stored_run.parent))
    assert cli.invoke(["report", "-o", str(tmp_path / "r"), "--plots", "svg"]) == 0
    assert str(tmp_path / "r" / "index.html") in capsys.readouterr().out
    assert cli.invoke(["report", "--theme", "drak"]) == 2
    assert "did you mean 'dark'" in capsys.readouterr().err
    assert cli.invoke(["report", "--pages", "latancy"]) == 2
    assert "did you mean 'latency'" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_the_memory_page_says_what_stopped_the_next_length(tmp_path: Path) -> None:
    results = several()
    results.append(result(problem=Problem(seq_q=8192), status=Status.SKIPPED, reason="needs 16 GiB, limit 9 GiB"))
    written(tmp_path, *results)
    (table,) = (tmp_path / "out" / "tables").glob("memory-longest*.csv")
    lines = table.read_text().splitlines()
    assert lines[1:] == ['naive,cpu:threads=1,fp32,fwd,4096,"8192: skipped: needs 16 GiB, limit 9 GiB"']
    assert (tmp_path / "out" / "data.json").stat().st_size > 1000
    assert r"\toprule" in table.with_suffix(".tex").read_text()


def test_pages_are_listed_under_their_names(tmp_path: Path) -> None:
    data = report_data([run(tmp_path, *several())])
    names = [page.name for page in pages.pages(data)]
    assert names[0] == "summary"
    assert names == [name for name in pages.NAMES if name in names]
