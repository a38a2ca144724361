"""The published evaluation of the gate, replayed: docs/gate.md says what the rule makes of the recorded gates."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from attnbench.gate import rule
from attnbench.gate.rule import Evidence, Margins
from attnbench.records.result import Outcome, Verdict
from tools import gate_eval, gate_tables, rates
from tools.gate_eval import Gate

ROOT = Path(__file__).parents[2]
FILE = ROOT / "results" / "reference" / "gate-eval" / "gates.jsonl"


@pytest.fixture(scope="module")
def gates() -> list[Gate]:
    return gate_eval.read(FILE)


def test_the_tables_of_the_documentation_are_what_the_recorded_gates_give(gates: list[Gate]) -> None:
    documented = (ROOT / "docs" / "gate.md").read_text()
    for line in gate_tables.table(gates, gate_eval.known(FILE)):
        assert line in documented


def test_no_recorded_gate_of_equal_sides_is_red(gates: list[Gate]) -> None:
    equal = [gate for gate in gates if gate.kind == "aa"]
    assert len(equal) >= 10
    assert not any(v.outcome is Outcome.REGRESSED for gate in equal for v in gate.verdicts)


def swapped(evidence: Evidence) -> Evidence:
    back = tuple(-effect for effect in evidence.effects)
    return msgspec.structs.replace(evidence, base_s=evidence.head_s, head_s=evidence.base_s, effects=back)


MIRROR = {Outcome.REGRESSED: Outcome.IMPROVED, Outcome.IMPROVED: Outcome.REGRESSED}


def by_rule(gate: Gate, cases: list[Evidence]) -> list[Verdict]:
    return rule.verdicts(cases, Margins(factor=gate.factor))


def test_with_the_labels_swapped_effects_and_verdicts_mirror(gates: list[Gate]) -> None:
    """What was regressed is improved and the other way round; effects change their sign, exactly."""
    seen: Counter[Outcome] = Counter()
    for gate in gates:
        forth = by_rule(gate, [case.evidence for case in gate.cases])
        back = by_rule(gate, [swapped(case.evidence) for case in gate.cases])
        for before, after in zip(forth, back, strict=True):
            seen[before.outcome] += 1
            assert math.log1p(before.change or 0) == pytest.approx(-math.log1p(after.change or 0), abs=1e-12)
            assert (before.outcome in MIRROR) <= (after.outcome is MIRROR.get(before.outcome))
    assert seen[Outcome.REGRESSED] > 0


def test_the_order_of_cases_does_not_matter(gates: list[Gate]) -> None:
    for gate in gates:
        cases = [case.evidence for case in gate.cases]
        forth, back = by_rule(gate, cases), by_rule(gate, cases[::-1])
        assert [v.outcome for v in forth] == [v.outcome for v in back[::-1]]


def test_gates_made_of_recorded_restarts_are_hardly_ever_red(gates: list[Gate]) -> None:
    assert gate_tables.resampled([gate for gate in gates if gate.kind == "aa"], runs=300) <= 0.01 * 300


def test_a_slowdown_that_was_measured_in_the_run_is_the_truth_of_its_case(gates: list[Gate]) -> None:
    power = next(gate for gate in gates if gate.kind == "power")
    slower = next(case for case in power.cases if case.more)
    far = msgspec.structs.replace(slower, truth=(0.5, 0.5, 0.6))  # beyond its interval
    changed = msgspec.structs.replace(power, cases=[far if case is slower else case for case in power.cases])
    before, after = (list(gate_tables.power([gate], gate_eval.known(FILE))) for gate in (power, changed))
    assert "\nIn 1 of 15 slower cases the slowdown was measured in the run: median error 4.17 %." in after
    assert not any("measured in the run" in line for line in before)
    held = [
        sum(int(line.split("|")[-3].split()[0]) for line in lines if " of 40 |" in line) for lines in (before, after)
    ]
    assert held[1] == held[0] - 1


def test_every_level_meets_every_case_in_turn() -> None:
    for number in range(len(gate_eval.MORE)):
        assert Counter(gate_eval.levels(number).values()) == dict.fromkeys(gate_eval.MORE, 5)
    cells = [{gate_eval.levels(number)[cell] for number in range(len(gate_eval.MORE))} for cell in gate_eval.levels(0)]
    assert all(seen == set(gate_eval.MORE) for seen in cells)


def test_wilson_interval_of_a_worked_example() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert rates.wilson(81, 263) == "25.5 to 36.6 %"
    assert rates.wilson(0, 0) == "-"


@pytest.mark.parametrize(("count", "bound"), [(12, 22.1), (60, 4.9), (300, 1.0)])
def test_no_alarm_in_some_runs_bounds_the_rate(count: int, bound: float) -> None:
    assert rates.at_most(0, count) == f"at most {bound:.1f} % at 95 %"
    assert 100 * (1 - 0.05 ** (1 / count)) == pytest.approx(bound, abs=0.05)
    assert rates.at_most(0, 0) == "-"
