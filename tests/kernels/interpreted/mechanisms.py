"""The Triton backend on every bias, on sinks and positions, in both directions; `test_triton_kernels.py` starts it."""

from __future__ import annotations

import pytest
import torch

from attnbench import backends
from attnbench.attention.choices import Mode
from attnbench.backends import scope
from attnbench.records.case import Case
from tests import reference
from tests.attention.test_mechanisms import PROBLEMS, drawn, problem_of

REFUSED = ("hard", "topp", "raw", "sparsemax", "sigmoid", "weights", "additive")

pytestmark = pytest.mark.slow  # `pairs.py` has every pair of features


@pytest.mark.parametrize("name", PROBLEMS)
def test_mechanism(name: str) -> None:
    problem = problem_of(name, head_dim_v=8)
    case, backend = Case(problem=problem, backend="triton", mode=Mode.FWD_BWD), backends.load("triton")
    refused = any(word in name for word in REFUSED)
    assert bool(backend.objections(case, "cpu")) == refused
    if refused:
        return
    qkv, dout = drawn(problem)
    leaves = [tensor.requires_grad_() for tensor in qkv]
    given = scope.prepare(backend, case, "cpu").call(*leaves)
    out = given[0] if isinstance(given, tuple) else given
    gradients = torch.autograd.grad(out, leaves, dout)
    plain = [tensor.detach() for tensor in qkv]
    truth = reference.attend(problem, *plain)
    torch.testing.assert_close(out.double(), truth.out, rtol=1e-5, atol=5e-6)
    if problem.returns == "lse":
        torch.testing.assert_close(given[1].double(), truth.lse, rtol=1e-5, atol=5e-6)
    for found, expected in zip(gradients, reference.gradients(problem, *plain, dout), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
