"""Expected values that runs share: found only where they are right, bounded, and never a condition."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score, Similarity
from attnbench.engine import expected_cache
from attnbench.machine import identity
from attnbench.worker.protocol import EXPECTED_FILE

PROBLEM = Problem(seq_q=64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def entry(problem: Problem = PROBLEM, mode: Mode = Mode.FWD, seed: int = 0, inputs: str = "normal") -> Path:
    directory = expected_cache.entry(problem, mode, seed, inputs, 2.0)
    assert directory
    return directory


def stored(directory: Path, share: float = 1.0, size: int = 0, age_s: float = 0.0) -> Path:
    """An entry as the oracle writes it."""
    draft = expected_cache.draft("normal")
    assert draft
    (draft / EXPECTED_FILE).write_text(f'{{"selection": {{"groups": [], "share": {share}}}, "seed": 0}}')
    (draft / "out.npy").write_bytes(bytes(size))
    kept = expected_cache.keep(draft, directory)
    then = time.time() - age_s
    for path in (*kept.iterdir(), kept):
        os.utime(path, (then, then))
    return kept


def test_each_problem_and_each_kind_of_inputs_has_its_own_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        entry(), entry(Problem(seq_q=65)), entry(mode=Mode.FWD_BWD), entry(seed=1), entry(inputs="peaked"),
        entry(Problem(seq_q=64, mask="causal")),
    ]  # fmt: skip
    assert len(set(entries)) == len(entries)
    assert entry() == entry(Problem(seq_q=64, seq_kv=64, heads=8))
    monkeypatch.setattr(identity, "code_digest", lambda patterns: "changed")
    assert entry() != entries[0]


def test_the_code_and_the_packages_are_part_of_the_key() -> None:
    assert len(identity.code_digest(expected_cache.CODE)) == 64
    assert all(expected_cache._installation())


def test_what_depends_on_a_file_of_the_user_is_not_kept() -> None:
    assert expected_cache.entry(PROBLEM, Mode.FWD, 0, "file:qkv.safetensors", 2.0) is None
    of_file = Problem(seq_q=64, score=Score(similarity=Similarity.FILE, function="score.py:mine"))
    assert expected_cache.entry(of_file, Mode.FWD, 0, "normal", 2.0) is None


def test_an_entry_is_found_once_it_is_complete() -> None:
    assert expected_cache.stored(entry()) is None
    assert expected_cache.stored(stored(entry())) == 1.0
    (entry() / EXPECTED_FILE).write_text("{")
    assert expected_cache.stored(entry()) is None


def test_a_part_of_the_rows_is_computed_again_after_a_day() -> None:
    day = expected_cache.PART_S
    assert expected_cache.stored(stored(entry(), share=0.5, age_s=day / 2)) == 0.5
    assert expected_cache.stored(stored(entry(), share=0.5, age_s=2 * day)) is None
    assert expected_cache.stored(stored(entry(), share=1.0, age_s=2 * day)) == 1.0


def test_the_oldest_entries_go_beyond_the_limit_but_none_that_may_be_in_use() -> None:
    hours = 3600.0
    ages = {1: 10 * hours, 2: 5 * hours, 3: 2 * hours, 4: 0.0}
    entries = {seed: stored(entry(seed=seed), size=1000, age_s=age) for seed, age in ages.items()}
    left = expected_cache.draft("normal")
    assert left
    os.utime(left, (0, 0))
    expected_cache.make_room(limit_bytes=2500)
    assert [seed for seed, path in entries.items() if path.exists()] == [3, 4]
    assert not left.exists()
    expected_cache.make_room(limit_bytes=0)
    assert [seed for seed, path in entries.items() if path.exists()] == [4]


def test_a_cache_that_cannot_be_written_is_no_condition(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert expected_cache.draft("normal") is None
    assert expected_cache.stored(entry()) is None
    expected_cache.make_room()
