"""Names in exports, tables, charts and indices: distinct for distinct (case, arm)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.analysis import comparison
from attnbench.analysis.rows import rows_of
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.gate import history
from attnbench.records.arm import Arm, distinct_names
from attnbench.records.case import Case
from attnbench.records.result import Result
from attnbench.records.run_directory import VERSION, Manifest, Run
from attnbench.report import pivot
from attnbench.report.charts import latency, panels
from attnbench.report.charts.figure import Dot
from attnbench.report.formats import asv, export, tensorboard
from attnbench.report.formats.exported_run import exported
from attnbench.report.pages.page import report_data
from tests.samples import result

ARMS = st.builds(
    Arm,
    backend=st.sampled_from(["naive", "sdpa:flash", "kern.py:attend"]),
    device=st.sampled_from(["cpu", "cpu:threads=1"]),
    python=st.sampled_from(["", "/opt/a/bin/python", "/opt/b/bin/python"]),
    path=st.sampled_from([(), ("base",), ("head",), ("A=1",)]),
    env=st.sampled_from([(), (("A", "1"),), (("A", "1"), ("B", "2")), (("A", "1@B=2"),)]),
    copy=st.integers(1, 3),
)
PROBLEMS = st.builds(
    Problem,
    seq_q=st.sampled_from([64, 128]),
    seq_kv=st.sampled_from([128, 256]),
    batch=st.sampled_from([1, 2]),
    mask=st.sampled_from(["none", "causal"]),
    dtype=st.sampled_from(["fp32", "bf16"]),
    dropout=st.sampled_from([0.1, 0.10000001]),
)


def timed(problem: Problem, mode: Mode, arm: Arm) -> Result:
    case = Case(problem=problem, backend=arm.backend, mode=mode)
    return msgspec.structs.replace(result([1e-3, 1.1e-3]), case=case, case_id=case.id, arm=arm)


CASES = st.lists(
    st.builds(timed, PROBLEMS, st.sampled_from([Mode.FWD, Mode.FWD_BWD]), ARMS),
    unique_by=lambda each: (each.case_id, each.arm.id),
    min_size=1,
    max_size=8,
)


def run_of(results: list[Result], name: str = "run") -> Run:
    arms = tuple({each.arm.id: each.arm for each in results}.values())
    manifest = Manifest(
        schema_version=VERSION, attnbench="0", created_at="2026-01-01T00:00:00+00:00", suite="s", arms=arms,
        fingerprint="f", commit={"commit": "f00d" * 10},
    )  # fmt: skip
    return Run(path=Path(name), manifest=manifest, results=results)


def first_cells(text: str) -> list[str]:
    return [line.partition("&")[0].strip() for line in text.splitlines() if line.endswith(r"\\")][1:]


NAMES: dict[str, Callable[[Run], Iterable[object]]] = {
    "bencher": lambda run: json.loads(export.text(run, "bencher")),
    "github-action-benchmark": lambda run: [
        entry["name"] for entry in json.loads(export.text(run, "github-action-benchmark")) if entry["unit"] == "s"
    ],
    "pytest-benchmark": lambda run: [
        entry["fullname"] for entry in json.loads(export.text(run, "pytest-benchmark"))["benchmarks"]
    ],
    "asv": lambda run: asv._benchmarks(exported(run).rows, 0)[0],
    "json": lambda run: [(row["case_id"], row["arm"]) for row in json.loads(export.text(run, "json"))["rows"]],
    "latex": lambda run: first_cells(str(export.text(run, "latex"))),
    "wandb": lambda run: [row.name for row in exported(run).rows],
    "scalars": lambda run: [(tag, step) for tag, step, _ in exported(run).scalars() if tag.startswith("time_s/")],
    "tensorboard folders": lambda run: [f"{row.case_id}-{tensorboard._folder_name(row)}" for row in exported(run).rows],
    "comparison": lambda run: [pair.name for pair in comparison.compare(run, run).pairs],
    "geomeans": lambda run: [
        *comparison.compare(run, run).geomeans,
        *range(len(run.results) - len({each.arm.id for each in run.results})),
    ],
    "history": lambda run: history.point(run).seconds,
    "details of a report": lambda run: [detail.label for detail in report_data([run]).details],
    "report on two runs": lambda run: [row.name for row in report_data([run, run]).rows][len(run.results) :],
    "table": lambda run: [
        (section.heading, label, heading)
        for layout in [pivot.pivot(rows_of(run.results))]
        for section in layout.sections
        for label, cells in section.lines
        for heading in [column.heading for column in layout.columns if column.arm in cells]
    ],
    "chart": lambda run: points(run),
}


def points(run: Run) -> list[tuple[object, ...]]:
    figure = latency.figure(rows_of(run.results))
    assert figure
    return [
        (panel.heading, mark.arm, mark.x) for panel in figure.panels for mark in panel.marks if isinstance(mark, Dot)
    ]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(results=CASES)
def test_distinct_cases_have_distinct_names(name: str, results: list[Result]) -> None:
    names = list(NAMES[name](run_of(results)))
    assert len(set(names)) == len(names) == len(results), [n for n, count in Counter(names).items() if count > 1]


@given(st.lists(ARMS, min_size=1, max_size=8, unique_by=lambda arm: arm.id))
def test_a_name_depends_on_the_set_of_arms_alone(arms: list[Arm]) -> None:
    assert distinct_names(arms) == distinct_names([*reversed(arms), arms[0]])


def test_a_name_says_what_distinguishes_the_arm_and_no_more() -> None:
    base, head = (Arm(backend="naive", device="cpu", path=(side,), env=(("A", "1"),)) for side in ("base", "head"))
    control, other = msgspec.structs.replace(base, copy=3), Arm(backend="sdpa", device="cpu", python="/bin/python")
    names = distinct_names([base, head, control, other])
    assert list(names.values()) == ["naive@base", "naive@head", "naive#3@base", "sdpa"]


def test_one_of_a_thing_is_singular() -> None:
    counted = {
        name: (panels.words(name, 1), panels.words(name, 2)) for name in ("heads", "kv_heads", "seq_q", "seq_kv")
    }
    assert counted == {
        "heads": ("1 head", "2 heads"), "kv_heads": ("1 key head", "2 key heads"), "seq_q": ("1 query", "2 queries"),
        "seq_kv": ("1 key", "2 keys"),
    }  # fmt: skip
