"""What base and head are compared by: restarts that both have, memory, errors, and where the margins come from."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from attnbench.analysis.restarts import Restarts
from attnbench.errors import StoreError
from attnbench.gate import evidence, judgement, record
from attnbench.records.result import Cause, Outcome, Result, Status
from tests.gate.test_verdicts import gated, lines, outcome
from tests.samples import result


def test_restarts_that_base_and_head_do_not_share_leave_the_case_open() -> None:
    base = [line for line in lines(restarts=6) if line.arm.copy == 1]
    head = [msgspec.structs.replace(line, restart=line.restart + 6) for line in lines(restarts=6) if line.arm.copy == 2]
    assert outcome(gated(*base, *head)) is Outcome.INCONCLUSIVE


def test_a_restart_without_a_finite_time_has_no_effect() -> None:
    below = Restarts([result([1.0] * 3, restart=restart) for restart in range(3)])
    above = Restarts([result([value] * 3, restart=n) for n, value in enumerate((math.e, math.nan, 1 / math.e))])
    assert evidence.effects(above, below) == pytest.approx({0: 1.0, 2: -1.0})


UNCHECKED = "not checked on new inputs"


@pytest.mark.parametrize("head", [1.0, 0.5, 1.5])
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_rate_above_a_ceiling_decides_nothing_until_it_is_checked_on_new_inputs(head: float, side: str) -> None:
    judged = judgement.judge(gated(*lines(head, **{f"{side}_fields": {"facts": {"new_inputs": UNCHECKED}}})))
    (verdict,) = [verdict for verdict in judged.verdicts if verdict.metric == "time_s"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason == f"{side}: above a measured ceiling, {UNCHECKED}"


def test_a_rate_above_a_ceiling_that_passed_its_check_is_judged() -> None:
    facts = {"facts": {"new_inputs": "right"}}
    assert outcome(gated(*lines(1.5, base_fields=facts, head_fields=facts))) is Outcome.REGRESSED


def test_memory_that_shrank_is_an_improvement() -> None:
    assert outcome(gated(*lines(memory=(2**25, 2**24))), "peak_bytes") is Outcome.IMPROVED


def test_without_errors_accuracy_is_not_judged() -> None:
    judged = judgement.judge(gated(*lines(head_fields={"facts": {}})))
    assert {verdict.metric for verdict in judged.verdicts} == {"time_s", "peak_bytes"}


NORMAL = "the tolerance and normal noise with the spread of the case"


@pytest.mark.parametrize(
    ("factor", "source"),
    [
        # 4.03 standard errors hold 99 of 100 means of six normal restarts.
        (8.07, "the tolerance and 2.0 times normal noise, the 99th percentile of 25 A/A runs of this machine"),
        (1.0, f"{NORMAL}, and 25 A/A runs of this machine show no more"),
        (0.0, f"{NORMAL} (25 A/A runs of this machine, 20 are needed to know more)"),
    ],
)
def test_the_margins_come_from_normal_noise_unless_the_machine_shows_more(factor: float, source: str) -> None:
    floor = {"factor": factor, "runs": 25, "resolution_s": 0.0}
    assert judgement.judge(gated(*lines(), floor=floor)).margin_source == source


def test_a_record_that_cannot_be_read_is_named() -> None:
    with pytest.raises(StoreError, match=r"gate: its gate record cannot be read: .*base"):
        record.of(gated(base=3))


OF_FORWARD = {"match": "*fwd*", "time": "30%", "reason": "a"}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, Outcome.INCONCLUSIVE),
        ({"max_margin": "90%"}, Outcome.SAME),
        ({"max_margin": "4%", "tolerance": [OF_FORWARD]}, Outcome.SAME),  # up to three tolerances of its own
        ({"max_margin": "4%", "tolerance": [OF_FORWARD | {"expires": "2020-01-01"}]}, Outcome.INCONCLUSIVE),
    ],
)
def test_a_noisy_case_is_the_same_only_with_a_larger_max_margin(table: dict[str, Any], expected: Outcome) -> None:
    noisy = lines(head=0.97, noise=60.0, restarts=26)
    judged = judgement.judge(gated(*noisy, settings=table))
    (verdict,) = [verdict for verdict in judged.verdicts if verdict.metric == "time_s"]
    assert verdict.outcome is expected
    assert "may be hidden, the upper end of its 95 % interval: " in judged.notes[-1]
    assert "b1 h8 q64 kv64 d64 none fp32 fwd naive" in judged.notes[-1]


def test_what_may_be_hidden_is_said_of_cases_that_did_not_regress() -> None:
    assert "a slowdown of any size may be hidden" in judgement.judge(gated(*lines(restarts=1))).notes[-1]
    assert judgement.judge(gated(*lines(head=1.5))).notes == ()


def at(node: str, head: float, restarts: int, first: int = 0) -> list[Result]:
    """Results of one case on a node of a cluster."""
    errors = {"errors": {"out": {"max_abs": 1e-6, "rms": 1e-7}}}
    of_node = lines(head, restarts=restarts)
    return [
        msgspec.structs.replace(each, restart=each.restart + first, facts={**errors, "node": node}) for each in of_node
    ]


def test_a_case_is_judged_by_the_node_with_most_of_its_restarts() -> None:
    assert outcome(gated(*at("a", 1.5, 5), *at("b", 1.0, 13, first=5))) is Outcome.SAME
    assert outcome(gated(*at("a", 1.0, 5), *at("b", 1.5, 13, first=5))) is Outcome.REGRESSED
    (pair,) = evidence.pairings([*at("a", 1.5, 5), *at("b", 1.0, 13, first=5)])
    assert (pair.node, pair.either.count) == ("b", 13)


def test_a_restart_whose_node_was_lost_breaks_no_case() -> None:
    gone = {"status": Status.CRASHED, "cause": Cause.NODE_LOST, "reason": "its node was lost 3 times"}
    measured = at("a", 1.0, 6)
    kept = [each for each in measured if each.restart < 5]
    lost = [msgspec.structs.replace(each, samples={}, facts={}, **gone) for each in measured]
    assert outcome(gated(*kept, *lost[10:])) is Outcome.SAME
    (verdict,) = judgement.judge(gated(*lost)).verdicts
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, "its node was lost in every try")
