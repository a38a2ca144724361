"""Plans: groups, their order, and refusals with their reasons."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType

import msgspec
import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import plan, sweep
from attnbench.engine.candidates import PlanLimits, peak_bytes
from attnbench.errors import UsageError
from attnbench.records.arm import Device
from attnbench.records.case import Case
from attnbench.records.result import Cause, Procedure, Status
from attnbench.records.speeds import Speeds
from attnbench.suite import Cell

CPU = Device(kind="cpu", threads=1)
GIB = 1024**3
LIMITS = PlanLimits(memory_bytes=16 * GIB, procedures={"cpu": Procedure()})


def planned(
    *problems: Problem, names: tuple[str, ...], memory: int = 16 * GIB, mode: Mode = Mode.FWD, layers: int = 0
) -> plan.Plan:
    limits = msgspec.structs.replace(LIMITS, memory_bytes=memory)
    arms = plan.arms_of(names, [CPU])
    cells = [(Cell(problem=problem, mode=mode, layers=layers), arms) for problem in problems]
    return plan.make(cells, msgspec.structs.replace(limits, reference=plan.reference_of(cells, limits)))


def test_the_arms_of_a_problem_share_a_group():
    (group,) = planned(Problem(seq_q=64), names=("naive", "sdpa:math", "sdpa:flash")).groups
    assert [arm.name for arm in group.arms] == ["naive", "sdpa:math", "sdpa:flash"]


def test_groups_go_from_the_cheapest_to_the_most_expensive():
    groups = planned(Problem(seq_q=2048), Problem(seq_q=64), Problem(seq_q=512), names=("naive",)).groups
    assert [group.problem.seq_q for group in groups] == [64, 512, 2048]


def test_the_cheapest_cases_are_first_however_many_backends_share_their_group() -> None:
    """Nine backends at a length of 512 take longer together than one at 1024: a budget cuts as few cases as it can."""
    cells = [
        (Cell(problem=Problem(seq_q=seq), mode=Mode.FWD), plan.arms_of(names, [CPU]))
        for seq, names in ((1024, ("naive",)), (512, ("sdpa:math",) * 9))
    ]
    many, one = plan.make(cells, LIMITS).groups
    assert (many.problem.seq_q, one.problem.seq_q) == (512, 1024)
    assert many.seconds > one.seconds


def test_a_backend_that_compiles_is_in_the_second_pass_with_the_reference():
    early, late = planned(Problem(seq_q=64), names=("flex", "naive")).groups
    assert ([arm.name for arm in early.arms], early.late) == (["naive"], False)
    assert ([arm.name for arm in late.arms], [arm.name for arm in late.borrowed], late.late) == (
        ["flex"],
        ["naive"],
        True,
    )


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        (("sdpa:flash", "flex"), "sdpa:flash"),
        (("flex", "sdpa:math", "sdpa:flash"), "sdpa:math"),
        (("sdpa:flash", "naive", "flex"), "naive"),
        (("triton", "sdpa:cudnn", "kern.py:attend", "flex"), "kern.py:attend"),
    ],
)
def test_the_reference_is_naive_or_else_the_first_backend_that_can_serve(
    names: tuple[str, ...], reference: str
) -> None:
    *_, late = planned(Problem(seq_q=64), names=names).groups
    assert ([arm.name for arm in late.arms], [arm.name for arm in late.borrowed]) == (["flex"], [reference])


def test_a_reference_that_is_not_measured_is_refused() -> None:
    request = sweep.Request(axes={"seq": "64"}, backend="sdpa:flash", reference="naive", device="cpu:threads=1")
    with pytest.raises(UsageError, match=r"--reference naive: not among the backends of this run, sdpa:flash: add it"):
        sweep.prepare(request)


def test_no_backend_serves_where_all_compile() -> None:
    assert [group.borrowed for group in planned(Problem(seq_q=64), names=("flex", "flex")).groups] == [(), ()]


def test_a_group_that_did_not_fit_beside_the_reference_borrows_it() -> None:
    cell = Cell(problem=Problem(seq_q=8192), mode=Mode.FWD)
    arms = plan.arms_of(("naive", "sdpa:math"), [CPU])
    two = plan.group_bytes(cell.problem, [peak_bytes(Case(problem=cell.problem, backend=arm.backend)) for arm in arms])
    groups = planned(cell.problem, names=("naive", "naive", "sdpa:math"), memory=two).groups
    borrowed = {tuple(arm.name for arm in group.arms): [arm.name for arm in group.borrowed] for group in groups}
    assert borrowed == {("naive", "naive#2"): [], ("sdpa:math",): ["naive"]}


def test_what_is_left_of_a_plan_lacks_a_restart() -> None:
    whole = planned(Problem(seq_q=64), Problem(seq_q=128), names=("naive", "sdpa:flash"))
    keys = [(group.case(arm).id, arm.id, each) for each in range(2) for group in whole.groups for arm in group.arms]
    assert whole.without(frozenset(keys), range(2)) == []
    (left,) = whole.without(frozenset(keys[:-1]), range(2))
    assert (left.problem, left.arms) == (whole.groups[1].problem, whole.groups[1].arms[1:])
    assert (left.calls_s, left.peaks_bytes) == (whole.groups[1].calls_s[1:], whole.groups[1].peaks_bytes[1:])


def test_the_time_of_a_continued_run_is_that_of_what_is_left() -> None:
    whole = planned(Problem(seq_q=64), Problem(seq_q=1024), names=("naive", "sdpa:flash", "sdpa:cudnn"))
    speeds = Speeds()
    groups = whole.groups
    assert [whole.rest((), range(n), speeds).results for n in (1, 2)] == [4 + 2, 8 + 2]
    refused = {refusal.key for refusal in whole.refusals}
    first = {(groups[0].case(arm).id, arm.id, each) for arm in groups[0].arms for each in range(2)}
    left = whole.rest(refused | first, range(2), speeds)
    alone = planned(Problem(seq_q=1024), names=("naive", "sdpa:flash"))
    assert left[:3] == (2, 4, pytest.approx(2 * alone.seconds))
    naive = {(groups[1].case(arm).id, arm.id, 0) for arm in groups[1].arms[:1]}
    flash = planned(Problem(seq_q=1024), names=("sdpa:flash",))
    part = whole.rest(refused | first | naive, range(2), speeds)
    assert part[:3] == (2, 3, pytest.approx(alone.seconds + flash.seconds))


def test_groups_of_a_continued_run_have_other_names() -> None:
    first = planned(Problem(seq_q=64), names=("naive",))
    assert {group.id for group in first.groups}.isdisjoint(group.id for group in first.continued("now").groups)


def test_a_repeated_name_is_a_second_copy():
    (group,) = planned(Problem(seq_q=64), names=("naive", "naive")).groups
    assert [arm.name for arm in group.arms] == ["naive", "naive#2"]
    assert len({arm.id for arm in group.arms}) == 2


def test_a_case_that_does_not_fit_is_refused_with_both_sizes():
    result = planned(Problem(seq_q=16384), names=("naive", "sdpa:flash"), memory=10 * GIB)
    (refusal,) = result.refusals
    assert (refusal.case.backend, refusal.status, refusal.cause) == ("naive", Status.SKIPPED, Cause.MEMORY)
    assert refusal.reason.startswith("needs 17")
    assert refusal.reason.endswith("GiB, limit 10.0 GiB")
    assert [arm.name for group in result.groups for arm in group.arms] == ["sdpa:flash"]


def test_arms_that_do_not_fit_together_are_in_separate_groups():
    result = planned(Problem(seq_q=8192), names=("naive", "sdpa:math"), memory=9 * GIB)
    assert [[arm.name for arm in group.arms] for group in result.groups] == [["naive"], ["sdpa:math"]]
    assert all(peak and peak < 9 * GIB for group in result.groups for peak in group.peaks_bytes)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("sdpa:cudnn", Status.UNAVAILABLE, "runs on cuda, not on cpu"),
        ("triton", Status.UNAVAILABLE, "interpreted"),
        ("flex", Status.UNSUPPORTED, "backward unsupported"),
    ],
)
def test_a_refusal_has_its_status_and_reason(name, status, words):
    (refusal,) = planned(Problem(seq_q=64), names=(name,), mode=Mode.BWD).refusals
    assert refusal.status is status
    assert words in refusal.reason


def test_every_cell_is_planned_or_refused():
    problems = [Problem(seq_q=seq, mask=mask) for seq in (64, 128) for mask in ("none", "causal")]
    result = planned(*problems, names=("naive", "flex", "triton"))
    assert result.cases == 4 * 3


def test_a_long_plan_tells_how_far_it_is():
    told = []
    sweep.prepare(
        sweep.Request(axes={"seq": "1..5001:+1", "mask": "none"}, backend="naive", device="cpu:threads=1"),
        step=told.append,
    )
    assert told == ["planning: 0 of 5,001 problems", "planning: 5,000 of 5,001 problems"]


PLAIN = ["naive", "sdpa:math", "sdpa:flash", "flex"]
ON_GPUS = {"sdpa:cascade", "flashinfer:cascade", "triton:cascade"}


@pytest.mark.parametrize(
    ("fields", "special"),
    [
        ({}, []),
        ({"kv": "latent:16+4", "head_dim": 12, "head_dim_v": 8}, ["mla:absorbed", "mla:expanded"]),
        ({"requests": "2q1s40", "batch": 2, "seq_kv": 40, "shared_prefix": "16:2"}, ["sdpa:cascade"]),
        ({"requests": "2q1s40", "batch": 2, "seq_kv": 40, "shared_prefix": "16:2", "mask": "causal+window:3"}, []),
    ],
    ids=str,
)
def test_the_default_backends_include_those_for_this_kind_of_problem_alone(fields, special):
    problem = Problem(**{"seq_q": 1, **fields})
    assert list(plan.auto("cpu", problem, Mode.FWD)) == PLAIN + special
    assert list(plan.auto("cpu", problem, Mode.FWD_BWD)) == PLAIN


def test_cascades_of_three_libraries_are_among_the_default_backends_on_gpus(monkeypatch):
    monkeypatch.setattr(plan, "_missing", lambda name, pythons: False)
    shape = {"requests": "2q1s40", "batch": 2, "seq_q": 1, "seq_kv": 40, "shared_prefix": "16:2", "page_size": 16}
    problem = Problem(dtype="bf16", heads=4, kv_heads=1, **shape)
    assert set(plan.auto("cuda", problem, Mode.FWD)) - set(plan.AUTO["cuda"]) == ON_GPUS


def test_each_cell_has_the_default_backends_of_its_problem():
    ready = sweep.prepare(
        sweep.Request(axes={"seq": "32", "head_dim": "12", "head_dim_v": "8", "kv": "latent:16+4,none"}, device="cpu")
    )
    cached = {arm.backend for group in ready.plan.groups for arm in group.arms if group.problem.kv}
    assert cached == {"mla:absorbed", "mla:expanded", "naive"}
    plain = {arm.backend for group in ready.plan.groups for arm in group.arms if not group.problem.kv}
    assert not any(name.startswith("mla") for name in plain)


def test_planning_is_linear_in_the_number_of_problems() -> None:
    """Counted in calls of functions, refusals among them."""

    def calls(problems: int) -> int:
        counted = [0]

        def count(_frame: object, event: str, _argument: object) -> None:
            counted[0] += event == "call"

        axes = {"seq": f"{2 * problems}..{3 * problems - 1}:+1", "mask": "causal"}
        request = sweep.Request(axes=axes, backend="naive,sdpa:flash,flash-attn:2", device="cpu:threads=1")
        sys.setprofile(count)
        try:
            assert sweep.prepare(request).plan.cases == 3 * problems
        finally:
            sys.setprofile(None)
        return counted[0]

    calls(10)  # imports, and what is computed once
    few, many = calls(100), calls(400)
    assert many < 4.4 * few


def calls_of_planning(lengths: str, names: str) -> Counter[str]:
    """How often each function is called while a sweep is planned."""
    counted: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            counted[frame.f_code.co_qualname] += 1

    request = sweep.Request(axes={"seq": lengths, "mask": "causal"}, backend=names, device="cpu:threads=1")
    sys.setprofile(count)
    try:
        sweep.prepare(request)
    finally:
        sys.setprofile(None)
    return counted


def test_what_depends_on_the_problem_alone_is_computed_once_for_all_its_backends() -> None:
    one, four = (calls_of_planning(lengths, names) for lengths, names in (
        ("7001..7020:+1", "naive"), ("7101..7120:+1", "naive,sdpa,sdpa:math,sdpa:flash"),
    ))  # fmt: skip
    costly = ("Problem.__post_init__", "_features", "_totals", "input_bytes", "call_bytes", "workload", "kind_of")
    assert {name: four[name] for name in costly} == {name: one[name] for name in costly} != dict.fromkeys(costly, 0)


def test_what_depends_on_the_arm_alone_is_computed_once_for_all_problems() -> None:
    few, many = (calls_of_planning(lengths, "naive,sdpa:cudnn") for lengths in ("64..67:+1", "64..99:+1"))
    costly = ("load", "missing", "wrong_version", "Candidate.__init__", "parse_device", "Forecast._of_family")
    assert {name: many[name] for name in costly} == {name: few[name] for name in costly}
    assert few["Candidate.__init__"]


def test_the_default_backends_are_found_without_reading_the_metadata_of_packages_for_each_problem() -> None:
    calls_of_planning("64..65:+1", "")
    assert "entry_points" not in calls_of_planning("64..67:+1", "")
