"""What code of a user changes in its process is noted, undone for our steps, and in force again while it runs."""

from __future__ import annotations

import builtins
import gc
import math
import os
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module

import numpy as np
import pytest
import torch

from attnbench.worker.process_state import ProcessState

FUNCTIONS = (
    (torch, "randn"), (torch, "allclose"), (torch.Tensor, "__matmul__"), (torch.Tensor, "to"), (math, "sqrt"),
    (torch.nn.functional, "scaled_dot_product_attention"), (np, "sqrt"), (builtins, "sum"),
)  # fmt: skip
CLOCKS = ((time, "perf_counter"), (time, "perf_counter_ns"), (torch.cuda, "synchronize"), (torch.autograd, "grad"))

# Settings that stay as the code left them while it runs: how to change them, and how to read them.
OF_BACKEND: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "default dtype": (lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.ones(1).dtype),
    "default device": (lambda: torch.set_default_device("meta"), lambda: torch.ones(1).device),
    "deterministic algorithms": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "anomaly detection": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "autocast on cpu": (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")),
    "float32 matmul precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "flush denormals": (
        lambda: torch.set_flush_denormal(True),
        lambda: float(torch.tensor(1e-310, dtype=torch.float64) * 1),
    ),
    "numpy errors": (lambda: np.seterr(all="raise"), np.geterr),
    "flash SDPA": (
        lambda: torch.backends.cuda.enable_flash_sdp(not torch.backends.cuda.flash_sdp_enabled()),
        torch.backends.cuda.flash_sdp_enabled,
    ),
    "cudnn.benchmark": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.cudnn.benchmark,
    ),
    "working directory": (lambda: os.chdir("/"), os.getcwd),
    "environment variables": (lambda: os.environ.update(CHANGED_HERE="1"), lambda: os.environ.get("CHANGED_HERE")),
    "module path": (lambda: sys.path.insert(0, "/elsewhere"), lambda: sys.path[0]),
    "warning filters": (lambda: warnings.simplefilter("error"), lambda: warnings.filters[0]),
    "modules": (
        lambda: sys.modules.update(statistics=types.ModuleType("statistics")),
        lambda: sys.modules["statistics"],
    ),
}
OF_WORKER: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "garbage collector": (gc.disable, gc.isenabled),
    "signal handlers": (
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGUSR1),
    ),
}
OF_ARM: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads)
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A setting that stayed behind would fail tests far from here."""
    before = ProcessState()
    yield
    before.take_back()
    changes = [text for text in before.changes if not text.startswith(("environment", "warning"))]  # pytest's
    assert changes == []


@pytest.mark.parametrize("name", OF_BACKEND)
def test_a_setting_of_the_backend_is_in_force_while_it_runs_and_only_then(name: str) -> None:
    change, read = OF_BACKEND[name]
    before, state = read(), ProcessState()
    with state.backend_code():
        change()
        theirs = read()
    assert theirs != before
    assert read() == before
    # Also after the notes that follow each request about a case.
    for run in (state.backend_code, state.timed_calls, state.timed_calls, state.backend_code, state.timed_calls):
        with run():
            assert read() == theirs
        assert read() == before
        state.take_back()
        assert read() == before
    assert name in [text.partition(":")[0] for text in state.changes]


@pytest.mark.parametrize("name", [*OF_WORKER, *OF_ARM])
def test_a_setting_of_ours_is_undone_for_good(name: str) -> None:
    change, read = (OF_WORKER | OF_ARM)[name]
    before, state = read(), ProcessState()
    with state.backend_code():
        change()
        assert read() != before
    with state.timed_calls():
        assert read() == before
    assert [text.partition(":")[0] for text in state.changes] == [name]


def test_inference_mode_that_is_left_open_ends() -> None:
    state, guard = ProcessState(), torch.inference_mode()
    with state.backend_code():
        guard.__enter__()
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    guard.__exit__(None, None, None)


SURROUNDING: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "grad mode": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast on cpu": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("run", ["backend_code", "timed_calls"])
@pytest.mark.parametrize("name", SURROUNDING)
def test_a_with_block_around_code_of_the_backend_is_no_change_of_it_and_stays_in_force(name: str, run: str) -> None:
    def read() -> tuple[bool, ...]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    state = ProcessState()
    with SURROUNDING[name]():
        before = read()
        with getattr(state, run)():
            assert read() == before
        assert read() == before
    state.take_back()
    assert state.changes == []


@pytest.mark.parametrize("run", ["backend_code", "timed_calls"])
def test_grad_mode_that_code_of_the_backend_changes_inside_a_with_block_is_noted(run: str) -> None:
    state = ProcessState()
    with torch.no_grad():
        with getattr(state, run)():
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()
    assert state.changes == ["grad mode: False -> True"]


def test_grad_mode_that_timed_calls_change_is_not_taken_for_a_with_block() -> None:
    state = ProcessState()
    with state.timed_calls():
        torch.set_grad_enabled(False)
    with state.backend_code():
        assert torch.is_grad_enabled()
    assert state.changes == ["grad mode: True -> False"]


@pytest.mark.parametrize(("space", "name"), FUNCTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_replaced_function_serves_its_author_alone(space: types.ModuleType, name: str) -> None:
    original, state = getattr(space, name), ProcessState()

    def replacement(*values: object, **options: object) -> object:
        return original(*values, **options)

    with state.backend_code():
        setattr(space, name, replacement)
    assert getattr(space, name) is original
    with state.timed_calls():
        assert getattr(space, name) is replacement
    assert getattr(space, name) is original
    (text,) = state.changes
    assert text.startswith("functions: ")
    assert text.endswith(f"{name} replaced")


@pytest.mark.parametrize(("space", "name"), CLOCKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_replaced_clock_is_undone_for_good(space: types.ModuleType, name: str) -> None:
    original, state = getattr(space, name), ProcessState()
    with state.backend_code():
        setattr(space, name, lambda *values: 0)
    with state.timed_calls():
        assert getattr(space, name) is original
    assert state.changes == [f"functions of the measurement: {space.__name__}.{name} replaced"]


def test_changes_of_the_first_call_are_no_objection_and_those_of_later_calls_are() -> None:
    change, _ = OF_ARM["threads"]
    state = ProcessState()
    with state.backend_code():
        change()
    state.called()
    assert not state.objection
    with state.timed_calls():
        change()
    state.take_back()
    assert state.objection.startswith("every call changes a setting that belongs to the arm: threads: ")


def test_settings_of_other_code_are_not_in_force_again() -> None:
    state = ProcessState()
    with state.backend_code():
        torch.set_default_dtype(torch.float64)
    with state.other_code():
        assert torch.get_default_dtype() is torch.float32
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("meta")
    with state.timed_calls():
        assert torch.ones(1).dtype is torch.float64
        assert torch.ones(1).device.type == "cpu"
    assert "default device: cpu -> meta" in state.changes


def test_what_the_worker_sets_up_after_the_import_is_no_change_of_the_backend() -> None:
    state = ProcessState()
    warnings.simplefilter("ignore", ResourceWarning)
    state.imported()
    with state.backend_code():
        pass
    assert state.changes == []


def test_settings_are_undone_after_an_exception() -> None:
    state = ProcessState()
    with pytest.raises(TypeError), state.backend_code():
        torch.set_default_dtype(torch.set_default_dtype(torch.float64))
    assert torch.get_default_dtype() is torch.float32


def test_code_that_changes_nothing_is_not_noted() -> None:
    state = ProcessState()
    with state.backend_code(), torch.no_grad():
        import_module("torch._dynamo")  # which replaces functions of torch
    assert not any("functions" in text for text in state.changes)
