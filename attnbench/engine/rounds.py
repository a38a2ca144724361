"""Rounds of a group: in each, every arm times one block, in random balanced order, while the others wait."""

import random
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial

from attnbench.analysis import readings, stats
from attnbench.analysis.warmup import warmup_rounds
from attnbench.engine.arm_session import MIN_ROUNDS_OVER_BUDGET, ArmSession, GroupSessions
from attnbench.records.result import Procedure

MORE_ROUNDS_WHEN_NOISY = 30
MAX_WARMUP_ROUNDS = 20
MAX_WARMUP_S = 2.0  # for each arm


class RoundsEnd(StrEnum):
    """Why the rounds of a group ended; stored as the fact `rounds_reason`."""

    PRECISION = "precision"  # every arm is precise enough
    ROUNDS = "rounds"  # as many as allowed
    BUDGET = "budget"
    INTERRUPTED = "interrupted"
    NO_ARM_LEFT = "nothing left"  # every arm failed


def run_rounds(
    sessions: GroupSessions,
    deadline: float,
    source: random.Random,
    stop_requested: Callable[[], bool],
    phase: Callable[[str], None],
) -> RoundsEnd:
    """Time blocks until every arm is precise enough, or another reason ends the rounds.

    `deadline`: of the budget, on the clock of time.monotonic().
    """
    orders: list[list[ArmSession]] = []
    number, round_s, begun = 0, 0.0, time.monotonic()
    most_warmup = 0
    while sessions.live:
        started = time.monotonic()
        is_over = started > deadline - round_s
        if is_over or number >= sessions.live[0].procedure.min_rounds:  # before, another round follows in any case
            _exclude_warmup(sessions.live, most_warmup)
        if stop_requested():
            return RoundsEnd.INTERRUPTED
        if end := _end(sessions.live, is_over):
            return end
        phase(f"{sessions.live[0].case.label}  round {number + 1}")
        if not orders or set(orders[-1]) != set(sessions.live):
            orders = _balanced_orders(sessions.live, source)
        for position, session in enumerate(orders.pop()):
            sessions.step_one(session, partial(ArmSession.time, number=number, position=position))
        number += 1
        round_s = time.monotonic() - started
        if number <= MAX_WARMUP_ROUNDS and time.monotonic() - begun <= MAX_WARMUP_S * len(sessions.live):
            most_warmup = number
    return RoundsEnd.NO_ARM_LEFT


def _balanced_orders(sessions: Sequence[ArmSession], source: random.Random) -> list[list[ArmSession]]:
    """Random orders for as many rounds as there are arms, in which each arm takes each position once."""
    base = source.sample(sessions, len(sessions))
    orders = [base[shift:] + base[:shift] for shift in range(len(base))]
    source.shuffle(orders)
    return orders


def _exclude_warmup(live: Sequence[ArmSession], most: int) -> None:
    """Exclude leading rounds in which any arm warms up, at most so many; the same for all arms, which stay paired."""
    procedure, rounds = live[0].procedure, len(live[0].blocks)
    excluded = min(warmup_rounds(session.medians for session in live), most)
    # Later rounds may show that earlier ones were no warm-up; the number of rounds stays within its limit anyway.
    excluded = max(excluded, rounds - procedure.max_rounds - (0 if _fixed(procedure) else MORE_ROUNDS_WHEN_NOISY))
    for session in live:
        session.warmup = excluded


def _fixed(procedure: Procedure) -> bool:
    return procedure.min_rounds == procedure.max_rounds


def _end(live: Sequence[ArmSession], is_over: bool) -> RoundsEnd | None:
    """Why the rounds end now; None if another one follows. `is_over`: no round is left of the budget."""
    procedure, rounds = live[0].procedure, live[0].rounds
    if rounds >= MIN_ROUNDS_OVER_BUDGET and is_over:
        return RoundsEnd.BUDGET
    if rounds < procedure.min_rounds:
        return None
    if _fixed(procedure):
        return RoundsEnd.ROUNDS  # a fixed number is not extended for noise
    samples = [session.timed() for session in live]
    noisy = any(map(readings.is_noisy, samples))
    if rounds >= procedure.max_rounds + (MORE_ROUNDS_WHEN_NOISY if noisy else 0):
        return RoundsEnd.ROUNDS
    precise = all(stats.precise_enough(each, procedure.rel_ci) for each in samples)
    return RoundsEnd.PRECISION if precise and not noisy else None
