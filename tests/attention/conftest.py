"""Expected values that the tests of several backends share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from attnbench.worker.expected_values import ExpectedValues


@pytest.fixture(scope="module")
def expected_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Problem], ExpectedValues]:
    """The expected values of a problem, forward and backward, computed once in a module."""
    from attnbench.worker import expected_values  # imports torch, which the tests of masks do without

    @cache
    def compute(problem: Problem) -> ExpectedValues:
        return expected_values.compute(problem, Mode.FWD_BWD, 0, "normal", tmp_path_factory.mktemp("expected"), 30.0)

    return compute
