"""Laws of time: what they find in made-up cost functions, and how right their intervals are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.analysis.cost_law import CostLaw, Floats, rows_of
from attnbench.analysis.workload import Workload, kind_of, of_backend, workload
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score, Similarity

LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
GRID = [workload(Problem(seq_q=seq, heads=heads), Mode.FWD) for seq in LENGTHS for heads in (1, 2, 4, 8, 16)]
Cost = Callable[[Workload], float]
COSTS: dict[str, Cost] = {
    "compute": lambda w: 2e-6 + w.dense_flops / 5e10,
    "bandwidth": lambda w: 2e-6 + w.bytes / 1e10,
    "the larger of both": lambda w: 5e-6 + max(w.dense_flops / 5e10, w.bytes / 1e9),
    "steps of tiles": lambda w: 5e-6 + 3e-6 * w.sequences * math.ceil(w.queries / 64) * math.ceil(w.keys / 64),
    "waves of four cores": lambda w: 5e-6 + 2e-8 * math.ceil(w.sequences / 4) * w.queries * w.keys,
    "a cache that overflows": lambda w: 2e-6 + w.dense_flops / 5e10 * (1 + (w.bytes > 2e6)),
}


def values(cost: Cost, noise: float = 0.0) -> Floats:
    exact = np.array([cost(sizes) for sizes in GRID])
    scatter: Floats = np.exp(noise * np.random.default_rng(0).standard_normal(len(GRID)))
    return exact * scatter


def at(law: CostLaw, problem: Problem) -> float:
    return float(law.at(rows_of([workload(problem, Mode.FWD)]))[0])


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("name", COSTS)
def test_hidden_cases_are_predicted_within_ten_percent_and_nine_of_ten_in_their_interval(
    name: str, noise: float
) -> None:
    sizes, times = rows_of(GRID), values(COSTS[name], noise)
    fold = np.random.default_rng(1).permutation(len(GRID)) % 10
    errors, inside = [], []
    for hidden in range(10):
        law = CostLaw(sizes[fold != hidden], times[fold != hidden])
        error = np.abs(np.log(law.at(sizes[fold == hidden]) / times[fold == hidden]))
        errors += list(np.expm1(error))
        inside += list(np.exp(error) <= law.margin)
    assert np.median(errors) <= 0.10
    assert np.mean(inside) >= 0.85


@given(
    exponents=st.tuples(st.floats(0.5, 2.5), st.floats(0.3, 1.2)), factor=st.floats(1e-9, 1e-6),
    seq=st.integers(16, 4096), heads=st.integers(1, 16),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_a_power_law_without_noise_is_found_exactly(
    exponents: tuple[float, float], factor: float, seq: int, heads: int
) -> None:
    def cost(sizes: Workload) -> float:
        return float(factor * sizes.queries ** exponents[0] * sizes.sequences ** exponents[1])

    law = CostLaw(rows_of(GRID), values(cost))
    problem = Problem(seq_q=seq, heads=heads)
    assert at(law, problem) == pytest.approx(cost(workload(problem, Mode.FWD)), rel=1e-4)


@given(
    overhead=st.floats(1e-7, 1e-4), flop_per_s=st.floats(1e9, 1e12), bytes_per_s=st.floats(1e9, 1e11),
    seqs=st.tuples(st.integers(16, 4096), st.integers(16, 4096)), heads=st.integers(1, 16),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_predictions_are_positive_and_rise_with_the_length(
    overhead: float, flop_per_s: float, bytes_per_s: float, seqs: tuple[int, int], heads: int
) -> None:
    law = CostLaw(rows_of(GRID), values(lambda w: overhead + w.dense_flops / flop_per_s + w.bytes / bytes_per_s))
    shorter, longer = (at(law, Problem(seq_q=seq, heads=heads)) for seq in sorted(seqs))
    assert 0 < shorter <= longer * (1 + 1e-6)


def test_far_outside_the_measured_sizes_the_work_decides() -> None:
    """Lengths up to 4096 were measured: of an effect that ends there, nothing is continued to sixteen times more."""
    law = CostLaw(rows_of(GRID), values(lambda w: w.dense_flops / 5e10 * w.queries**0.3))
    sizes = rows_of([workload(Problem(seq_q=seq, heads=4), Mode.FWD) for seq in (8192, 65536)])
    near, far = law.at(sizes)
    assert list(law.covers(sizes)) == [True, False]
    assert far / near == pytest.approx(64, rel=0.01)


@pytest.mark.parametrize(
    ("seq_q", "seq_kv", "octaves"),
    [(256, 256, 0), (300, 700, 0), (256, 1024, 0), (2048, 2048, 1), (64, 64, 2), (512, 4096, 2), (1024, 256, 1)],
)
def test_distance_from_the_measured_sizes_by_hand(seq_q: int, seq_kv: int, octaves: float) -> None:
    """Measured: a triangle with its corners at queries and keys of (256, 256), (256, 1024) and (1024, 1024).

    From 1024 queries and 256 keys the nearest measured point is (512, 512): an octave away in each size.
    """
    measured = [
        workload(Problem(seq_q=q, seq_kv=kv), Mode.FWD)
        for q, kv in ((256, 256), (256, 512), (256, 1024), (512, 512), (512, 1024), (1024, 1024))
    ]
    law = CostLaw(rows_of(measured), np.array([COSTS["compute"](each) for each in measured]))
    outside = law.octaves_outside(workload(Problem(seq_q=seq_q, seq_kv=seq_kv), Mode.FWD))
    assert outside == pytest.approx(octaves, abs=1e-6)


@pytest.mark.parametrize(("seq", "window", "inside"), [(128, 100, True), (150, 100, True), (150, 10, False)])
def test_a_visible_share_between_those_of_the_neighbours_is_inside(seq: int, window: int, inside: bool) -> None:
    """The share bends where a window of 100 begins to cut, so that it lies beside the hull of the other lengths."""

    def sizes(length: int, reach: int) -> Workload:
        return workload(Problem(seq_q=length, mask=f"window:{reach}"), Mode.FWD)

    measured = [sizes(2**power, 100) for power in (5, 6, 8, 9, 10)]
    law = CostLaw(rows_of(measured), np.array([COSTS["compute"](each) for each in measured]))
    assert (law.octaves_outside(sizes(seq, window)) == 0) is inside


def test_few_cases_give_an_interval_of_less_confidence() -> None:
    sizes, times = rows_of(GRID), values(COSTS["compute"], 0.05)
    assert CostLaw(sizes, times).confidence == 0.9
    assert CostLaw(sizes[:6], times[:6]).confidence == pytest.approx(6 / 7)


def test_a_case_without_which_a_size_would_not_vary_gives_no_error_that_is_not_a_number() -> None:
    sizes = [workload(Problem(seq_q=seq, heads=4), Mode.FWD) for seq in LENGTHS]
    sizes.append(workload(Problem(seq_q=512, heads=4, head_dim=128), Mode.FWD))
    law = CostLaw(rows_of(sizes), np.array([COSTS["compute"](each) for each in sizes]))
    assert np.isfinite(law.errors).all()


def test_sizes_of_a_problem_by_hand() -> None:
    """2 x 8 heads of 100 queries and 300 keys: 480,000 pairs, and 4 x 64 FLOPs of each."""
    sizes = workload(Problem(batch=2, heads=8, kv_heads=2, seq_q=100, seq_kv=300), Mode.FWD)
    assert (sizes.sequences, sizes.kv_sequences, sizes.queries, sizes.keys) == (16, 4, 100, 300)
    assert (sizes.pairs, sizes.dense_flops) == (480_000, 480_000 * 256)
    assert sizes.bytes == 4 * 64 * (2 * 16 * 100 + 2 * 4 * 300)


def test_a_backend_that_pads_has_the_sizes_of_the_longest_request() -> None:
    problem = Problem(batch=2, seq_q=100, seq_kv=1000, mask="causal", requests="q100s1000_q1s10")
    assert of_backend(problem, Mode.FWD, "sdpa:padded").pairs == 2 * 8 * 100 * 1000
    assert of_backend(problem, Mode.FWD, "sdpa:flash").pairs == 8 * (100 * 1000 + 10)


def test_the_kind_of_a_problem_holds_no_sizes() -> None:
    plain = Problem(seq_q=64)
    assert kind_of(plain) == kind_of(Problem(batch=3, seq_q=1, seq_kv=512, heads=4, kv_heads=2, head_dim_v=128))
    others = [
        Problem(seq_q=64, mask="causal"), Problem(seq_q=64, mask="causal+window:8"), Problem(seq_q=64, sinks=True),
        Problem(seq_q=64, scope="block"), Problem(seq_q=64, positions="rope"), Problem(seq_q=64, page_size=16),
        Problem(seq_q=64, kv_dtype="int8"), Problem(seq_q=64, requests="q64s64"),
        Problem(seq_q=64, scope="block", autocast="bf16"), Problem(seq_q=64, scope="block", autocast="fp16"),
        Problem(seq_q=64, score=Score(similarity=Similarity.COSINE)),
    ]  # fmt: skip
    kinds = {kind_of(each) for each in (plain, *others)}
    assert len(kinds) == 1 + len(others)
