"""Predictions: from estimates, from earlier runs, and corrected by finished groups."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import plan, sweep
from attnbench.engine.candidates import PlanLimits
from attnbench.engine.forecast import (
    ARM_OVERHEAD_S,
    COMPILE_S,
    COMPILER_S,
    MIN_CALLS,
    ORACLE_MAX_S,
    ORACLE_MIN_S,
    PROBE_S,
    START_S,
    Forecast,
)
from attnbench.engine.group import Group
from attnbench.engine.sweep import Request
from attnbench.records import speeds
from attnbench.records.arm import Arm, Device
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.suite import Cell
from attnbench.worker import probes

DEVICE = Device(kind="cpu", threads=1)
ARM, FLEX = plan.arms_of(("naive", "flex"), [DEVICE])
COMPILING = Group(id="", problem=Problem(seq_q=64), mode=Mode.FWD, arms=(FLEX,), borrowed=(ARM,), late=True)


def group(seq: int) -> Group:
    return Group(id="", problem=Problem(seq_q=seq), mode=Mode.FWD, arms=(ARM,))


def case(seq: int, backend: str = "naive") -> Case:
    return Case(problem=Problem(seq_q=seq), backend=backend)


def call_s(forecast: Forecast, arm: Arm, case: Case) -> float:
    (timed,) = forecast.timed([Group(id="", problem=case.problem, mode=case.mode, arms=(arm,))])
    return timed.calls_s[0]


def test_a_call_is_predicted_from_the_nearest_measurement() -> None:
    forecast = Forecast()
    forecast.learn(ARM, case(512), 0.010)
    forecast.learn(ARM, case(4096), 0.320)
    assert call_s(forecast, ARM, case(512)) == pytest.approx(0.010)
    assert call_s(forecast, ARM, case(1024)) == pytest.approx(0.040, rel=0.05)
    assert call_s(forecast, ARM, case(8192)) == pytest.approx(1.280, rel=0.05)


def test_a_prefill_is_predicted_from_a_decoding_step_by_products_and_bytes() -> None:
    """By hand, at 1.5e10 FLOP/s and 1e10 bytes/s: 67 MB of keys take 6.7 ms + 2.2 ms, and 4.3e11 FLOPs take 28.6 s.

    FLOPs alone would have it 12,800 times as long as the decoding step.
    """
    decode = Case(problem=Problem(seq_q=1, seq_kv=2**17, heads=1, head_dim=64, mask="causal"), backend="naive")
    prefill = Case(problem=Problem(seq_q=12800, seq_kv=2**17, heads=1, head_dim=64, mask="causal"), backend="naive")
    forecast = Forecast()
    forecast.learn(ARM, decode, 0.018)
    assert call_s(forecast, ARM, prefill) == pytest.approx(0.018 * 28.6 / 0.0089, rel=0.05)


def test_a_backend_that_pads_is_predicted_with_its_padding() -> None:
    """By hand: one request of 100 x 1000 and one of 1 x 10 are 2 x 100 x 1000 pairs where padded."""
    arm = plan.arms_of(("sdpa:padded",), [Device(kind="cpu", threads=1)])[0]
    shape = {"batch": 2, "seq_q": 100, "seq_kv": 1000, "mask": "causal"}
    packed, padded = Problem(**shape, requests="q100s1000_q1s10"), Problem(**shape)
    calls = [call_s(Forecast(), arm, Case(problem=each, backend="sdpa:padded")) for each in (packed, padded)]
    assert calls[0] == calls[1]


def test_calls_between_stored_ones_follow_their_law_and_the_plan_says_so() -> None:
    """A call takes 100 us and 2 ns for each pair: the nearest stored call alone would be 24 % off at 700."""

    def taken_s(seq: int) -> float:
        return 1e-4 + 2e-9 * 8 * seq * seq

    forecast = Forecast()
    for seq in (64, 128, 256, 512, 1024, 2048):
        forecast.learn(ARM, case(seq), taken_s(seq))
    assert call_s(forecast, ARM, case(700)) == pytest.approx(taken_s(700), rel=0.01)
    procedures = {"cpu": Procedure()}
    limits = PlanLimits(memory_bytes=1 << 40, procedures=procedures, speeds=forecast.speeds)
    cells = [(Cell(case(700).problem, Mode.FWD), plan.arms_of((name,), [DEVICE])) for name in ("naive", "sdpa:math")]
    assert plan.make(cells, limits).times_from == "from 6 stored cases, 1 guessed"
    assert plan.make(cells[1:], limits).times_from == "a rough guess"


def test_calls_of_another_kind_or_far_from_stored_ones_are_scaled_from_the_nearest() -> None:
    forecast = Forecast()
    for seq in (64, 128, 256, 512, 1024):
        forecast.learn(ARM, case(seq), 1e-3)
    far = call_s(forecast, ARM, case(16384))
    assert far == pytest.approx(1e-3 * 16**2, rel=0.05)
    causal = Case(problem=Problem(seq_q=512, mask="causal"), backend="naive")
    assert call_s(forecast, ARM, causal) == pytest.approx(1e-3)
    assert forecast.basis.stored == 5


def test_of_calls_of_nearly_equal_sizes_the_newest_is_stored() -> None:
    forecast = Forecast()
    forecast.learn(ARM, case(512), 1e-3)
    forecast.learn(ARM, case(513), 2e-3)
    ((_, kinds),) = forecast.speeds.calls.items()
    assert [call[-1] for calls in kinds.values() for call in calls.values()] == [2e-3]


def test_probes_take_their_time_in_the_first_restart() -> None:
    request = Request(axes={"seq": "64", "mask": "none"}, backend="naive", device="cpu:threads=1", restarts=2)
    plain = sweep.prepare(request)
    probed = sweep.prepare(msgspec.structs.replace(request, probe="values,noise"))
    parts = len(probes.parts(("values", "noise")))
    assert parts > 5
    (group,) = probed.plan.groups
    assert group.probes == parts
    more_s = sweep.rest(probed).seconds - sweep.rest(plain).seconds
    ratio = Forecast(probed.settings.speeds).ratios[1]
    assert more_s == pytest.approx(ratio * parts * (PROBE_S + ORACLE_MIN_S / 2), rel=0.1)  # once; calls are short
    (later,) = plan.missing_arms(probed.plan.groups, 1, (), "")
    assert later.probes == 0


def test_finished_groups_correct_those_that_follow() -> None:
    forecast = Forecast()
    first = forecast.group_s(group(1024))
    for _ in range(100):
        forecast.learn_group(group(1024), 3 * first)
    assert forecast.group_s(group(1024)) == pytest.approx(3 * first, rel=0.1)


def test_short_groups_do_not_correct_the_calls_of_long_ones() -> None:
    """Short cases take three times as long beside their calls; a prompt of a second a call takes its calls."""
    forecast = Forecast()
    forecast.learn(ARM, case(64), 1e-5)
    forecast.learn(ARM, case(4096), 1.0)
    before_s = forecast.group_s(group(4096))
    for _ in range(1000):
        forecast.learn_group(group(64), 3 * forecast.group_s(group(64)) / forecast.ratios[1])
    assert forecast.ratios[1] == pytest.approx(3, rel=0.1)
    beside_s = ARM_OVERHEAD_S + ORACLE_MAX_S
    assert forecast.group_s(group(4096)) == pytest.approx(before_s + 2 * beside_s, rel=0.1)


def test_the_next_run_knows_what_this_one_measured_but_for_files_of_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forecast = Forecast()
    forecast.learn(ARM, case(512), 0.010)
    forecast.learn_compile(FLEX, 40.0, starts=True)
    (own,) = plan.arms_of(("kernel.py:attend",), [Device(kind="cpu", threads=1)])
    forecast.learn(own, case(512, own.backend), 0.5)
    forecast.learn_group(group(512), 100.0)
    speeds.save("a-machine", forecast.speeds)
    later = Forecast(speeds.load("a-machine"))
    assert call_s(later, ARM, case(512)) == 0.010
    assert call_s(later, own, case(512, own.backend)) == call_s(Forecast(), own, case(512, own.backend))
    assert later.ratios == pytest.approx(forecast.ratios)
    assert later.start_s([FLEX], 1) == forecast.start_s([FLEX], 1)
    assert speeds.load("another-machine") == speeds.Speeds()


def test_a_planned_group_holds_the_seconds_of_a_call_of_each_arm() -> None:
    forecast = Forecast()
    (timed,) = forecast.timed([group(1024)])
    # By hand, at 1.5e10 FLOP/s and 1e10 bytes/s: 2.147e9 FLOPs, 8.39e6 bytes, and 50 us of overhead.
    assert timed.calls_s == (pytest.approx(2.147e9 / 1.5e10 + 8.39e6 / 1e10 + 5e-5, rel=1e-3),)
    assert timed.seconds == forecast.group_s(group(1024))


def test_the_first_case_that_a_process_compiles_predicts_no_later_one() -> None:
    """The first one takes 30 s, most of them to start the compiler; the second one 4 s."""
    forecast = Forecast()
    short_s = forecast.group_s(COMPILING) - COMPILE_S
    assert forecast.start_s([ARM, FLEX], cores=2) == START_S + COMPILER_S
    forecast.learn_compile(FLEX, 30.0, starts=True)
    assert forecast.group_s(COMPILING) == pytest.approx(COMPILE_S + short_s)
    forecast.learn_compile(FLEX, 4.0, starts=False)
    assert forecast.group_s(COMPILING) == pytest.approx(4.0 + short_s)
    assert forecast.start_s([FLEX], cores=2) == pytest.approx(START_S + 26.0)


def test_a_first_case_that_compiles_fast_predicts_the_others() -> None:
    forecast = Forecast()
    cold_s = forecast.group_s(COMPILING)
    forecast.learn_compile(FLEX, 1.0, starts=True)
    assert forecast.group_s(COMPILING) == pytest.approx(cold_s - COMPILE_S + 1.0)
    assert forecast.start_s([FLEX], cores=2) == START_S


def test_compiling_is_predicted_as_measured_however_far_the_rest_is_off() -> None:
    forecast = Forecast()
    forecast.learn_compile(FLEX, 4.0, starts=False)
    rest_s = forecast.group_s(COMPILING) - 4.0
    for _ in range(1000):
        forecast.learn_group(COMPILING, 2 * rest_s)
    assert forecast.group_s(COMPILING) == pytest.approx(4.0 + 2 * rest_s, rel=0.1)


def test_only_backends_that_compile_are_predicted_to_compile_and_expected_values_are_computed_once() -> None:
    """A gate has all arms in one group; in a run the reference arm, which is borrowed, has had its values."""
    gate = Group(id="", problem=Problem(seq_q=64), mode=Mode.FWD, arms=(ARM, FLEX), late=True)
    calls_s = MIN_CALLS * sum(Forecast().timed([gate])[0].calls_s)
    assert Forecast().group_s(gate) == pytest.approx(calls_s + 2 * ARM_OVERHEAD_S + ORACLE_MIN_S + COMPILE_S)
    assert Forecast().group_s(COMPILING) == pytest.approx(calls_s + 2 * ARM_OVERHEAD_S + COMPILE_S)
