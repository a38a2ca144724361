"""Fingerprints of outputs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from attnbench.attention import transformations  # noqa: E402
from attnbench.attention.problem import Problem  # noqa: E402
from attnbench.worker.output_checks import Fingerprint  # noqa: E402

NOTHING = transformations.identity(Problem(seq_q=1, heads=2, head_dim=16), gradients=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_of_any_strides_and_offset_have_a_fingerprint(dtype: torch.dtype) -> None:
    values = torch.arange(96).to(dtype)
    one_row = torch.as_strided(values, (1, 2, 1, 16), (32, 16, 1, 1))
    odd_offset = values[3:35].view(1, 2, 1, 16)
    for tensor in (one_row, odd_offset):
        assert Fingerprint({"out": tensor}, NOTHING) == Fingerprint({"out": tensor.clone()}, NOTHING)
        changed = tensor.clone()
        changed[0, 1, 0, 5] += 1
        assert Fingerprint({"out": tensor}, NOTHING) != Fingerprint({"out": changed}, NOTHING)
