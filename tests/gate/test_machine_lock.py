"""Two gates on one machine: the second waits, and says so."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from attnbench.errors import LockedError
from attnbench.gate import machine_lock


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FileLock:
    """The lock as another gate would hold it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "attnbench" / machine_lock.FILE
    file.parent.mkdir()
    lock = FileLock(file, thread_local=False)
    with lock:
        file.write_text("123")
    return lock


def test_a_second_gate_is_refused_when_it_has_waited_for_its_budget(lock: FileLock) -> None:
    notes: list[str] = []
    refused = pytest.raises(LockedError, match=r"another gate, process 123, has measured for .*: run one gate after")
    with lock, refused, machine_lock.alone(notes.append, timeout_s=0.01):
        pytest.fail("both measure at once")
    assert notes == ["another gate, process 123, measures on this machine: this one waits for its end"]


@pytest.mark.parametrize("timeout_s", [60.0, math.inf])
def test_a_second_gate_waits_for_the_first(lock: FileLock, timeout_s: float) -> None:
    holder = threading.Thread(target=lock.acquire)
    holder.start()
    holder.join()

    def waits(text: str) -> None:
        assert "this one waits" in text
        threading.Timer(0.05, lock.release).start()

    with machine_lock.alone(waits, timeout_s):
        assert Path(lock.lock_file).read_text() == str(os.getpid())
    assert not lock.is_locked


def test_one_gate_after_the_other_needs_no_waiting(lock: FileLock) -> None:
    for _ in range(2):
        with machine_lock.alone(pytest.fail, 0.0):
            pass


def test_without_a_folder_for_the_lock_a_gate_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with machine_lock.alone(pytest.fail, 0.0):
        pass
