"""The folder that `attnbench report` writes: the page, Markdown, the data, tables and plots."""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from attnbench.analysis import parallel
from attnbench.analysis.rows import COLUMNS, as_frame
from attnbench.errors import StoreError
from attnbench.gate.history import HistoryPoint
from attnbench.records.result import Result
from attnbench.records.run_directory import NODE_TAG, Run
from attnbench.report import pages
from attnbench.report.answer import Answer
from attnbench.report.charts import rendering
from attnbench.report.charts.figure import Figure
from attnbench.report.formats import csv, html, latex, markdown
from attnbench.report.pages.page import MAX_ROWS, Page, PageTable, ReportData, report_data
from attnbench.studies import traffic_answer

MARKER, MARKER_TEXT = ".attnbench-report", "made by attnbench report\n"  # only a marked folder is overwritten
ANSWER = "answer"  # name of the first screen among those of the pages
LINKED = ("data.csv", "data.json", "report.md", "tables/")  # at the end of the page
MIN_ROWS_FOR_POOL = 20_000  # from which a second process pays off
MAX_NAME = 120  # characters of a file's name; headings hold names of runs

TextFile = tuple[str, Callable[[], str]]  # its name, and the function that makes its text


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a report holds and how it looks."""

    title: str = ""
    theme: str = "auto"
    plots: tuple[str, ...] = ("svg", "png")
    reference: str | None = None
    keep: Callable[[Result], bool] | None = None
    only: tuple[str, ...] = ()  # pages; empty: all
    anonymize: bool = False
    trend: Sequence[HistoryPoint] = ()  # the project's history; ignored if `anonymize`


def write(
    runs: Sequence[Run],
    directory: Path | None = None,
    options: ReportOptions | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Path:
    """Write index.html, report.md, data.*, tables/ and plots/ to `directory`, by default RUN/report.

    Without vl-convert there are no PNG and PDF plots, without pyarrow no Parquet. Other files in the folder are left
    alone. `step` is called with the name of each step as it begins. Raises StoreError if the folder cannot be written
    or holds files but no report.
    """
    options = options or ReportOptions()
    folder = directory or runs[0].path / "report"
    _check(folder)
    traffic = [traffic_answer.read(run.path) for run in runs]
    if options.anonymize:
        nodes = _numbered_nodes(runs)
        runs = [_anonymous(run, number, nodes) for number, run in enumerate(runs)]
        traffic = [answer and msgspec.structs.replace(answer, trace="", model="") for answer in traffic]
    step("reading")
    data = report_data(runs, options.keep, options.reference, () if options.anonymize else options.trend, traffic)
    step("drawing")
    answer, sections = pages.contents(data)
    shown = [page for page in sections if not options.only or page.name in options.only]
    step("writing")
    columns = (*COLUMNS, "run") if len(runs) > 1 else tuple(COLUMNS)
    try:
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        files = _text_files(data, answer if ANSWER in (options.only or (ANSWER,)) else None, shown, columns, options)
        files += [file for page in shown for table in page.tables if table.rows for file in _formats(page, table)]
        pooled = len(data.rows) > MIN_ROWS_FOR_POOL
        parallel.share(lambda file: (folder / file[0]).write_text(file[1](), "utf-8"), files, pooled=pooled, pieces=1)
        if find_spec("pyarrow"):
            as_frame(data.rows, columns).to_parquet(folder / "data.parquet", index=False)
        rendering.write(_plots(shown), folder / "plots", options.plots, {row.arm_name for row in data.rows})
    except OSError as error:
        raise StoreError(f"cannot write the report to {folder}: {error.strerror}") from error
    return folder


def _check(folder: Path) -> None:
    """Refuse a folder with files that no report wrote."""
    if folder.is_dir() and not (folder / MARKER).exists():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in ("report.md", "tables", "plots"))
        if foreign:
            raise StoreError(f"{folder} holds {foreign[0]!r} and is no report: give another --out")


def _numbered_nodes(runs: Sequence[Run]) -> dict[str, str]:
    """The nodes of clusters and of the tag `node`, each with a name in place of its own."""
    names = [name for run in runs for name in (*run.manifest.nodes, run.manifest.node) if name]
    return {name: f"node {number}" for number, name in enumerate(dict.fromkeys(names), start=1)}


def _anonymous(run: Run, number: int, nodes: Mapping[str, str]) -> Run:
    """The run without the names of folders, commands, tags and commits, which may name a user or a project."""
    tag, of_cluster = run.manifest.node, run.manifest.nodes
    manifest = msgspec.structs.replace(
        run.manifest, command="", tags={NODE_TAG: nodes[tag]} if tag else {}, commit=None,
        nodes={nodes[name]: facts for name, facts in of_cluster.items()},
    )  # fmt: skip
    results = [_on_node(result, nodes) for result in run.results] if of_cluster else run.results
    return msgspec.structs.replace(run, path=Path(f"run-{number + 1}"), manifest=manifest, results=results)


def _on_node(result: Result, nodes: Mapping[str, str]) -> Result:
    """The result of a node of a cluster with the name in place of its own."""
    node = result.facts.get("node")
    return msgspec.structs.replace(result, facts={**result.facts, "node": nodes.get(node, "")}) if node else result


def _plots(shown: Sequence[Page]) -> list[tuple[str, Figure]]:
    """Each chart under the name of its file."""
    return [
        (figure.name if figure.name == page.name else f"{page.name}-{figure.name}", figure)
        for page in shown
        for figure in page.figures
    ]


def _text_files(
    data: ReportData, answer: Answer | None, shown: Sequence[Page], columns: Sequence[str], options: ReportOptions
) -> list[TextFile]:
    files = [*LINKED, *(["plots/"] if options.plots and any(page.figures for page in shown) else [])]
    arms = [row.arm_name for row in data.rows]
    content = {"manifests": {run.path.name: run.manifest for run in data.runs}, "columns": COLUMNS, "rows": data.rows}
    return [
        (MARKER, lambda: MARKER_TEXT),
        ("data.csv", lambda: csv.text((row.plain() for row in data.rows), columns)),
        ("data.json", lambda: msgspec.json.encode(content).decode() + "\n"),
        ("index.html", lambda: html.page(answer, shown, options.title, options.theme, arms, files)),
        ("report.md", lambda: markdown.page(answer, shown, options.title)),
    ]


def _formats(page: Page, table: PageTable) -> list[TextFile]:
    """A table as CSV with all rows, and as Markdown and LaTeX with the first MAX_ROWS."""
    stem = f"{page.name}-{re.sub(r'[^a-z0-9]+', '-', table.heading.lower()).strip('-')}"[:MAX_NAME]
    numbers = table.numbers or (False,) * len(table.head)
    columns = table.columns
    cut = f"{MAX_ROWS} of {len(table.rows)} rows; {stem}.csv has all\n" if len(table.rows) > MAX_ROWS else ""

    def rows(limit: int | None = None) -> list[list[str]]:
        return [[*map(str, row), *[""] * (len(columns) - len(row))] for row in table.rows[:limit]]

    return [
        (f"tables/{stem}.csv", lambda: csv.text((dict(zip(columns, row, strict=True)) for row in rows()), columns)),
        (f"tables/{stem}.md", lambda: markdown.table(columns, rows(MAX_ROWS), numbers) + (cut and f"\n{cut}")),
        (f"tables/{stem}.tex", lambda: (cut and f"% {cut}") + latex.table(columns, rows(MAX_ROWS), numbers)),
    ]
