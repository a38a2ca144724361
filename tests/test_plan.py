"""Plans: what is measured together, in which order, and what is refused with which reason."""

from __future__ import annotations

import pytest

from attnbench import plan
from attnbench.arm import Device
from attnbench.attention.problem import Mode, Problem
from attnbench.case import Case
from attnbench.result import Procedure, Status
from attnbench.suite import Cell

CPU = Device(kind="cpu", threads=1)
GIB = 1024**3


def made(*problems: Problem, names: tuple[str, ...], memory: int = 16 * GIB, mode: Mode = Mode.FWD) -> plan.Plan:
    terms = plan.Terms(memory_bytes=memory, procedures={"cpu": Procedure()})
    arms = plan.arms_of(names, [CPU])
    return plan.make([(Cell(problem=problem, mode=mode), arms) for problem in problems], terms)


def test_the_arms_of_a_problem_share_a_group():
    (group,) = made(Problem(seq_q=64), names=("naive", "sdpa:math", "sdpa:flash")).groups
    assert [arm.name for arm in group.arms] == ["naive", "sdpa:math", "sdpa:flash"]


def test_groups_go_from_cheap_to_dear():
    groups = made(Problem(seq_q=2048), Problem(seq_q=64), Problem(seq_q=512), names=("naive",)).groups
    assert [group.problem.seq_q for group in groups] == [64, 512, 2048]


def test_a_backend_that_compiles_has_a_pass_of_its_own_beside_the_reference():
    early, late = made(Problem(seq_q=64), names=("flex", "naive")).groups
    assert ([arm.name for arm in early.arms], early.late) == (["naive"], False)
    assert ([arm.name for arm in late.arms], [arm.name for arm in late.borrowed], late.late) == (
        ["flex"],
        ["naive"],
        True,
    )


def test_the_same_name_twice_is_two_arms():
    (group,) = made(Problem(seq_q=64), names=("naive", "naive")).groups
    assert [arm.name for arm in group.arms] == ["naive", "naive#2"]
    assert len({arm.id for arm in group.arms}) == 2


def test_what_does_not_fit_is_refused_with_both_numbers():
    found = made(Problem(seq_q=16384), names=("naive", "sdpa:flash"), memory=10 * GIB)
    (refusal,) = found.refusals
    assert (refusal.case.backend, refusal.status) == ("naive", Status.SKIPPED)
    assert refusal.reason.startswith("needs 17")
    assert refusal.reason.endswith("GiB, limit 10.0 GiB")
    assert [arm.name for group in found.groups for arm in group.arms] == ["sdpa:flash"]


def test_arms_that_do_not_fit_together_are_measured_apart():
    found = made(Problem(seq_q=8192), names=("naive", "sdpa:math"), memory=9 * GIB)
    assert [[arm.name for arm in group.arms] for group in found.groups] == [["naive"], ["sdpa:math"]]
    assert all(group.peak_bytes < 9 * GIB for group in found.groups)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("sdpa:cudnn", Status.UNAVAILABLE, "runs on cuda, not on cpu"),
        ("triton", Status.UNAVAILABLE, "interpreted"),
        ("flex", Status.UNSUPPORTED, "no bwd"),
    ],
)
def test_a_refusal_has_its_status_and_reason(name, status, words):
    (refusal,) = made(Problem(seq_q=64), names=(name,), mode=Mode.BWD).refusals
    assert refusal.status is status
    assert words in refusal.reason


def test_every_cell_is_planned_or_refused():
    problems = [Problem(seq_q=seq, mask=mask) for seq in (64, 128) for mask in ("none", "causal")]
    found = made(*problems, names=("naive", "flex", "triton"))
    assert found.cases == 4 * 3


def test_a_forecast_learns_from_the_nearest_measurement():
    forecast = plan.Forecast()
    (arm,) = plan.arms_of(("naive",), [CPU])
    small, large = (Case(problem=Problem(seq_q=seq), backend="naive") for seq in (512, 1024))
    forecast.learn(arm, small, 0.010)
    assert forecast.call_s(arm, small) == pytest.approx(0.010)
    assert forecast.call_s(arm, large) == pytest.approx(0.040)
