"""The ranking of a shape from the measured problems around it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.dispatch import nearest
from attnbench.dispatch.nearest import CallKind, MeasuredProblem
from attnbench.studies.dispatch_table import Choice, Ranked

LENGTHS = [2**power for power in range(4, 13)]
DENSE = CallKind("cpu", "fp32", "none", "fwd")


def choice(problem: Problem, **times: float) -> Choice:
    fastest = min(times.values())
    ranking = tuple(Ranked(backend=name, over=time / fastest) for name, time in times.items())
    return Choice(
        problem=f"q{problem.seq_q}", device="cpu", mode="fwd", shape={}, backend="", time_s=fastest, tied=(), second="",
        gain=None, axes=problem, ranking=ranking,
    )  # fmt: skip


def times(problem: Problem) -> dict[str, float]:
    """A constant beside the work: `flash` costs more to start and less for each pair, so that it wins when long."""
    pairs = problem.batch * problem.heads * problem.seq_q * problem.seq_kv
    return {"naive": 1.0 + pairs / 1e5, "flash": 3.0 + pairs / 3e5}


def sweep(lengths: list[int], heads: list[int]) -> list[MeasuredProblem]:
    problems = [Problem(seq_q=seq, heads=count) for seq in lengths for count in heads]
    return nearest.index(choice(problem, **times(problem)) for problem in problems)[DENSE]


def over_best(measured: list[MeasuredProblem], problem: Problem) -> float:
    ranking = nearest.rank(measured, problem)
    assert ranking
    true = times(problem)
    return true[next(iter(ranking.backends))] / min(true.values())


def test_a_measured_problem_has_its_own_ranking() -> None:
    for seq in LENGTHS:
        assert over_best(sweep(LENGTHS, [8]), Problem(seq_q=seq)) == 1.0


def test_hidden_shapes_of_a_sweep_get_a_backend_within_5_percent() -> None:
    factors = []
    for hidden in [Problem(seq_q=seq, heads=heads) for seq in LENGTHS for heads in (1, 2, 4, 8, 16)]:
        rest = [each for each in sweep(LENGTHS, [1, 2, 4, 8, 16]) if each.place != nearest._place(hidden)]
        factors.append(over_best(rest, hidden))
    assert sum(factor <= 1.05 for factor in factors) >= 0.95 * len(factors)


def test_the_choice_changes_where_both_are_equally_fast() -> None:
    """Between q64 and q512 in octaves lies q181; flash is faster from q92 on."""
    two = [choice(Problem(seq_q=64), naive=1.0, flash=1.5), choice(Problem(seq_q=512), naive=8.0, flash=1.0)]
    measured = nearest.index(two)[DENSE]
    first = [next(iter(nearest.rank(measured, Problem(seq_q=seq)).backends)) for seq in (80, 170, 190, 400)]
    assert first == ["naive", "flash", "flash", "flash"]


@given(
    st.lists(st.sampled_from(LENGTHS), min_size=1, unique=True),
    st.integers(1, 5000),
    st.integers(1, 64),
    st.randoms(use_true_random=False),
)
def test_the_ranking_is_of_backends_that_are_ranked_nearby_whatever_the_order(lengths, seq, heads, random) -> None:
    measured = sweep(lengths, [1, 4])
    problem = Problem(seq_q=seq, heads=heads)
    ranking = nearest.rank(measured, problem)
    shuffled = list(measured)
    random.shuffle(shuffled)
    again = nearest.rank(shuffled, problem)
    distances = [math.dist(nearest._place(problem), each.place) for each in measured]
    assert (ranking is None) == (min(distances) > nearest.MAX_OCTAVES) == (again is None)
    if ranking and again:
        assert set(ranking.backends) == {"naive", "flash"}
        assert ranking.octaves == min(distances)
        assert next(iter(ranking.backends.values())) == 1.0
        assert list(ranking.backends.values()) == sorted(ranking.backends.values())
        assert again.backends == pytest.approx(ranking.backends)


@given(st.sampled_from(LENGTHS), st.sampled_from(["naive", "flash"]))
def test_a_backend_that_is_missing_beside_a_shape_is_not_taken_there(seq, missing) -> None:
    around = [choice(Problem(seq_q=seq // 2), naive=1.0, flash=1.0)]
    other = {"naive": 1.0, "flash": 1.0}
    del other[missing]
    around.append(choice(Problem(seq_q=seq * 2), **other))
    ranking = nearest.rank(nearest.index(around)[DENSE], Problem(seq_q=seq))
    assert ranking
    assert list(ranking.backends) == list(other)


def test_neighbours_without_a_common_backend_leave_the_nearest() -> None:
    around = [choice(Problem(seq_q=64), naive=1.0), choice(Problem(seq_q=300), flash=1.0)]
    ranking = nearest.rank(nearest.index(around)[DENSE], Problem(seq_q=128))
    assert ranking
    assert (list(ranking.backends), ranking.nearest) == (["naive"], "q64")


def test_only_dense_and_causal_problems_are_calls() -> None:
    others = [
        Problem(seq_q=64, mask="causal+window:8"),
        Problem(seq_q=64, sinks=True),
        Problem(seq_q=64, score=Score(softcap=5.0)),
        Problem(seq_q=64, page_size=16),
        Problem(seq_q=64, scope="block"),
    ]
    assert nearest.index(choice(problem, naive=1.0) for problem in others) == {}
    scaled = Problem(seq_q=64, score=Score(scale=0.5), mask="causal")
    assert list(nearest.index([choice(scaled, naive=1.0)])) == [CallKind("cpu", "fp32", "causal", "fwd")]


def test_a_causal_query_that_sees_every_key_is_as_a_dense_one() -> None:
    decode = Problem(seq_q=1, seq_kv=64, mask="causal")
    assert list(nearest.index([choice(decode, naive=1.0)])) == [DENSE]
    assert nearest.plain(Problem(seq_q=2, seq_kv=64, mask="causal")) == Problem(seq_q=2, seq_kv=64, mask="causal")


def test_a_far_problem_says_nothing() -> None:
    measured = sweep([64], [8])
    assert nearest.rank(measured, Problem(seq_q=64 * 16, seq_kv=64))
    assert nearest.rank(measured, Problem(seq_q=64 * 17, seq_kv=64)) is None
    assert nearest.rank([], Problem(seq_q=64)) is None
