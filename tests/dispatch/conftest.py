"""What all tests of the dispatch share."""

import pytest

from attnbench.backends import torch_sdpa


@pytest.fixture(autouse=True)
def every_kernel_of_sdpa() -> None:
    """Earlier tests of this process may have restricted torch's SDPA to one kernel."""
    torch_sdpa.restrict("")
