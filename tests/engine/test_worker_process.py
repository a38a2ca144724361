"""A worker process from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.engine.worker_process import Worker
from attnbench.worker import protocol

pytestmark = pytest.mark.workers


def test_the_timeout_does_not_include_the_start_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time\n\ntime.sleep(0.6)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(None, (), 0)
    try:
        assert isinstance(worker.open(timeout_s=0.5), protocol.WorkerOpened)
    finally:
        worker.terminate()
