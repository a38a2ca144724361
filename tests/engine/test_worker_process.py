"""A worker process from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.engine.worker_process import Worker
from attnbench.records.arm import Arm
from attnbench.worker import protocol

pytestmark = pytest.mark.workers


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


def test_the_timeout_does_not_include_the_start_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time\n\ntime.sleep(0.6)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(None, (), 0)
    try:
        assert isinstance(worker.open(timeout_s=0.5), protocol.WorkerOpened)
    finally:
        worker.terminate()
