"""A worker process from outside."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from attnbench.engine.worker_process import START_LIMIT_S, Worker, WorkerFailedError
from attnbench.records.arm import Arm
from attnbench.records.result import Status
from attnbench.worker import protocol

OPENED = protocol.WorkerOpened()


@pytest.mark.workers
def test_a_killed_worker_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = "import tempfile\nprint(tempfile.mkdtemp())\n\ndef attend(q, k, v, *, causal, scale): ...\n"
    (tmp_path / "kernel.py").write_text(kernel)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    worker = Worker(Arm(backend=f"{tmp_path}/kernel.py:attend", device="cpu:threads=1"), (), 0, tmp_path / "a" / "log")
    try:
        worker.open(timeout_s=60)
    finally:
        worker.terminate()
    assert str(tmp_path / "temporary") in (tmp_path / "a" / "log").read_text()
    assert list((tmp_path / "temporary").iterdir()) == []


class ScriptedChannel:
    """Receives what a worker sends that starts, and records the seconds that it may take."""

    def __init__(self) -> None:
        self.limits: list[float] = []
        self._replies: list[object] = [protocol.WorkerStarted(), OPENED]

    def receive(self, timeout_s: float) -> object:
        self.limits.append(timeout_s)
        return self._replies.pop(0)


def test_the_timeout_does_not_include_the_start_of_python() -> None:
    worker = Worker.__new__(Worker)
    worker.opened, worker.started, worker.spent = None, time.monotonic() - 30, defaultdict(float)
    channel = ScriptedChannel()
    cast("Any", worker)._channel = channel
    assert worker.open(timeout_s=0.5) is OPENED
    start_s, import_s = channel.limits
    assert start_s == pytest.approx(START_LIMIT_S - 30, abs=5)
    assert import_s == pytest.approx(0.5)


@pytest.mark.parametrize(("backend", "status"), [("zentorch", Status.UNAVAILABLE), ("my.py:f", Status.CRASHED)])
def test_a_library_that_was_built_for_other_cpus_is_unavailable(backend: str, status: Status) -> None:
    worker = cast("Any", Worker.__new__(Worker))
    worker._backend, worker._kills, worker.terminate = backend, 0, lambda: None
    worker._process = SimpleNamespace(wait=lambda timeout: -signal.SIGILL)
    worker._log = SimpleNamespace(end=lambda: "")
    with pytest.raises(WorkerFailedError) as failure:
        worker._report_death("import")
    assert failure.value.status is status
    assert failure.value.reason.startswith("import: died of SIGILL: it runs an instruction that this CPU lacks")
