"""Stored speeds: what is saved is loaded, and what cannot be read is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from attnbench.records import ceilings, speeds
from attnbench.records.speeds import Speeds

STORED = Speeds(
    calls={"naive|cpu:threads=1|fp32|fwd": {"none": {"12": (1024.0, 64.0, 1e-3)}}},
    compile_s={"flex|cpu:threads=1": 4.5},
    ratio=1.25,
)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_is_saved_is_loaded_on_the_same_machine_alone() -> None:
    assert speeds.load("machine") == Speeds()
    speeds.save("machine", STORED)
    assert speeds.load("machine") == STORED
    assert speeds.load("another") == Speeds()


def test_another_version_or_a_broken_file_counts_as_none() -> None:
    speeds.save("machine", replace(STORED, version=speeds.VERSION - 1))
    assert speeds.load("machine") == Speeds()
    (ceilings.folder("machine") / "speeds.json").write_text("{", encoding="utf-8")
    assert speeds.load("machine") == Speeds()


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    place = ceilings.folder("machine")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file in place of the folder", encoding="utf-8")
    speeds.save("machine", STORED)
    assert speeds.load("machine") == Speeds()
