"""Gates whose machine or clock changes while they measure, from scripted readings: neither red nor green."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from attnbench.gate import judgement, steadiness
from attnbench.records.result import Outcome, Result, Verdict
from tests.gate.test_verdicts import WOBBLE, gated, lines
from tests.samples import timed

START = datetime(2026, 11, 21, tzinfo=UTC)
RESTARTS = 13
Times = Callable[[int], float]


def scripted(
    base: Times = lambda restart: 1.0, head: Times = lambda restart: 1.0,
    pause: Callable[[int], float] = lambda restart: 0.0, restarts: int = RESTARTS,
) -> list[Result]:  # fmt: skip
    """A gate of one case; milliseconds of both sides by restart, and seconds of a pause before it."""
    results = []
    for line in lines(restarts=restarts):
        restart, side = line.restart, (base, head)[line.arm.copy == 2]
        noise = 1 + WOBBLE[restart % len(WOBBLE)] * (line.arm.copy == 2)
        started = START + timedelta(seconds=10 * restart + sum(pause(each) for each in range(restart + 1)))
        samples = line.samples | {"time": timed([1e-3 * side(restart) * noise] * 5)}
        results.append(msgspec.structs.replace(line, samples=samples, started_at=started.isoformat()))
    return results


def time_of(results: Sequence[Result], **manifest: object) -> Verdict:
    run = gated(*results)
    run = msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, **manifest))
    (verdict,) = [verdict for verdict in judgement.judge(run).verdicts if verdict.metric == "time_s"]
    return verdict


def late(factor: float, start: int = RESTARTS // 2) -> Times:
    return lambda restart: factor if restart >= start else 1.0


def once(value: float) -> Times:
    return lambda restart: value if restart == 5 else 1.0


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (scripted(base=lambda _: 12.0), "base takes 12x the time of head: check that base ran as intended"),
        (scripted(head=lambda n: 1 + 0.01 * n), r"the difference drifts during the gate, from .0\.\d % to \+12\.\d %"),
        (scripted(base=late(2.0), head=late(2.0)), "the machine changed its speed: base took 1.00 ms before restart 6"),
        (scripted(base=late(0.5), head=late(0.5)), "the machine changed its speed: .*, then 500 us"),
        (scripted(pause=lambda n: 7200.0 * (n == 6)), "a pause of 2.0 h before restart 6: the machine was suspended"),
        (scripted(pause=lambda n: -3600.0 * (n == 6)), "the clock went back by .* before restart 6"),
        (scripted(head=once(-1.0)), "a call in restart 5 took no time or less: the clock jumped"),
        (scripted(base=once(0.0)), "a call in restart 5 took no time or less: the clock jumped"),
        (scripted(head=once(5e6)), "restart 5 differs from the others by 5015kx: the clock jumped, or the machine"),
        (scripted(base=once(40.0)), "restart 5 differs from the others by 40x"),
        (scripted(head=lambda n: 1.3 * once(40.0)(n)), "restart 5 differs from the others by 40x"),
    ],
)
def test_a_machine_that_changes_gives_neither_red_nor_green(results: list[Result], reason: str) -> None:
    verdict = time_of(results)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert re.search(reason, verdict.reason)


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (scripted(), Outcome.SAME),
        (scripted(base=late(1.3), head=late(1.3)), Outcome.SAME),  # pairs of one round see the same machine
        (scripted(head=lambda _: 1.3), Outcome.REGRESSED),
        (scripted(head=lambda _: 0.7), Outcome.IMPROVED),
        (scripted(head=lambda n: 1.5 + 0.01 * n), Outcome.REGRESSED),  # drifts, but slower throughout
        (scripted(pause=lambda n: 900.0 * (n == 1)), Outcome.SAME),  # the first restart compiles and verifies
        (scripted(pause=lambda n: 30.0 * (n == 6)), Outcome.SAME),
        (scripted(head=lambda _: 1.3, restarts=3), Outcome.REGRESSED),
    ],
)
def test_a_steady_machine_is_judged(results: list[Result], outcome: Outcome) -> None:
    assert time_of(results).outcome is outcome


@pytest.mark.parametrize(
    ("cores", "device", "reason"),
    [(1, "cpu:threads=1", "this machine has one core"), (2, "cpu:threads=1", ""), (1, "cuda:0", ""), (None, "cpu", "")],
)
def test_one_core_is_too_few_for_kernels_on_a_cpu(cores: int | None, device: str, reason: str) -> None:
    text = steadiness.too_few_cores({"cores": cores} if cores else {}, [device])
    assert text.startswith(reason)
    assert bool(text) == bool(reason)


def test_a_gate_on_one_core_decides_nothing() -> None:
    verdict = time_of(scripted(head=lambda _: 1.5), machine={"cores": 1})
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "use two cores or more" in verdict.reason
