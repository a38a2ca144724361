from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path

import msgspec
import pytest

from attnbench.machine import identity
from tests.machine.samples import in_child


@cache
def child_with_another_hash_seed() -> list[str]:
    """The fingerprint in a new process, and the heavy packages that facts of the host load there."""
    code = (
        "import sys; from attnbench.machine import hardware, identity;"
        "identity.packages(); hardware.devices();"
        "print(identity.fingerprint()[0], *({'torch', 'triton', 'pandas', 'scipy'} & {*sys.modules}))"
    )
    return in_child(code, PYTHONHASHSEED="2").split()


def test_the_fingerprint_does_not_change_between_processes() -> None:
    code = "from attnbench.machine import identity; print(identity.fingerprint()[0])"
    assert in_child(code, PYTHONHASHSEED="1") == child_with_another_hash_seed()[0] == identity.fingerprint()[0]


def test_the_machine_card_names_neither_user_nor_host() -> None:
    words = set(json.dumps(msgspec.to_builtins(identity.machine_card())).replace('"', " ").split())
    assert words.isdisjoint({getpass.getuser(), socket.gethostname()})


def test_host_facts_load_no_heavy_package() -> None:
    assert child_with_another_hash_seed()[1:] == []


def test_versions_are_those_of_the_packages_that_import() -> None:
    import numpy as np

    assert identity.packages()["numpy"] == np.__version__


def test_a_preloaded_allocator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert identity.allocator() == "jemalloc"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_commit_says_whether_files_were_changed_since(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    clean = identity.commit(tmp_path)
    (tmp_path / "file").write_text("two")
    head = git("rev-parse", "HEAD")
    assert (clean, identity.commit(tmp_path)) == ({"commit": head, "dirty": False}, {"commit": head, "dirty": True})


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert identity.commit(tmp_path) is None
