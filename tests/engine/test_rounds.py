"""Rounds over workers whose readings are known: which count, which are warm-up, and that none is lost."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from attnbench.analysis.readings import is_noisy
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import plan, rounds
from attnbench.engine.arm_session import ArmSession, GroupSessions
from attnbench.engine.group import Group
from attnbench.engine.rounds import RoundsEnd, run_rounds
from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.records.arm import Device
from attnbench.records.result import Procedure, Result, Status
from attnbench.worker import protocol

STEADY = (1.000, 1.003, 0.999, 1.002, 1.001, 1.000, 0.998, 1.002)
WARMING = (1.20, 1.12, 1.07, 1.04, 1.02, *STEADY)
GROWING = tuple(1.05**number for number in range(200))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a millisecond, on a busy machine too."""
    looks = itertools.count(1)
    monkeypatch.setattr(time, "monotonic", lambda: 1e-3 * next(looks))


class ScriptedWorker:
    """Answers as a worker whose blocks take these times, in order; the last ones again and again."""

    import_s = 0.0

    def __init__(self, times: Sequence[float]) -> None:
        self._times: Iterator[float] = itertools.chain(times, itertools.cycle(times[-4:]))

    def ask(self, message: object, *_: object) -> Any:
        match message:
            case protocol.SettleCase():
                return protocol.CaseSettled(call_s=1e-3, settled=True, seconds=0.02)
            case protocol.TimeBlock():
                if (time := next(self._times)) < 0:
                    raise WorkerFailedError(Status.CRASHED, "time: exited with code 1")
                return protocol.BlockTimed(values=[1e-3 * time, 1e-3 * time], calls=5)
            case protocol.CheckOutput():
                return protocol.CaseVerified(ok=True, reason="", errors={})
            case protocol.MeasureMemory():
                return protocol.MemoryMeasured(peak=1, total=2)
        raise AssertionError(message)


def measure(*arms: Sequence[float], least: int = 5, most: int = 30, deadline: float = 1e18) -> tuple[RoundsEnd, Any]:
    """Why the rounds of these arms ended, and the results."""
    devices = [Device(kind="cpu", threads=1)]
    group_arms = plan.arms_of(("naive", "sdpa:math", "sdpa:flash")[: len(arms)], devices)
    group = Group(id="g", problem=Problem(seq_q=64), mode=Mode.FWD, arms=tuple(group_arms))
    procedures = {"cpu": Procedure(min_rounds=least, max_rounds=most)}
    sessions = GroupSessions(group, 0, procedures, lambda _session, _failure: None)
    for arm, times in zip(group_arms, arms, strict=True):
        sessions.add(arm, cast("Worker", ScriptedWorker(times)))
    sessions.step(ArmSession.settle)
    end = run_rounds(sessions, deadline, random.Random(0), lambda: False, lambda _text: None)
    sessions.step(ArmSession.finish)
    sessions.complete()
    return end, sessions.results


def numbers(result: Result, name: str) -> list[int]:
    return [block.round for block in result.samples[name].blocks] if name in result.samples else []


def test_a_steady_group_takes_no_round_more() -> None:
    end, results = measure(STEADY, STEADY)
    assert end is RoundsEnd.PRECISION
    for result in results:
        assert numbers(result, "time") == [0, 1, 2, 3, 4]
        assert "warmup_time" not in result.samples
        assert result.facts["settled"]
        assert result.facts["settle_s"] == 0.02


def test_all_arms_lose_the_rounds_in_which_one_warms_up() -> None:
    _, results = measure(STEADY, WARMING)
    for result in results:
        assert numbers(result, "warmup_time") == [0, 1, 2, 3, 4]
        assert numbers(result, "time") == [5, 6, 7, 8, 9]
        assert result.facts["settled"]
    assert max(results[1].samples["time"].values) < 1.01e-3


def test_readings_of_warm_up_are_stored() -> None:
    _, (_, warming) = measure(STEADY, WARMING)
    stored = [*warming.samples["warmup_time"].values, *warming.samples["time"].values]
    assert stored == [1e-3 * time for time in WARMING[:10] for _ in range(2)]
    assert warming.facts["settle_s"] == pytest.approx(0.02 + 10e-3 * sum(WARMING[:5]))


def test_a_fixed_number_of_rounds_counts_without_warm_up() -> None:
    end, results = measure(STEADY, WARMING, least=6, most=6)
    assert end is RoundsEnd.ROUNDS
    assert [len(numbers(result, "time")) for result in results] == [6, 6]


def test_an_arm_that_is_never_steady_is_stored_as_not_settled() -> None:
    _, (steady, growing) = measure(STEADY, GROWING, least=5, most=8)
    assert (steady.facts["settled"], growing.facts["settled"]) == (True, False)
    assert len(numbers(growing, "warmup_time")) == len(numbers(steady, "warmup_time")) == rounds.MAX_WARMUP_ROUNDS
    assert len(numbers(growing, "time")) >= 8


def test_warm_up_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MAX_WARMUP_S", 0.0)
    _, results = measure(STEADY, WARMING)
    assert not any("warmup_time" in result.samples for result in results)
    assert [result.facts["settled"] for result in results] == [True, False]


def test_at_the_end_of_the_budget_three_rounds_suffice() -> None:
    end, (result,) = measure(WARMING, deadline=0.0)
    assert end is RoundsEnd.BUDGET
    assert len(numbers(result, "time")) == 3


def test_warm_up_is_looked_for_once_the_rounds_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(rounds, "warmup_rounds", lambda medians: looked.append(len(next(iter(medians)))) or 0)
    measure(STEADY, least=8, most=8)
    assert looked == [8]
    measure(STEADY, least=8, most=8, deadline=0.0)
    assert looked == [8, 0, 1, 2, 3]


def test_an_arm_that_fails_has_no_say_in_what_the_others_lose() -> None:
    _, (steady, failed) = measure(STEADY, (1.3, 1.2, -1.0))
    assert failed.status is Status.CRASHED
    assert numbers(steady, "time") == [0, 1, 2, 3, 4]


def test_rounds_that_turn_out_to_be_no_warm_up_do_not_exceed_the_limit() -> None:
    """Noise: each block takes one of four times."""
    counts = []
    for seed in range(60):
        times = random.Random(seed).choices((1.0, 1.5, 2.0, 2.5), k=400)
        _, (result,) = measure(times, least=4, most=5)
        counts.append(len(numbers(result, "time")))
    assert max(counts) == 5 + rounds.MORE_ROUNDS_WHEN_NOISY


def test_noise_brings_more_rounds_unless_their_number_is_fixed() -> None:
    """Two of three blocks take twice as long."""
    noisy = (1.0, 2.0, 2.0) * 40
    for least, most, expected in ((4, 4, 4), (4, 5, 5 + rounds.MORE_ROUNDS_WHEN_NOISY)):
        _, (result,) = measure(noisy, least=least, most=most)
        assert is_noisy(result.samples["time"])
        assert len(numbers(result, "time")) == expected
