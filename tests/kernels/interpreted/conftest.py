"""The interpreter, as quick as it can be, for all files beside this one."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.kernels.interpreted.overflow import look_for_overflow
from tests.kernels.interpreted.speed import patch_once


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> None:
    """No look at overflow, but where a test asks for it; objects of the imports are no garbage to look for."""
    look_for_overflow(False)
    patch_once()
    gc.freeze()


@pytest.fixture
def overflow_is_noticed() -> Iterator[None]:
    """A number that 32 bits do not hold is an AssertionError."""
    look_for_overflow(True)
    yield
    look_for_overflow(False)
