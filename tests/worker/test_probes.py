"""Probes of functions whose figures are known by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from attnbench import backends
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, Prepared
from attnbench.records.arm import parse_device
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.worker import probes
from attnbench.worker.prepared_case import PreparedCase

torch = pytest.importorskip("torch")

from attnbench.machine.device.cpu import CpuInstrument  # noqa: E402

Attend = Callable[[Any, Any, Any], Any]
CPU = CpuInstrument(parse_device("cpu:threads=1"))


def prepared(attend: Attend | str, mode: Mode = Mode.FWD, inputs: str = "normal", **fields: Any) -> PreparedCase:
    """A case of a backend, or of a function in place of it."""
    backend: Backend = backends.load(attend if isinstance(attend, str) else "naive")
    if not isinstance(attend, str):
        call = Prepared(call=attend)
        backend = Backend(
            name="naive", summary="", limits=backend.limits, prepare=lambda *_: call, scratch_bytes=lambda _: 0
        )
    problem = Problem(**{"seq_q": 24, "heads": 2, "head_dim": 16, **fields})
    return PreparedCase(Case(problem=problem, backend=backend.name, mode=mode), Procedure(inputs=inputs), backend, CPU)


def test_of_a_linear_function_the_gain_is_the_same_for_any_noise() -> None:
    figures = probes.run(["noise"], prepared(lambda q, k, v: 3 * v))["noise"]
    assert list(figures["gain"]) == ["0.0001", "0.001", "0.01", "0.1"]
    assert all(gain == pytest.approx(1, rel=0.1) for gain in figures["gain"].values())


def test_attention_of_equal_logits_averages_noise_away() -> None:
    figures = probes.run(["noise"], prepared("naive", seq_q=64, inputs="normal"))["noise"]["gain"]
    assert all(0.2 < gain < 3 for gain in figures.values())


def test_noise_in_units_of_an_input_of_zeros_is_no_change() -> None:
    figures = probes.run(["noise"], prepared(lambda q, k, v: v, inputs="zeros"))["noise"]["gain"]
    assert set(figures.values()) == {None}


def test_the_worst_step_of_a_linear_function_goes_into_the_one_input_that_counts() -> None:
    figures = probes.run(["adversarial"], prepared(lambda q, k, v: 3 * v))["adversarial"]
    assert figures["gain"] == pytest.approx(math.sqrt(3), rel=1e-3)  # all of the step in v, of three equal inputs
    assert figures["random_gain"] == pytest.approx(1, rel=0.05)


def test_the_gradient_finds_a_worse_step_than_chance() -> None:
    figures = probes.run(["adversarial"], prepared("naive"))["adversarial"]
    assert figures["gain"] > 2 * figures["random_gain"]


def test_a_function_without_gradient_says_so() -> None:
    figures = probes.run(["adversarial", "double_backward"], prepared(lambda q, k, v: v.detach() * 2))
    assert figures["adversarial"] == {"absent": "the backend gives no gradient"}
    assert "absent" in figures["double_backward"]


def test_bits_that_change_are_seen() -> None:
    count = itertools.count()
    equal = probes.run(["determinism"], prepared("naive", Mode.FWD_BWD))["determinism"]
    other = probes.run(["determinism"], prepared(lambda q, k, v: v + (next(count) == 3)))["determinism"]
    assert equal == {"repeats": 5, "equal": True, "largest": 0.0}
    assert other["equal"] is False
    assert other["largest"] == pytest.approx(1)


def test_what_depends_on_the_batch_is_seen() -> None:
    equal = probes.run(["batch"], prepared("naive", batch=2, mask="causal"))["batch"]
    by_size = probes.run(["batch"], prepared(lambda q, k, v: v * (1 + len(v))))["batch"]
    by_place = probes.run(["batch"], prepared(lambda q, k, v: v + torch.arange(len(v)).view(-1, 1, 1, 1)))["batch"]
    assert equal["equal"] is True
    assert (by_size["equal"], by_place["equal"]) == (False, False)
    assert by_place["largest"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"batch": 2, "requests": "q24_q3"}, "different lengths"), ({"mask": "padding:0.5"}, "differs from sequence")],
)
def test_a_batch_of_different_sequences_is_not_asked(fields: dict[str, Any], reason: str) -> None:
    assert reason in probes.run(["batch"], prepared("naive", **fields))["batch"]["absent"]


def test_the_gradient_of_the_gradient_of_the_plain_formula() -> None:
    figures = probes.run(["double_backward"], prepared("naive"))["double_backward"]
    assert figures["finite"] is True
    assert figures["seconds"] > 0


def test_probes_leave_the_inputs_as_they_were() -> None:
    case = prepared("naive", Mode.FWD_BWD)
    before = [tensor.detach().clone() for tensor in (case.q, case.k, case.v)]
    probes.run(list(probes.PROBES), case)
    assert all(map(torch.equal, before, (case.q, case.k, case.v)))


def test_what_few_bits_cost_and_save() -> None:
    case = prepared("naive", seq_q=64, inputs="normal")
    figures = probes.run(["quantisation"], case)["quantisation"]
    assert 0.001 < figures["error"]["int8"] < figures["error"]["fp8_e4m3"] < 0.1
    numbers = 2 * 2 * 64 * 16  # k and v of two heads
    assert figures["bytes"] == {"fp32": 4 * numbers, "int8": numbers + 1024, "fp8_e4m3": numbers + 1024}
    few = probes.run(["quantisation"], prepared("naive", kv_dtype="int8"))["quantisation"]
    assert "already" in few["absent"]


def test_how_far_a_hard_choice_is_from_a_soft_one() -> None:
    case = prepared("naive", weighting="hard:topk=3", mask="none")
    figures = probes.run(["soft"], case)["soft"]
    logits = case.q.double() @ case.k.double().mT / 4
    weights = logits.softmax(-1)
    hard = logits.masked_fill(logits < logits.topk(3).values[..., -1:], -math.inf).softmax(-1)
    dense = weights @ case.v.double()
    assert figures["error"] == pytest.approx(float((hard @ case.v.double() - dense).norm() / dense.norm()), rel=1e-4)
    assert figures["kept"] == pytest.approx(3 / 24)
    assert "already" in probes.run(["soft"], prepared("naive"))["soft"]["absent"]
