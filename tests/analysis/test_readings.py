"""Medians of blocks, against the standard library."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.analysis import readings
from attnbench.records.result import Sample, TimedBlock

VALUES = st.one_of(st.none(), st.floats(1e-9, 1e3))
BLOCKS = st.one_of(
    st.integers(1, 6).flatmap(lambda size: st.lists(st.lists(VALUES, min_size=size, max_size=size), max_size=8)),
    st.lists(st.lists(VALUES, min_size=1, max_size=6), max_size=8),
)


@given(BLOCKS)
def test_the_median_of_each_block_is_that_of_its_finite_readings(blocks: list[list[float | None]]) -> None:
    counts = [TimedBlock(round=number, position=0, readings=len(values)) for number, values in enumerate(blocks)]
    sample = Sample(unit="s", values=tuple(value for values in blocks for value in values), blocks=tuple(counts))
    finite = [[value for value in values if value is not None] for values in blocks]
    assert list(readings.block_medians(sample)) == [
        pytest.approx(statistics.median(values)) if values else None for values in finite
    ]


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=30))
def test_the_lower_quartile_is_that_of_numpy(values: list[float]) -> None:
    assert readings.location(values, "lower_quartile") == np.quantile(values, 0.25)
