"""Other tools on planted changes: what their outputs say, and the table of stored comparisons."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tools import side_by_side_gates as tool

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).parent / "side_by_side.jsonl"
FILE = ROOT / "results" / "reference" / "gate-eval" / "others.jsonl"
SLOWER, EQUAL = (192, True), (320, False)


def test_equal_and_changed_comparisons_alternate_and_every_case_gets_every_change() -> None:
    assert all(not any(tool.planted(number).values()) for number in range(0, 8, 2))
    changed = [tool.planted(number) for number in range(1, 9, 2)]
    assert all(sorted(more.values()) == sorted(tool.MORE) for more in changed)
    assert all(Counter(more[case] for more in changed) == Counter(tool.MORE) for case in tool.CASES)


def test_the_gate_is_read_from_its_json() -> None:
    label = "b1 h40 q{0} kv{0} d64 {1} fp32 fwd kernel.py:attend"
    records = [
        {"label": label.format(192, "causal"), "metric": "time_s", "outcome": "regressed"},
        {"label": label.format(320, "none"), "metric": "time_s", "outcome": "same"},
        {"label": label.format(320, "none"), "metric": "rms_err", "outcome": "regressed"},
        {"type": "summary", "verdict": "regressed"},
    ]
    output = "\n".join(["run: results/x", *map(json.dumps, records)])
    assert tool.regressed(output) == {SLOWER}


def test_pytest_benchmark_names_what_regressed() -> None:
    output = """ERROR: Performance has regressed:
\ttest_attend[192-True] (0001_base) - Field 'mean' has failed PercentageRegressionCheck: 8.425321453 > 5.000000000
"""
    assert tool.failed_comparisons(output) == {SLOWER}
    assert tool.failed_comparisons("4 passed in 9.35s") == set()


def test_asv_marks_what_is_worse() -> None:
    output = """
| Change   | Before [6b4bb3a5] <main~1>   | After [0c6bb4a1] <main>   |   Ratio | Benchmark (Parameter)    |
|----------|------------------------------|---------------------------|---------|--------------------------|
| +        | 5.95±0.1ms                   | 7.86±0.1ms                |    1.32 | a.A.time_attend(192, True)   |
| -        | 15.0±0.1ms                   | 11.0±0.1ms                |    0.73 | a.A.time_attend(320, False)  |
"""
    assert tool.worsened(output) == {SLOWER}
    assert tool.worsened("BENCHMARKS NOT SIGNIFICANTLY CHANGED.") == set()
    with pytest.raises(SystemExit, match="failed"):
        tool.worsened("[50.00%] ··· attention.Attention.time_attend   2/4 failed")


@pytest.mark.parametrize(
    ("summary", "slower"),
    [
        ("  base ran\n    1.08 ± 0.03 times faster than head\n", True),
        ("  'base' ran\n    1.08 ± 0.03 times faster than 'head'\n", True),  # 1.15
        ("  base ran\n    1.02 ± 0.03 times faster than head\n", False),
        ("  head ran\n    1.20 ± 0.03 times faster than base\n", False),
    ],
)
def test_hyperfine_is_read_with_its_error(summary: str, slower: bool) -> None:
    assert tool.head_slower(f"Summary\n{summary}") is slower


def test_compare_of_torch_marks_the_best() -> None:
    from torch.utils.benchmark import Compare, Measurement
    from torch.utils.benchmark.utils.common import TaskSpec

    def measured(side: str, case: tuple[int, bool], seconds: float) -> Measurement:
        task = TaskSpec("attend", "", label="attention", sub_label=f"{case[0]} {case[1]}", description=side)
        return Measurement(1, [seconds] * 5, task)

    compare = Compare([
        measured("base", SLOWER, 1e-3), measured("base", EQUAL, 2e-3),
        measured("head", SLOWER, 1.05e-3), measured("head", EQUAL, 2.01e-3),
    ])  # fmt: skip
    compare.colorize(rowwise=True)
    assert tool.not_best(str(compare)) == {SLOWER}


def test_the_table_of_stored_comparisons() -> None:
    _, _, gate, pytest_benchmark = tool.table(tool.read(SAMPLE))
    assert gate == "| attnbench gate | 0 of 1 (0.0 to 79.3 %) | 0 of 5 | 0 of 1 | 1 of 1 | 1 of 1 | 65 s |"
    alarms = "1 of 2 (9.5 to 90.5 %) | 2 of 9"
    assert pytest_benchmark == f"| pytest-benchmark, mean:5% | {alarms} | 0 of 1 | 0 of 1 | 1 of 1 | 15 s |"


def test_the_table_of_the_documentation_is_what_the_recorded_comparisons_give() -> None:
    documented = (ROOT / "docs" / "gate.md").read_text()
    head, *lines = tool.table(tool.read(FILE))
    assert (head in documented) == FILE.exists()
    for line in lines if FILE.exists() else []:
        assert line in documented
