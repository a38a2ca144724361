"""The id of a case depends on values alone; the label says all that is not at its default."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import ProblemError
from attnbench.records.case import Case, canonical

CASE = Case(
    problem=Problem(seq_q=4096, batch=4, heads=32, kv_heads=8, head_dim=128, dtype="bf16", mask="window:512+causal"),
    backend="naive",
)


def test_python_and_json_give_one_id():
    back = msgspec.json.decode(msgspec.json.encode(CASE), type=Case)
    assert (back, back.id) == (CASE, CASE.id)


def test_defaults_written_out_give_the_same_id():
    problem = Problem(
        seq_q=64,
        seq_kv=64,
        batch=1,
        heads=8,
        kv_heads=8,
        head_dim=64,
        head_dim_v=64,
        dtype="fp32",
        mask="none",
        score=Score(),
    )
    assert Case(problem=problem, backend="naive").id == Case(problem=Problem(seq_q=64), backend="naive").id


def test_30_and_30_0_are_one_softcap():
    built = [Case(problem=Problem(seq_q=64, score=Score(softcap=cap)), backend="naive") for cap in (30, 30.0)]
    decoded = msgspec.json.decode(b'{"problem":{"seq_q":64,"score":{"softcap":30}},"backend":"naive"}', type=Case)
    assert len({case.id for case in (*built, decoded)}) == 1


class Inner(msgspec.Struct):
    value: int = 0


class Outer(msgspec.Struct):
    inner: Inner | None = None


def test_a_record_of_defaults_within_a_record_is_left_out():
    assert [canonical(Outer(inner)) for inner in (Inner(), Inner(1))] == [{}, {"inner": {"value": 1}}]


def test_the_canonical_form_has_not_changed():
    # Stored runs are compared by these ids: a change here breaks every baseline.
    assert CASE.id == "c8909cbd0976"


def test_label():
    assert CASE.label == "b4 h32/8 q4096 kv4096 d128 causal+window:512 bf16 fwd naive"
    odd = Problem(seq_q=1, seq_kv=9, head_dim_v=32, score=Score(softcap=30), returns="lse")
    assert Case(problem=odd, backend="flex", mode=Mode.FWD).label == (
        "b1 h8 q1 kv9 d64 dv32 none fp32 fwd returns=lse softcap=30 flex"
    )


@given(
    st.lists(
        st.tuples(
            st.integers(1, 64),
            st.sampled_from([1, 2, 4, 8]),
            st.sampled_from(["none", "causal"]),
            st.sampled_from(list(Mode)),
        ),
        unique=True,
        min_size=2,
        max_size=6,
    )
)
def test_different_cases_have_different_ids(values):
    ids = {
        Case(problem=Problem(seq_q=seq, heads=8, kv_heads=kv, mask=mask), backend="naive", mode=mode).id
        for seq, kv, mask, mode in values
    }
    assert len(ids) == len(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heads": 12, "kv_heads": 8}, "heads=12 is not a multiple of kv_heads=8"),
        ({"batch": -1}, "batch=-1: must be at least 1"),
        ({"dtype": "fp31"}, "dtype='fp31'"),
        ({"mask": "document:9"}, "more documents"),
    ],
)
def test_an_impossible_problem_names_field_and_value(values, words):
    with pytest.raises(ProblemError) as caught:
        Problem(seq_q=8, **values)
    assert words in str(caught.value)


def test_features_are_what_a_backend_must_know():
    assert Problem(seq_q=8).features == frozenset()
    odd = Problem(seq_q=9, seq_kv=8, heads=4, kv_heads=2, mask="causal", score=Score(scale=1, softcap=3))
    assert odd.features == {"causal", "cross", "gqa", "scale", "softcap", "blind_rows"}


def test_the_mode_of_a_case_may_be_given_as_text() -> None:
    case = Case(problem=Problem(seq_q=8), backend="naive", mode="bwd")
    assert case.mode is Mode.BWD
    with pytest.raises(ValueError, match="'sideways' is not a valid Mode"):
        Case(problem=Problem(seq_q=8), backend="naive", mode="sideways")
