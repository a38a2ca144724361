"""The condition that failed cases share, against a search over all conditions."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.analysis import common_axes
from attnbench.analysis.common_axes import Condition
from attnbench.attention.problem import Problem
from attnbench.records.result import Result, Status
from tests.samples import result

FEATURES = st.frozensets(st.sampled_from(["causal", "gqa", "window"]))
CASES = st.lists(
    st.fixed_dictionaries(
        {
            "seq_kv": st.sampled_from([64, 128, 256]),
            "mask": st.sampled_from(["none", "causal"]),
            "softcap": st.sampled_from([None, 5.0, 30.0]),
            "sinks": st.booleans(),
            "features": FEATURES,
        }
    ),
    min_size=1,
    max_size=5,
)
RELATIONS = {"=": operator.eq, ">": operator.gt, "<": operator.lt, "has": operator.contains}


def every_condition(cases: list[dict[str, Any]]) -> list[Condition]:
    """All conditions on the values of these cases."""
    conditions = []
    for axis, case in itertools.product(cases[0], cases):
        if isinstance(case[axis], frozenset):
            conditions += [Condition(axis, "has", word) for word in case[axis]]
            continue
        numeric = all(type(other[axis]) in (int, float) for other in cases)
        conditions += [Condition(axis, relation, case[axis]) for relation in ("=><" if numeric else "=")]
    return conditions


def holds(condition: Condition, case: dict[str, Any]) -> bool:
    """Whether a case fulfils the condition."""
    return bool(RELATIONS[condition.relation](case[condition.axis], condition.value))


@given(CASES, CASES)
def test_the_conditions_are_the_simplest_that_a_search_over_all_finds(
    failed: list[dict[str, Any]], passed: list[dict[str, Any]]
) -> None:
    def separates(condition: Condition) -> bool:
        return all(holds(condition, case) for case in failed) and not any(holds(condition, case) for case in passed)

    every = [condition for condition in every_condition([*failed, *passed]) if separates(condition)]
    conditions = common_axes.separating(failed, passed)
    assert all(map(separates, conditions))
    kinds = [("=",), (">", "<"), ("has",)]
    simplest = next((kind for kind in kinds if any(each.relation in kind for each in every)), ())
    # The same axes, except those with the values of an earlier one.
    vectors = {tuple(case[each.axis] for case in (*failed, *passed)) for each in every if each.relation in simplest}
    assert {tuple(case[each.axis] for case in (*failed, *passed)) for each in conditions} == vectors
    assert {each.relation for each in conditions} <= set(simplest)


def case(status: Status, seq: int = 64, inputs: str = "normal", **fields: Any) -> Result:
    """A case that ended so."""
    measured = result([1.0], problem=Problem(seq_q=fields.pop("seq_q", seq), seq_kv=seq, **fields))
    procedure = msgspec.structs.replace(measured.procedure, inputs=inputs)
    return msgspec.structs.replace(measured, status=status, procedure=procedure)


OK, BAD = Status.OK, Status.INCORRECT


@pytest.mark.parametrize(
    ("results", "shared"),
    [
        ([case(OK, 64), case(OK, 128), case(BAD, 256), case(Status.CRASHED, 512)], "seq > 128"),
        (
            [case(OK, 128, seq_q=1), case(OK, 64, seq_q=512), case(BAD, 256, seq_q=1), case(BAD, 512, seq_q=128)],
            "seq_kv > 128",
        ),
        ([case(OK, head_dim=64), case(BAD, head_dim=32), case(BAD, head_dim=16)], "head_dim < 64"),
        ([case(OK), case(BAD, mask="causal"), case(BAD, 128, mask="causal")], "mask = causal"),
        ([case(OK), case(BAD, inputs="large"), case(BAD, 128, inputs="large")], "inputs = large"),
        (
            [case(OK), case(OK, mask="window:8"), case(BAD, mask="causal"), case(BAD, mask="causal+window:8")],
            "the feature causal",
        ),
    ],
)
def test_the_shared_condition_is_one_sentence(results: list[Result], shared: str) -> None:
    failures = sum(result.status.failed for result in results)
    assert (
        common_axes.sentence(results)
        == f"all {failures} failures have {shared}, and no right case of this backend has it"
    )


@pytest.mark.parametrize(
    "results",
    [
        [case(OK, 64), case(BAD, 128), case(OK, 256), case(BAD, 512)],
        [case(OK, 64), case(BAD, 128)],
        [case(BAD, 64), case(BAD, 128)],
        [case(Status.UNSUPPORTED, 64), case(BAD, 128), case(BAD, 256)],
    ],
)
def test_nothing_is_said_without_such_a_condition(results: list[Result]) -> None:
    assert common_axes.sentence(results) == ""
