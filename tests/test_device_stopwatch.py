from __future__ import annotations

from importlib.util import find_spec

import pytest

from attnbench.arm import parse_device
from attnbench.device import cupti, exact_fp32
from attnbench.result import Cache, Procedure, Timing

torch = pytest.importorskip("torch")

from attnbench.device.cuda import CudaInstrument, pace_of  # noqa: E402
from attnbench.device.stopwatch import _near, hidden_s  # noqa: E402

COLD = Procedure(timing=Timing.EVENTS, cache=Cache.COLD)
WARM = Procedure(timing=Timing.EVENTS, cache=Cache.WARM)
GRAPH = Procedure(timing=Timing.GRAPH, cache=Cache.COLD)


@pytest.mark.parametrize("call_s", [1e-6, 50e-6, 1e-3, 0.5])
def test_a_cold_reading_is_one_call(call_s: float) -> None:
    calls, readings = pace_of(call_s, COLD)
    assert calls == 1
    assert readings in (16, round(COLD.block_s / call_s), 1)


def test_a_warm_reading_is_a_thousand_times_what_events_resolve() -> None:
    calls, _ = pace_of(20e-6, WARM)
    assert calls * 20e-6 >= 1000 * 0.5e-6


@pytest.mark.parametrize(("call_s", "calls"), [(5e-6, 64), (50e-6, 10), (2e-3, 1)])
def test_a_graph_holds_as_many_calls_as_events_need_to_resolve_it(call_s: float, calls: int) -> None:
    assert pace_of(call_s, GRAPH)[0] == calls


@pytest.mark.parametrize("queue_s", [0.0, 30e-6, 2e-3])
def test_the_device_is_held_back_longer_than_the_host_needs(queue_s: float) -> None:
    assert hidden_s(queue_s) > queue_s + 20e-6


def test_a_call_that_waits_for_the_device_does_not_hold_it_back_for_ever() -> None:
    assert hidden_s(10.0) == 20e-3


def test_outputs_that_differ_by_rounding_are_near() -> None:
    out = torch.randn(100, dtype=torch.float64).to(torch.bfloat16)
    assert _near(out, out * 1.001)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(10), -torch.ones(10)),
        (torch.zeros(10), torch.ones(10)),
        (torch.full((10,), float("nan")), torch.ones(10)),
    ],
    ids=["stale", "empty", "nan"],
)
def test_an_output_of_another_call_is_not_near(one: torch.Tensor, other: torch.Tensor) -> None:
    assert not _near(one, other)


def test_rows_without_a_key_are_near_one_another() -> None:
    lse = torch.tensor([1.0, float("-inf")])
    assert _near(lse, lse.clone())


@pytest.mark.skipif(find_spec("cupti") is not None, reason="cupti-python is installed")
def test_cupti_that_is_missing_is_told_with_the_command_that_brings_it() -> None:
    assert "pip install 'cupti-python>=13'" in (cupti.objection() or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_instrument_says_which_torch_has_none() -> None:
    with pytest.raises(RuntimeError, match=r"torch \d+\.\d+"):
        CudaInstrument(parse_device("cuda:0"))


@pytest.mark.parametrize("said", ["allow_tf32", "fp32_precision", "set_float32_matmul_precision"])
def test_fp32_is_exact_whatever_was_said_before(said: str) -> None:
    matmul = torch.backends.cuda.matmul
    if said == "allow_tf32":
        matmul.allow_tf32 = True
    elif said == "fp32_precision":
        if not hasattr(matmul, "fp32_precision"):
            pytest.skip("this torch has no fp32_precision")
        matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("high")
    exact_fp32()
    assert (torch.get_float32_matmul_precision(), matmul.allow_tf32) == ("highest", False)
