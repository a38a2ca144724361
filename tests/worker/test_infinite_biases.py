"""Kernels that are wrong, or NaN, where a bias has infinities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attnbench import backends
from attnbench.backends import Backend, Limits, Prepared
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.worker import probes
from attnbench.worker.prepared_case import PreparedCase

from .test_probes import CPU, prepared

torch = pytest.importorskip("torch")


def outcomes(case: PreparedCase) -> dict[str, str]:
    """The outcomes of the three variants."""
    figures: dict[str, Any] = probes.run([f"values:bias_{name}" for name in ("half", "row", "key")], case)["values"]
    return {name.removeprefix("bias_"): figure["outcome"] for name, figure in figures.items()}


def with_softmax(softmax: Callable[[Any], Any]) -> PreparedCase:
    """A kernel that takes a bias tensor, with that softmax over its logits."""

    def prepare(case: Case, device: str) -> Prepared:
        problem = case.problem
        bias = problem.bias.dense_tensor(problem).float() if problem.bias else torch.zeros(1, 1, 1)
        return Prepared(call=lambda q, k, v: softmax(q @ k.mT * problem.scale + bias) @ v)

    case = prepared("naive").case
    limits: dict[str, Limits] = dict(backends.load("naive").limits)
    backend = Backend(name="naive", summary="", limits=limits, prepare=prepare, scratch_bytes=lambda _: 0)
    return PreparedCase(case, Procedure(), backend, CPU)


@pytest.mark.parametrize(
    ("backend", "row"),
    [("naive", "nan"), ("sdpa:math", "right"), ("sdpa:flash", "right")],  # torch gives 0 for a row of -inf
)
def test_plus_infinity_is_nan_in_the_plain_formula_and_minus_infinity_hides(backend: str, row: str) -> None:
    assert outcomes(prepared(backend, mask="causal", kv_heads=1)) == {"half": "right", "row": row, "key": "nan"}


def test_a_softmax_that_takes_limits_is_right() -> None:
    def softmax(logits: Any) -> Any:
        highest = logits.amax(-1, keepdim=True)
        weights = torch.where(highest.isinf(), logits == highest, (logits - highest).exp()).float()
        weights = weights.masked_fill(highest == float("-inf"), 0)
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)

    assert set(outcomes(with_softmax(softmax)).values()) == {"right"}


def test_a_finite_number_in_place_of_minus_infinity_averages_a_hidden_row() -> None:
    found = outcomes(with_softmax(lambda logits: logits.clamp_min(-1e4).softmax(-1)))
    assert found == {"half": "right", "row": "wrong", "key": "nan"}


def test_a_tile_of_minus_infinity_alone_makes_an_online_softmax_nan() -> None:
    def softmax(logits: Any) -> Any:
        tiles = logits.split(8, dim=-1)
        local = [(tile - tile.amax(-1, keepdim=True)).exp() for tile in tiles]
        highest = logits.amax(-1, keepdim=True)
        moved = [part * (tile.amax(-1, keepdim=True) - highest).exp() for part, tile in zip(local, tiles, strict=True)]
        weights = torch.cat(moved, dim=-1)
        return weights / weights.sum(-1, keepdim=True)

    assert outcomes(with_softmax(softmax))["half"] == "wrong"


def test_nan_in_other_rows_is_wrong() -> None:
    def softmax(logits: Any) -> Any:
        weights = logits.softmax(-1)
        return weights * float("nan") if weights.isnan().any() else weights

    assert outcomes(with_softmax(softmax)) == {"half": "right", "row": "wrong", "key": "wrong"}


@pytest.mark.parametrize("fields", [{"seq_q": 1}, {"returns": "lse"}, {"weighting": "sigmoid"}])
def test_cases_without_such_a_bias_say_so(fields: dict[str, Any]) -> None:
    assert set(outcomes(prepared("naive", **fields)).values()) == {"absent"}


def test_a_backend_without_biases_has_no_such_variants() -> None:
    figures = probes.run(["values:bias_row"], prepared("varlen", requests="2q3", batch=2, seq_q=3, seq_kv=3))
    assert figures["values"]["bias_row"]["outcome"] == "absent"
