"""The forward and backward kernels; their tests run in Triton's interpreter, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_triton import run_apart

pytest.importorskip("torch")
pytest.importorskip("triton")


def test_the_kernels_are_right_in_the_interpreter(tmp_path: Path) -> None:
    assert not run_apart("interpreted/attention.py", tmp_path, interpreted=True)


def test_memory_is_read_and_written_as_it_should(tmp_path: Path) -> None:
    assert not run_apart("interpreted/memory.py", tmp_path, interpreted=True)


def test_packed_sequences_are_right(tmp_path: Path) -> None:
    assert not run_apart("interpreted/packed.py", tmp_path, interpreted=True)
