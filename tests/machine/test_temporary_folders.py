"""Folders that end with their owner, and those that a killed process left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from attnbench.machine import temporary_folders
from attnbench.machine.temporary_folders import LOCK, owned_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_ends_with_its_owner(temporary: Path) -> None:
    with owned_folder("mine-") as folder:
        (folder / "file").touch()
        assert folder.parent == temporary
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_others_use_stays(temporary: Path) -> None:
    for name in ("mine-left", "mine-begun", "other-left"):
        (temporary / name / "session").mkdir(parents=True)
    for name in ("mine-left", "other-left"):  # a lock of a killed process is a file that nobody holds
        (temporary / name / LOCK).touch()
    with owned_folder("mine-") as first, owned_folder("mine-") as second:
        assert {path.name for path in temporary.iterdir()} == {first.name, second.name, "mine-begun", "other-left"}


def test_another_process_takes_no_lock_that_the_owner_is_about_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(FileLock):
        """Another process looks for abandoned folders when the file of the lock is there, but not yet locked."""

        def _acquire(self) -> None:
            monkeypatch.setattr(temporary_folders, "FileLock", FileLock)
            Path(self.lock_file).touch()
            with owned_folder("mine-"):
                super()._acquire()

    monkeypatch.setattr(temporary_folders, "FileLock", Interrupted)
    with owned_folder("mine-") as folder:
        assert (folder / LOCK).is_file()
