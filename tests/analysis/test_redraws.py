"""Intervals of a replay hold the truth in at least 93 % of redraws, on made-up cost functions."""

from functools import cache

import numpy as np
import pytest

from tests.analysis import redraws

REDRAWS, LEAST = 200, 0.93
FEWEST, DEFAULT = redraws.DRAWS
# Of intervals that were made too short on purpose, these notice all that others notice.
QUICK = {("libraries", DEFAULT)} | {(name, FEWEST) for name in ("libraries", *redraws.NAMES[4:])}
CASES = [
    pytest.param(name, draws, marks=[] if (name, draws) in QUICK else pytest.mark.slow)
    for name in redraws.NAMES
    for draws in redraws.DRAWS
]


@cache
def coverage(name, draws):
    return redraws.coverage(name, draws, REDRAWS)


@pytest.mark.parametrize(("name", "draws"), CASES)
def test_intervals_hold_the_truth(name, draws):
    found = coverage(name, draws)
    short = {quantity: each.share for quantity, each in found.items() if each.holds and each.share < LEAST}
    assert not short


def test_errors_of_totals_are_those_of_the_documentation():
    found = coverage("libraries", DEFAULT)
    costs = redraws.cost_functions()[1]["libraries"]
    for backend, most in (("fused", 0.004), ("loop", 0.02), ("padded", 0.15)):
        errors = np.array(found[f"seconds of {backend}"].errors) / costs[backend].sum()
        assert np.sqrt(np.mean(errors**2)) <= most
        assert abs(np.mean(errors)) < most / 4
