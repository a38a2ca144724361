"""Biases, sinks, weightings, dropout, positions and scopes by every backend on a GPU, judged as a run judges them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.inputs import make
from attnbench.attention.problem import Problem
from attnbench.backends import BUILTIN, Layout, scope
from attnbench.records.case import Case
from attnbench.worker import correctness, expected_values
from tests.attention.test_mechanisms import PROBLEMS
from tests.gpu.test_backends_on_gpu import DEVICE, available

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

ON_GPU = tuple(name for name in BUILTIN if not name.startswith(("ring", "ulysses")))
SHAPE = {"batch": 2, "heads": 8, "kv_heads": 4, "seq_q": 130, "seq_kv": 200, "head_dim": 64, "head_dim_v": 64}
MORE: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.1},
    "block": {"scope": "block"},
    "layer": {"scope": "layer:2", "seq_q": 200, "mask": "causal"},
    "autocast": {"scope": "layer:1", "seq_q": 200, "dtype": "fp32", "autocast": "bf16"},
    "edges": {"score": {"bias": "edge:3"}},
    "pages": {"page_size": 64, "seq_q": 1, "mask": "causal"},
}


def problem_of(name: str, dtype: str) -> Problem:
    from attnbench.attention.scores import Score

    fields = {"dtype": dtype, **(PROBLEMS | MORE)[name]}
    if isinstance(fields.get("score"), dict):
        fields["score"] = Score(**fields["score"])
    if fields.get("seq_q") == 11:  # rows that see nothing: more queries than keys
        fields |= {"seq_q": 200, "seq_kv": 130}
    return Problem(**{**SHAPE, **fields})


@cache
def expected_of(problem: Problem, mode: Mode, base: Path) -> expected_values.ExpectedValues:
    """Expected values, computed once for all backends, in a folder below `base`."""
    folder = base / Case(problem=problem, backend="naive", mode=mode).id
    folder.mkdir()
    return expected_values.compute(problem, mode, 0, "normal", folder, 60.0)


def assert_right(case: Case, base: Path) -> None:
    """Skip what the backend does not take here; else judge what it computes on the GPU."""
    chosen, reason = available(case.backend)
    reason = reason or "; ".join(chosen.objections(case, "cuda", torch.cuda.get_device_capability()))
    if reason:
        pytest.skip(reason)
    expected = expected_of(case.problem, case.mode, base)
    made, flip = make(case.problem, 0), chosen.layout is Layout.BSHD
    prepared = scope.prepare(chosen, case, DEVICE)

    def placed(letter: str) -> Any:
        tensor = getattr(made, letter)
        if prepared.stored and letter in "kv":
            return prepared.stored(tensor).to(DEVICE)
        return (tensor.transpose(1, 2).contiguous() if flip else tensor).to(DEVICE)

    leaves = [placed(letter).requires_grad_(case.mode.needs_grad) for letter in "qkv"]
    with torch.set_grad_enabled(case.mode.needs_grad):
        given = prepared.call(*leaves)
    first, *rest = given if isinstance(given, tuple) else (given,)
    outputs = {"out": first, **dict(zip([case.problem.returns.value], rest, strict=False))}
    if case.mode.needs_grad:
        dout = made.dout.transpose(1, 2).contiguous() if flip else made.dout
        gradients = torch.autograd.grad(first, leaves, dout.to(DEVICE), materialize_grads=True)
        outputs |= zip(("dq", "dk", "dv"), gradients, strict=True)
    turned = {
        key: tensor.transpose(1, 2) if flip and key not in ("lse", "weights") else tensor
        for key, tensor in outputs.items()
    }
    judged = correctness.judge(expected, turned, factor=chosen.error_factor)
    assert judged.ok, judged.reason


@pytest.mark.parametrize("mode", [Mode.FWD, Mode.FWD_BWD])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", [*PROBLEMS, *MORE])
@pytest.mark.parametrize("backend", ON_GPU)
def test_mechanism(backend: str, name: str, dtype: str, mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    assert_right(Case(problem=problem_of(name, dtype), backend=backend, mode=mode), base)
