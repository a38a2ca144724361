"""The A/A check of core sets: what blocks alone and beside each other say, and which problem is timed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from msgspec.structs import replace

from attnbench.analysis import noise_floor
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.arm_session import ArmSession
from attnbench.engine.disturbance import LOOKS, Disturbance, at_look, checked_group, compare
from attnbench.engine.group import Group
from attnbench.engine.plan import Plan
from attnbench.engine.worker_process import Worker
from attnbench.records.arm import Arm
from attnbench.records.result import Procedure
from tests.analysis.test_noise_floor import control
from tests.engine.test_rounds import ScriptedWorker
from tests.engine.test_scripted_run import own_cache

__all__ = ["own_cache"]  # a fixture for every test here
DEVICES = ("cpu:threads=1:cores=0", "cpu:threads=1:cores=1")


def sessions(beside: Sequence[float], noise: float = 0.0) -> list[ArmSession]:
    """A session of each device, whose blocks beside the others take so many times as long as alone."""
    made = []
    for device, factor in zip(DEVICES, beside, strict=True):
        draw = random.Random(device)
        steps = (1.0, factor, factor, 1.0) * max(LOOKS)  # alone and beside, then beside and alone
        worker = ScriptedWorker([step * draw.lognormvariate(0, noise) for step in steps])
        group = Group(id="g", problem=Problem(seq_q=64), mode=Mode.FWD, arms=(Arm(backend="naive", device=device),))
        made.append(ArmSession(group, group.arms[0], cast("Worker", worker), 0, Procedure()))
        made[-1].settle()
    return made


def rounds(disturbance: Disturbance) -> set[int]:
    return {ratio.count for ratio in disturbance.ratios.values()}


def test_equal_times_are_found_equal_after_the_fewest_rounds() -> None:
    result = compare(sessions((1.0, 1.0), noise=0.01), "machine")
    assert result.excluded
    assert not result.shown
    assert rounds(result) == {min(LOOKS)}


@pytest.mark.parametrize("beside", [(1.0, 1.1), (1.1, 1.0), (0.9, 1.0)])
def test_one_core_set_that_is_disturbed_is_enough(beside: tuple[float, float]) -> None:
    result = compare(sessions(beside, noise=0.01), "machine")
    assert result.shown
    assert not result.excluded
    changes = [result.ratios[device].value for device in DEVICES]
    assert changes == pytest.approx(beside, rel=0.02)


def test_times_too_noisy_to_tell_are_not_found_equal() -> None:
    result = compare(sessions((1.0, 1.0), noise=0.3), "machine")
    assert not result.excluded
    assert not result.shown
    assert rounds(result) == {max(LOOKS)}


@pytest.mark.parametrize("beside", [(1.03, 1.03), (1.03, 1.0), (1 / 1.03, 1.0)])
def test_all_looks_together_err_no_more_often_than_allowed(beside: tuple[float, float]) -> None:
    """At the noise floor itself, to show a difference beyond it and to exclude one are both errors."""
    logs = np.random.default_rng(0).normal(0.0, 0.01, (2000, len(DEVICES), max(LOOKS))) + np.log(beside)[:, None]
    errors = 0
    for drawn in logs:
        for rounds_of_look, share in LOOKS.items():
            values = dict(zip(DEVICES, drawn[:, :rounds_of_look], strict=True))
            result = at_look(values, dict.fromkeys(DEVICES, 0.03), share)
            if result.excluded or result.shown:
                errors += 1
                break
    assert 0 < errors / len(logs) <= 0.05  # a 95 % interval at every round of 12 to 36: 0.17


def test_the_shares_of_all_looks_are_the_whole_error() -> None:
    assert sum(LOOKS.values()) == pytest.approx(1)
    assert list(LOOKS) == sorted(LOOKS)


def test_the_noise_floor_of_the_machine_counts_where_it_is_stored() -> None:
    assert not compare(sessions((1.0, 1.06)), "machine").excluded
    noise_floor.add("machine", [replace(control(1e-3, 0.08), device="cpu:threads=1")])
    result = compare(sessions((1.0, 1.06)), "machine")
    assert result.excluded
    assert "noise floor 8.3 %" in result.text


def group(name: str, call_s: float, *arms: Arm, late: bool = False) -> Group:
    return Group(id=name, problem=Problem(seq_q=64), mode=Mode.FWD, arms=arms, calls_s=(call_s,) * len(arms), late=late)


def test_the_longest_short_call_of_a_backend_on_all_devices_is_timed() -> None:
    naive, flash = ([Arm(backend=name, device=device) for device in DEVICES] for name in ("naive", "sdpa:flash"))
    groups = (
        group("short", 1e-3, *naive), group("chosen", 0.05, flash[0], *naive), group("long", 1.0, *naive),
        group("compiled", 0.09, *flash, late=True), group("alone", 0.09, naive[0], flash[1]),
    )  # fmt: skip
    best = checked_group(Plan(groups=groups, arms=(*naive, *flash)))
    assert best is not None
    assert (best.id, best.arms) == ("chosen", tuple(naive))
    only_long = checked_group(Plan(groups=groups[2:4], arms=(*naive, *flash)))
    assert only_long is not None
    assert only_long.id == "long"
    assert checked_group(Plan(groups=groups[4:], arms=(*naive, *flash))) is None
