"""Exponents from made-up times, and what they say of claims."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.analysis import stats
from attnbench.analysis.rows import rows_of
from attnbench.analysis.stats import Estimate
from attnbench.attention.problem import Problem
from attnbench.records.result import Result, sample
from attnbench.report.terminal import scaling as report
from attnbench.studies import scaling
from attnbench.studies.scaling import ClaimVerdict
from tests.samples import result

SEQ = [256, 362, 512, 724, 1024, 1448, 2048, 2896, 4096]


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_the_interval_holds_the_true_exponent_in_93_of_100_runs(exponent: float) -> None:
    source = np.random.default_rng(int(exponent))
    held = 0
    for _ in range(300):
        times = [1e-9 * n**exponent * math.exp(source.normal(0, 0.05)) for n in SEQ]
        _, _, law = scaling.fit(list(zip(SEQ, times, strict=True)))
        assert law.low is not None
        assert law.high is not None
        held += law.low <= exponent <= law.high
    assert held >= 0.93 * 300


def test_noise_alone_is_inconclusive() -> None:
    source = np.random.default_rng(0)
    verdicts = []
    for _ in range(100):
        times = [math.exp(source.normal(0, 1.5)) for _ in SEQ]
        _, _, law = scaling.fit(list(zip(SEQ, times, strict=True)))
        verdicts.append(scaling.judge(law, 2.0))
    assert verdicts.count(ClaimVerdict.CONFIRMED) == 0
    assert verdicts.count(ClaimVerdict.INCONCLUSIVE) > 60


@given(st.floats(-1, 4), st.floats(1e-12, 1.0), st.lists(st.integers(1, 10**6), min_size=4, max_size=12, unique=True))
def test_an_exact_power_is_found_exactly(exponent: float, factor: float, lengths: list[int]) -> None:
    x = sorted(lengths)
    y = [factor * n**exponent for n in x]
    assert stats.power_law(x, y).value == pytest.approx(exponent, abs=1e-6)
    assert stats.local_slopes(x, y) == pytest.approx([exponent] * (len(x) - 1), abs=1e-6)


def test_overhead_at_the_short_end_stays_out_of_the_fit() -> None:
    points = [(float(n), 1e-4 + 1e-9 * n**2) for n in SEQ]
    slopes, tail, law = scaling.fit(points)
    assert slopes[0] < 1.2
    assert tail == 5
    assert law.value > 1.8


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.87, 2.13, ClaimVerdict.CONFIRMED),
        (1.75, 2.25, ClaimVerdict.CONFIRMED),
        (1.70, 2.10, ClaimVerdict.INCONCLUSIVE),
        (2.30, 2.50, ClaimVerdict.REFUTED),
        (0.50, 1.70, ClaimVerdict.REFUTED),
        (0.50, 3.00, ClaimVerdict.INCONCLUSIVE),
        (None, None, ClaimVerdict.INCONCLUSIVE),
    ],
)
def test_the_interval_decides_not_the_value(low: float | None, high: float | None, verdict: ClaimVerdict) -> None:
    assert scaling.judge(Estimate(value=2.0, low=low, high=high), 2.0) is verdict


def measured(seconds: Any, backend: str = "naive", peak: Any = None, **fields: Any) -> Result:
    """A case with that time and that peak."""
    measured = result([seconds] * 5, backend=backend, problem=Problem(**fields))
    samples = {**measured.samples, "total_memory": sample("B", [peak])} if peak else measured.samples
    return type(measured)(**{**{f: getattr(measured, f) for f in measured.__struct_fields__}, "samples": samples})


def quadratic() -> list[Result]:
    """naive writes its scores, flash does not; both take n^2 d."""
    results = []
    for n in (256, 512, 1024, 2048, 4096):
        results.append(measured(1e-9 * n**2, seq_q=n, peak=8 * n * n))
        results.append(measured(5e-10 * n**2, "sdpa:flash", seq_q=n, peak=2048 * n))
    results += [
        measured(1e-5 * d, "sdpa:flash", seq_q=999, batch=3, head_dim=d, peak=4000 * d) for d in (32, 64, 128, 256)
    ]
    return results


def test_families_differ_along_one_axis_alone() -> None:
    laws = list(scaling.laws(rows_of(quadratic())))
    seen = {(law.quantity, law.backend, law.axis): law.measured.value for law in laws}
    assert seen == {
        ("peak", "naive", "seq"): pytest.approx(2),
        ("peak", "sdpa:flash", "seq"): pytest.approx(1),
        ("peak", "sdpa:flash", "head_dim"): pytest.approx(1),
        ("time", "naive", "seq"): pytest.approx(2),
        ("time", "sdpa:flash", "seq"): pytest.approx(2),
        ("time", "sdpa:flash", "head_dim"): pytest.approx(1),
    }
    assert all(law.verdict is ClaimVerdict.CONFIRMED for law in laws)


def test_heads_at_one_width_of_the_model_are_an_axis_of_their_own() -> None:
    rows = rows_of([measured(1e-3, seq_q=512, heads=h, head_dim=512 // h) for h in (2, 4, 8, 16)])
    (law,) = scaling.laws(rows)
    assert (law.axis, law.predicted, law.measured.value) == ("heads at d_model", 0, pytest.approx(0))


def test_the_claims_of_the_literature() -> None:
    verdicts = {
        (claim.id, claim.says): claim.verdict for claim in scaling.claims(list(scaling.laws(rows_of(quadratic()))))
    }
    assert verdicts == {
        ("C1", "time is O(d^3 + d^2 n)"): ClaimVerdict.REFUTED,
        ("C2", "time is O(n^3)"): ClaimVerdict.REFUTED,
        ("C5", "time is O(n^2)"): ClaimVerdict.CONFIRMED,
        ("C5", "space is O(n^2), scores written out"): ClaimVerdict.CONFIRMED,
        ("C5", "space is O(n^2), fused kernels"): ClaimVerdict.REFUTED,
        ("C3", "parallel heads save work (d_model fixed)"): ClaimVerdict.REFUTED,
        ("C4", "many heads need many more parameters (d_model fixed)"): ClaimVerdict.REFUTED,
    }


def test_cubic_times_confirm_what_they_are() -> None:
    rows = rows_of([measured(1e-12 * n**3, seq_q=n) for n in (256, 512, 1024, 2048)])
    verdicts = {claim.says: claim.verdict for claim in scaling.claims(list(scaling.laws(rows)))}
    assert verdicts["time is O(n^3)"] is ClaimVerdict.CONFIRMED
    assert verdicts["time is O(n^2)"] is ClaimVerdict.REFUTED


def test_three_points_are_no_law() -> None:
    assert list(scaling.laws(rows_of([measured(1e-3, seq_q=n) for n in (64, 128, 256)]))) == []


@pytest.mark.parametrize("heads", [1, 2, 8, 32])
def test_projections_have_as_many_parameters_whatever_the_heads(heads: int) -> None:
    assert scaling.parameters(512, heads) == 4 * 512 * 512


def test_the_table_has_the_columns_of_the_documentation_and_fits_a_terminal() -> None:
    laws = list(scaling.laws(rows_of(quadratic())))
    first, *_ = report.laws(laws, None)
    assert first.split("  ")[0] == "quantity"
    assert [head for head in report.HEADINGS if head in first] == list(report.HEADINGS)
    assert max(map(len, report.laws(laws, 80))) <= 80
    line = next(line for line in report.laws(laws, None) if line.startswith("peak naive"))
    assert line.split() == ["peak", "naive", "seq", "512..4k", "2", "2.00", "2.00..2.00", *["2.00"] * 4, "confirmed"]


def test_what_keeps_a_law_from_a_verdict_is_told() -> None:
    rows = rows_of([measured(1e-9 * n**2.2, seq_q=n) for n in (256, 512, 1024)] + [measured(9e-3, seq_q=2048)])
    (law,) = scaling.laws(rows)
    assert law.verdict is ClaimVerdict.INCONCLUSIVE
    assert "crosses" in law.why or law.why == "noisy"
