"""What is verified in brief: only what the same code verified in full on this machine."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from attnbench.attention.problem import Problem
from attnbench.engine import verified_cache
from attnbench.engine.verified_cache import VerifiedCases
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Procedure

CASE = Case(problem=Problem(seq_q=64), backend="naive")
ARM = Arm(backend="naive", device="cpu:threads=1")
PROCEDURE = Procedure()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verified_cache.user_folders, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_case_is_known_to_later_runs() -> None:
    VerifiedCases().add(CASE, ARM, PROCEDURE)
    assert VerifiedCases().holds(CASE, ARM, PROCEDURE)


def test_what_differs_is_verified_in_full() -> None:
    VerifiedCases().add(CASE, ARM, PROCEDURE)
    known = VerifiedCases()
    other = replace(CASE, problem=Problem(seq_q=65))
    assert not known.holds(other, ARM, PROCEDURE)
    assert not known.holds(CASE, replace(ARM, device="cpu:threads=2"), PROCEDURE)
    assert not known.holds(CASE, replace(ARM, env=(("A", "1"),)), PROCEDURE)
    assert not known.holds(CASE, ARM, replace(PROCEDURE, seed=1))
    assert not known.holds(CASE, ARM, replace(PROCEDURE, inputs="peaked"))


@pytest.mark.parametrize(
    "arm",
    [replace(ARM, backend="kern.py:attend"), replace(ARM, python="/other/python"), replace(ARM, path=("/base",))],
    ids=["file", "python", "path"],
)
def test_code_that_may_change_is_never_remembered(arm: Arm) -> None:
    case = replace(CASE, backend=arm.backend)
    VerifiedCases().add(case, arm, PROCEDURE)
    assert not VerifiedCases().holds(case, arm, PROCEDURE)


def test_another_version_of_the_code_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    VerifiedCases().add(CASE, ARM, PROCEDURE)
    monkeypatch.setattr(verified_cache, "_code", lambda: "another")
    assert not VerifiedCases().holds(CASE, ARM, PROCEDURE)


def test_the_cache_is_bounded_and_keeps_the_latest(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(verified_cache, "MAX_KEYS", 10)
    cases = [replace(CASE, problem=Problem(seq_q=n)) for n in range(1, 31)]
    known = VerifiedCases()
    for case in cases:
        known.add(case, ARM, PROCEDURE)
    assert VerifiedCases().holds(cases[-1], ARM, PROCEDURE)
    assert not VerifiedCases().holds(cases[0], ARM, PROCEDURE)
    assert len((own_cache / verified_cache.FILE).read_text().split()) <= 10


def test_a_cache_that_cannot_be_read_holds_nothing(own_cache: Path) -> None:
    (own_cache / verified_cache.FILE).mkdir(parents=True)
    known = VerifiedCases()
    known.add(CASE, ARM, PROCEDURE)
    assert known.holds(CASE, ARM, PROCEDURE)
    assert not VerifiedCases().holds(CASE, ARM, PROCEDURE)
