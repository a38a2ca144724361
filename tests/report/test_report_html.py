"""The report as one HTML file, and its folder."""

from __future__ import annotations

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
from attnbench.report.answer import Advice, Answer, FixedChoice
from attnbench.report.formats import html, html_table
from attnbench.report.formats.report_directory import ReportOptions, write
from attnbench.report.pages.page import ColumnGroup, Page, PageCell, PageTable, report_data
from tests.report import made_pages
from tests.samples import ceilings, result

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
    where = write([run(tmp_path, *results, **fields)], tmp_path / "out", options or ReportOptions(plots=()))
    return (where / "index.html").read_text()


def script(text: str) -> str:
    """The script of a page."""
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    return str(script)


def test_the_page_loads_nothing_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    text = written(tmp_path, *several(), options=ReportOptions(plots=("svg",)))
    seen = Reader(text)
    assert seen.loads == []
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\"" in text
    inside = {link.removeprefix("#") for link in seen.links if link.startswith("#")}
    assert inside <= set(seen.ids)
    files = set(seen.links) - {f"#{name}" for name in inside}
    assert files == {"data.csv", "data.json", "report.md", "tables/", "plots/"}
    assert all((tmp_path / "out" / name).exists() for name in files)
    assert len(seen.ids) == len(set(seen.ids))


def test_the_script_is_small_and_evaluates_nothing(tmp_path: Path) -> None:
    text = script(written(tmp_path, *several()))
    assert len(text.encode()) < 20_000
    assert not re.search(r"\beval\b|Function\(|innerHTML|import\(", text)


def test_every_chart_is_inline_svg_and_a_file(tmp_path: Path) -> None:
    text = written(tmp_path, *several(), options=ReportOptions(plots=("svg",)))
    figures = Reader(text).tags.count("figure")
    assert figures == len(list((tmp_path / "out" / "plots").glob("*.svg"))) >= 3
    assert Reader(text).tags.count("svg") >= figures
    assert "no memory" in text
    assert "sdpa:flash is fastest" in text


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = written(tmp_path, *several())
    assert first == written(tmp_path, *several())


def test_what_was_not_measured_is_named_with_the_command_that_measures_it(tmp_path: Path) -> None:
    text = written(tmp_path, result([1e-3] * 6))
    assert "answer" in Reader(text).ids
    assert "comparison" not in Reader(text).ids
    folded = text[text.index("What else can be measured") :]
    assert "<code>attnbench calibrate</code>" in folded
    assert "<code>attnbench run --profile</code>" in folded


def test_stored_ceilings_are_used(tmp_path: Path) -> None:
    known = ceilings(matmul={"fp32": {"burst": 1e12, "sustained": 9e11, "size": 512}})
    known = msgspec.convert(msgspec.to_builtins(known), type(known))
    text = written(tmp_path, *several(), ceilings={"cpu:threads=1": known})
    assert "<code>attnbench calibrate</code>" not in text


def test_the_title_stands_in_the_bar_and_above_the_answer() -> None:
    answer = Answer(context="Abacus", headline="Use naive here.", lead="")
    text = html.page(answer, [], title="Mine & yours", theme="dark")
    assert "<title>Mine &amp; yours</title>" in text
    assert '<html lang="en" data-theme="dark">' in text
    assert "<b>Mine &amp; yours</b> · Abacus" in text
    assert "<title>Use naive here. · attnbench</title>" in html.page(answer, [])
    assert "<h1>attnbench</h1>" in html.page(None, [])


def test_failures_come_first_and_many_are_folded() -> None:
    failures = tuple(Advice(f"my.py:f{n} crashed") for n in range(html.MAX_LINES + 3))
    text = html.page(Answer(context="", headline="H", lead="", failures=failures), [])
    assert text.index("my.py:f0 crashed") < text.index("<h1")
    assert "<summary>3 more</summary>" in text


def test_names_in_other_scripts_are_isolated_and_commands_are_code() -> None:
    name = made_pages.RIGHT_TO_LEFT
    answer = Answer(context="", headline=f"Use {name} here.", lead="See `attnbench run`.")
    text = html.page(answer, [], arms=[name])
    assert f"Use <bdi>{name}</bdi> here." in text
    assert "See <code>attnbench run</code>." in text


def test_small_sections_share_a_line_and_blocks_that_fit_too() -> None:
    chart = made_pages.crowded_pages()[1].blocks[0]
    small = PageTable(heading="Small", head=("a", "b"), rows=[("1", "2")])
    two = [Page(name=name, title=name, blocks=(chart,)) for name in ("one", "two")]
    assert html.page(None, two).count(' class="half" style="--span:6"') == 2
    wide = [Page(name="one", title="one", blocks=(chart, small, made_pages.cases()))]
    text = html.page(None, wide)
    assert re.findall(r'<figure style="--span:(\d+)"', text) == ["7"]
    assert re.findall(r'class="table[^"]*" style="--span:(\d+)', text) == ["5", "12"]


def test_the_head_of_a_table_has_groups_and_names_for_copies() -> None:
    table = PageTable(
        heading="Times", head=("mask", "ms", "rate", "ms"), numbers=(False, True, True, True),
        groups=(ColumnGroup("", 1), ColumnGroup("naive", 2, "naive"), ColumnGroup("flex", 1, "flex")),
        rows=[("none", PageCell(text="1", detail="±5 %", bold=True), "2", "3"), ("causal", "not measured")],
    )  # fmt: skip
    view = html_table.view(table, 1, lambda arm: "blue")
    top, bottom = view.heads
    assert [(head.text, head.columns, head.rows, head.name) for head in top] == [
        ("mask", 1, 2, "mask"), ("naive", 2, 1, ""), ("flex", 1, 1, ""),
    ]  # fmt: skip
    assert [head.name for head in bottom] == ["naive ms", "naive rate", "flex ms"]
    assert [head.place for head in bottom] == [1, 2, 3]
    first, second = view.rows.splitlines()
    assert first == "<tr><td>none<td><b>1</b><small>±5 %</small><td>2<td>3"
    assert second == '<tr><td>causal<td colspan=3 class="rest"><div>not measured</div>'
    assert "#t1 tbody > tr > :nth-child(2) small { min-width: 4ch; }" in view.css


def test_a_long_reason_is_clipped_and_many_take_little_room() -> None:
    few = html_table.view(made_pages.cases(5), 1, lambda arm: "blue")
    assert f"<summary>crashed: {'y' * 151} ...</summary>" in few.rows
    assert "(10009 characters; data.csv has all)" in few.rows
    assert "y" * 1900 in few.rows
    many = html_table.view(made_pages.cases(5000), 1, lambda arm: "blue")
    assert len(many.rows.encode()) < 2.5e6
    assert many.folded


def test_a_table_of_cases_stops_at_its_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_table, "MAX_BYTES", 2000)
    view = html_table.view(
        PageTable(heading="Cases", head=("case",), rows=[("x" * 20,)] * 100, search=True), 1, lambda arm: "blue"
    )
    assert view.cut == f"{view.rows.count('<tr>')} of 100 rows; data.csv has all."
    assert 10 < view.rows.count("<tr>") < 100


@pytest.mark.parametrize(
    "evil", [EVIL, '"quoted" & <b>.py:f', "=cmd().py:f", "\u202eright-to-left.py:f", "x" * 300 + ".py:f", "🙂.py:f"]
)
def test_markup_in_names_is_escaped(tmp_path: Path, evil: str) -> None:
    text = written(tmp_path, *several(evil), tags={evil: evil})
    seen = Reader(text)
    assert seen.loads == []
    assert "img" not in seen.tags
    assert text.count("<b>.py") == 0
    for path in (tmp_path / "out" / "tables").glob("*.csv"):
        assert not re.search(r"(^|,)=", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "results", [[], [result(status=Status.UNAVAILABLE, reason="not here")], [result([float("nan")] * 6)]]
)
def test_runs_with_nothing_to_show_are_reported_too(tmp_path: Path, results: list[Result]) -> None:
    text = written(tmp_path, *results)
    assert "answer" in Reader(text).ids
    assert "figure" not in Reader(text).tags


def test_several_runs_make_one_report(tmp_path: Path) -> None:
    first, other = run(tmp_path, *several()), run(tmp_path, *several("flex"))
    where = write(
        [first, msgspec.structs.replace(other, path=tmp_path / "second")], tmp_path / "out", ReportOptions(plots=())
    )
    text = (where / "index.html").read_text()
    assert "second" in text
    assert "flex" in text


def test_an_anonymous_report_names_nobody(tmp_path: Path) -> None:
    fields = {"command": "attnbench run secret.toml", "tags": {"who": "somebody"}, "commit": {"commit": "f00dcafe1234"}}
    text = written(tmp_path, *several(), options=ReportOptions(anonymize=True, plots=()), **fields)
    assert not [word for word in ("secret", "somebody", "f00dcafe", str(tmp_path)) if word in text]


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


def test_only_some_pages_and_some_cases(tmp_path: Path) -> None:
    options = ReportOptions(only=("speed",), keep=lambda result: result.case.backend == "naive", plots=())
    text = written(tmp_path, *several(), options=options)
    assert [name for name in Reader(text).ids if name in pages.NAMES] == ["speed"]
    assert "sdpa:flash" not in text


def test_the_command_takes_the_last_run(
    stored_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(stored_run.parent))
    assert cli.invoke(["report", "-o", str(tmp_path / "r"), "--plots", "svg"]) == 0
    assert str(tmp_path / "r" / "index.html") in capsys.readouterr().out
    assert cli.invoke(["report", "--theme", "drak"]) == 2
    assert "did you mean 'dark'" in capsys.readouterr().err
    assert cli.invoke(["report", "--pages", "acuracy"]) == 2
    assert "did you mean 'accuracy'" in capsys.readouterr().err


def test_each_table_is_a_csv_a_markdown_and_a_latex_file(tmp_path: Path) -> None:
    written(tmp_path, *several(), result(problem=Problem(seq_q=8192), status=Status.SKIPPED, reason="needs 16 GiB"))
    folder = tmp_path / "out" / "tables"
    (table,) = folder.glob("speed-times-*.csv")
    head, *lines = table.read_text().splitlines()
    assert head.startswith("length,naive ")
    assert len(lines) == 6
    assert lines[-1].startswith("8192,")
    assert lines[-1].count(",") == head.count(",")
    assert {path.suffix for path in folder.iterdir() if path.stem == table.stem} == {".csv", ".md", ".tex"}
    assert r"\toprule" in table.with_suffix(".tex").read_text()
    assert (tmp_path / "out" / "data.json").stat().st_size > 1000


def test_pages_are_listed_under_their_names(tmp_path: Path) -> None:
    data = report_data([run(tmp_path, *several())])
    names = [page.name for page in pages.contents(data)[1] if not page.empty]
    assert names == [name for name in pages.NAMES if name in names]


def test_a_grid_of_many_rows_takes_a_line_each_then_colours_alone() -> None:
    def answer(rows: int) -> Answer:
        return Answer(context="", headline="H", lead="", grid=made_pages.crowded_grid(rows))

    assert 'class="many dense"' in html.page(answer(20), [])
    assert 'class="many"' in html.page(answer(5), [])
    large = html.page(answer(60), [])
    assert "<summary>20 more rows</summary>" in large
    assert large.count('<tr><th scope="row">window:') == 60
    assert "1.3×" not in re.sub(r'title="[^"]*"', "", large)


def test_the_command_for_failures_ends_the_box() -> None:
    failures = (*(Advice(f"my.py:f{n} crashed") for n in range(html.MAX_LINES + 3)), Advice("", "attnbench show r"))
    text = html.page(Answer(context="", headline="H", lead="", failures=failures), [])
    assert "<summary>3 more</summary>" in text
    box = text[text.index('<div class="box failures">') : text.index("<h1")]
    assert box.index("</details>") < box.index("<p>Details: <code>attnbench show r</code></p>")


def test_one_backend_for_two_problems_is_asked_in_words() -> None:
    fixed = tuple(FixedChoice(arm=arm, mean=1, worst=1, worst_at="1k", runs=2, of=2) for arm in ("naive", "flex"))
    text = html.page(Answer(context="", headline="H", lead="", fixed=fixed), [], arms=["naive", "flex"])
    assert "If one backend must serve both problems: its time ÷ the best" in text
