"""Kernels that go on working after their call has returned, on a device that finishes when it is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.attention.choices import Mode
from attnbench.worker import expected_values, unfinished_outputs
from attnbench.worker.output_checks import OutputChecks
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.unfinished_outputs import UNFINISHED, call_and_judge

from .test_probes import CPU, prepared

torch = pytest.importorskip("torch")

Work = Callable[[], object]


class SideStream:
    """Work that the device does when it is waited for, as another stream may."""

    def __init__(self) -> None:
        self._queue: list[Work] = []

    def __call__(self, work: Work) -> None:
        self._queue.append(work)

    def finish(self) -> None:
        while self._queue:
            self._queue.pop(0)()


class SideThread(SideStream):
    """Work in threads, which begins when the device is waited for."""

    def __call__(self, work: Work) -> None:
        thread = threading.Thread(target=work)
        super().__call__(lambda: (thread.start(), thread.join()))


class Kernel:
    """Attention that may leave its last step to other streams or threads."""

    def __init__(self, side: SideStream) -> None:
        self.side, self.leaves = side, True

    def __call__(self, q: Any, k: Any, v: Any) -> Any:
        right = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        if not self.leaves:
            return right
        out = torch.zeros_like(right)
        self.side(lambda: out.copy_(right))
        return out


@pytest.fixture(params=[SideStream, SideThread])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    side = request.param()
    monkeypatch.setattr(CPU, "synchronize", side.finish, raising=False)
    monkeypatch.setattr(unfinished_outputs, "LATE_S", 0.0)
    return Kernel(side)


def checks_of(case: PreparedCase, folder: Path) -> OutputChecks:
    return OutputChecks(case, expected_values.compute(case.problem, Mode.FWD, 0, "normal", folder, 5.0))


def test_an_output_that_is_finished_later_is_wrong_although_it_is_right_in_the_end(
    kernel: Kernel, tmp_path: Path
) -> None:
    case = prepared(kernel)
    checks = checks_of(case, tmp_path)
    case.call_once(case.state.backend_code())
    assert checks.judge().ok  # the device was waited for
    verdict = call_and_judge(case, case.state.backend_code(), checks.judge)
    assert (verdict.ok, verdict.reason) == (False, UNFINISHED)
    assert verdict.errors["out"]


def test_a_kernel_that_leaves_work_to_others_only_when_timed_is_found_after_the_rounds(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = prepared(kernel)
    checks = checks_of(case, tmp_path)
    monkeypatch.setattr(checks.memory, "objection", lambda _: "")
    kernel.leaves = False
    assert call_and_judge(case, case.state.backend_code(), checks.judge).ok
    checks.check_after_rounds(seed=1)
    assert checks.wrong is None
    kernel.leaves = True
    checks.check_after_rounds(seed=2)
    assert checks.wrong
    assert checks.wrong.reason == f"call after the rounds: {UNFINISHED}"


def test_a_wrong_output_that_does_not_change_keeps_its_reason(tmp_path: Path) -> None:
    case = prepared(lambda q, k, v: torch.full_like(v, float("nan")))
    verdict = call_and_judge(case, case.state.backend_code(), checks_of(case, tmp_path).judge)
    assert "not finite" in verdict.reason
