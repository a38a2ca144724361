from __future__ import annotations

from importlib.util import find_spec

import pytest

from attnbench.machine.device.instrument import exact_fp32
from attnbench.records.arm import parse_device
from attnbench.records.result import Cache, Procedure, Timing

torch = pytest.importorskip("torch")

from attnbench.machine.device.cuda import CudaInstrument, cuda_block_shape  # noqa: E402
from attnbench.machine.device.stopwatch import _near, cupti_objection, delay_s  # noqa: E402

COLD = Procedure(timing=Timing.EVENTS, cache=Cache.COLD)
WARM = Procedure(timing=Timing.EVENTS, cache=Cache.WARM)
GRAPH = Procedure(timing=Timing.GRAPH, cache=Cache.COLD)


@pytest.mark.parametrize("call_s", [1e-6, 50e-6, 1e-3, 0.5])
def test_a_cold_reading_is_one_call(call_s: float) -> None:
    calls, readings = cuda_block_shape(call_s, COLD)
    assert calls == 1
    assert readings in (16, round(COLD.block_s / call_s), 1)


def test_a_warm_reading_is_a_thousand_times_what_events_resolve() -> None:
    calls, _ = cuda_block_shape(20e-6, WARM)
    assert calls * 20e-6 >= 1000 * 0.5e-6


@pytest.mark.parametrize(("call_s", "calls"), [(5e-6, 64), (50e-6, 10), (2e-3, 1)])
def test_a_graph_holds_as_many_calls_as_events_need_to_resolve_it(call_s: float, calls: int) -> None:
    assert cuda_block_shape(call_s, GRAPH)[0] == calls


@pytest.mark.parametrize("queue_s", [0.0, 30e-6, 2e-3])
def test_the_device_is_held_back_longer_than_the_host_needs(queue_s: float) -> None:
    assert delay_s(queue_s) > queue_s + 20e-6


def test_a_call_that_waits_for_the_device_does_not_hold_it_back_for_ever() -> None:
    assert delay_s(10.0) == 20e-3


def test_outputs_that_differ_by_rounding_are_near() -> None:
    out = torch.randn(100, dtype=torch.float64).to(torch.bfloat16)
    assert _near(out, out * 1.001)


@pytest.mark.parametrize(
    ("output", "other"),
    [
        (torch.ones(10), -torch.ones(10)),
        (torch.zeros(10), torch.ones(10)),
        (torch.full((10,), float("nan")), torch.ones(10)),
    ],
    ids=["stale", "empty", "nan"],
)
def test_an_output_of_another_call_is_not_near(output: torch.Tensor, other: torch.Tensor) -> None:
    assert not _near(output, other)


def test_rows_without_a_key_are_near_one_another() -> None:
    lse = torch.tensor([1.0, float("-inf")])
    assert _near(lse, lse.clone())


@pytest.mark.skipif(find_spec("cupti") is not None, reason="cupti-python is installed")
def test_a_missing_cupti_is_reported_with_the_install_command() -> None:
    assert "pip install 'cupti-python>=13'" in (cupti_objection() or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_error_names_the_version_of_torch() -> None:
    with pytest.raises(RuntimeError, match=r"torch \d+\.\d+"):
        CudaInstrument(parse_device("cuda:0"))


@pytest.mark.parametrize("setting", ["allow_tf32", "fp32_precision", "set_float32_matmul_precision"])
def test_fp32_is_exact_whatever_the_earlier_setting(setting: str) -> None:
    matmul = torch.backends.cuda.matmul
    if setting == "allow_tf32":
        matmul.allow_tf32 = True
    elif setting == "fp32_precision":
        if not hasattr(matmul, "fp32_precision"):
            pytest.skip("this torch has no fp32_precision")
        matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("high")
    exact_fp32()
    assert (torch.get_float32_matmul_precision(), matmul.allow_tf32) == ("highest", False)
