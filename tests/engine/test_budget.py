"""How a run shares its budget: the default sweep over a machine whose every step takes a scripted time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import group_runner, plan, rounds, runner, sweep
from attnbench.engine.forecast import MARGIN, ROUNDS_S
from attnbench.engine.group import Group
from attnbench.engine.later_groups import LaterGroups
from attnbench.engine.oracle import ExpectedFiles
from attnbench.engine.runner import Runner
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Cause, Result, Status
from attnbench.worker import protocol
from tests.engine.test_plan import planned
from tests.engine.test_scripted_run import Recorded, Scripted

BUDGET_S = 90.0
CORES = 2
CASES = 28 + 12  # of torch and of libraries
# Seconds of a call at a length of 512, of a 2-core CPU; it grows with the square of the length.
CALL_S = {"naive": 0.0112, "sdpa:math": 0.0124, "sdpa:flash": 0.0071, "flex": 0.0088}


class Pace(NamedTuple):
    """Seconds of the steps of a run: on a 2-core CPU whose caches are empty."""

    start: float = 1.4  # of as many workers as there are cores
    first_graph: float = 13.3
    graph: float = 3.75
    slower: float = 1.0  # times everything
    noise: float = 0.06


class Machine(Scripted):
    """Processes whose work moves a clock."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace, self.now, self._names, self._random = pace, 0.0, set[str](), random.Random(0)
        self._known: set[tuple[Problem, Mode]] = set()
        self.compiled = 0

    def monotonic(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds * self.pace.slower

    def lacking(self, arms: Iterable[Arm]) -> list[Arm]:
        return [arm for arm in arms if arm.id not in self._names]

    def open(self, arms: Sequence[Arm], _deadline: float, *_: object) -> None:
        lacking = self.lacking(arms)
        self.take(self.pace.start * -(-len(lacking) // CORES))
        self._names.update(arm.id for arm in lacking)

    def terminate_all(self) -> None:
        self._names.clear()

    def __getitem__(self, arm: Arm) -> Any:
        return TimedWorker(self, arm)

    def expect(self, problem: Problem, mode: Mode, *_: object) -> tuple[ExpectedFiles, dict[str, ExpectedFiles]]:
        if (problem, mode) not in self._known:
            self.take(0.1 + 5e-7 * problem.seq_q * problem.seq_kv)
            self._known.add((problem, mode))
        return super().expect()

    def call_s(self, case: Case) -> float:
        call_s = CALL_S.get(case.backend, 0.0) * (case.problem.seq_q / 512) ** 2
        return call_s * self.pace.slower * self._random.gauss(1, self.pace.noise)


class TimedWorker:
    """Answers each request after the seconds that it takes."""

    import_s = 0.0
    opened = None

    def __init__(self, machine: Machine, arm: Arm) -> None:
        self._machine, self._arm = machine, arm
        self._case = Case(problem=Problem(seq_q=1), backend=arm.backend)

    def ask(self, message: object, *_: object) -> Any:
        machine = self._machine
        if isinstance(message, protocol.PrepareCase):
            self._case = message.case
        call_s = machine.call_s(self._case)
        match message:
            case protocol.PrepareCase():
                first_s = call_s + self._compile_s()
                machine.take(0.02 + first_s)
                return protocol.CasePrepared(seconds={"first_call": first_s}, facts={})
            case protocol.VerifyCase():
                machine.take(0.05 + 2 * call_s if message.brief else 0.25 + 10 * call_s)
                return protocol.CaseVerified(ok=True, reason="", errors={})
            case protocol.SettleCase():
                machine.take(max(0.03, 3 * call_s))
                return protocol.CaseSettled(call_s=call_s, settled=True, seconds=0.03)
            case protocol.TimeBlock():
                calls = max(round(0.01 / call_s), 1)
                machine.take(0.004 + calls * call_s)
                return protocol.BlockTimed(values=[call_s], calls=calls)
            case protocol.CheckOutput():
                machine.take(0.05 + 4 * call_s)
                return protocol.CaseVerified(ok=True, reason="", errors={})
            case protocol.MeasureMemory():
                machine.take(0.02 + call_s)
                return protocol.MemoryMeasured(peak=1, total=2)
            case protocol.ReleaseCase():
                machine.take(0.03)
                return protocol.CaseReleased()
        raise AssertionError(message)

    def _compile_s(self) -> float:
        if self._arm.backend != "flex":
            return 0.0
        self._machine.compiled += 1
        return self._machine.pace.first_graph if self._machine.compiled == 1 else self._machine.pace.graph


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A machine of that pace, for the runs that follow."""

    def started(pace: Pace) -> Machine:
        machine = Machine(pace)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("Workers", "Oracle"):
            monkeypatch.setattr(group_runner, name, machine)
        monkeypatch.setattr(group_runner.resources, "available_cores", lambda: tuple(range(CORES)))
        for module in (runner, group_runner, rounds):
            monkeypatch.setattr(module, "time", machine)
        return machine

    return started


def default_sweep(monkeypatch: pytest.MonkeyPatch) -> sweep.Sweep:
    """`attnbench run` on a CPU, where six copies of sdpa:math stand for the backends of light libraries."""
    monkeypatch.setattr(plan, "libraries", lambda *_: ("sdpa:math",) * 6)
    return sweep.prepare(sweep.Request(device="cpu:threads=1"))


def run_of(planned_sweep: sweep.Sweep, budget_s: float = BUDGET_S) -> list[Result]:
    results: list[Result] = []
    settings = msgspec.structs.replace(planned_sweep.settings, budget_s=budget_s)
    Runner(planned_sweep.plan, settings, results.extend, Recorded()).run()
    return results


def rounds_of(results: Sequence[Result]) -> list[int]:
    return [len(result.samples["time"].blocks) for result in results]


@pytest.mark.parametrize(
    ("pace", "end_s"),
    [
        (Pace(), 75.0),
        (Pace(noise=0.2), 75.0),
        (Pace(first_graph=27.0, graph=5.0), BUDGET_S),
        (Pace(slower=1.25), BUDGET_S),
    ],
    ids=("cold", "noisy", "slow compiler", "slower"),
)
def test_the_default_sweep_measures_every_case_within_its_budget_with_empty_caches(
    pace: Pace, end_s: float, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = start(pace)
    results = run_of(default_sweep(monkeypatch))
    assert {result.status for result in results} == {Status.OK}
    assert len(results) == CASES
    assert machine.compiled == 4
    assert machine.now <= end_s


def test_rounds_shrink_before_a_case_is_cut(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine a quarter slower than the one that the budget was chosen on, with three budgets."""
    counts = {}
    for budget_s in (90.0, 150.0, 600.0):
        start(Pace(slower=1.25))
        counts[budget_s] = rounds_of(run_of(default_sweep(monkeypatch), budget_s=budget_s))
    assert [len(rounds) for rounds in counts.values()] == [CASES] * 3
    assert min(counts[90.0]) >= 3
    assert 2 * sum(counts[90.0]) < sum(counts[150.0]) < sum(counts[600.0])


def test_a_case_that_cannot_fit_is_skipped_and_the_others_keep_their_rounds(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(Pace())
    results = run_of(default_sweep(monkeypatch), budget_s=45.0)
    cut = [result for result in results if result.status is Status.SKIPPED]
    assert {(result.case.backend, result.cause) for result in cut} == {("flex", Cause.BUDGET)}
    assert min(rounds_of([result for result in results if result not in cut])) > 3


def test_restarts_share_the_budget(start: Any) -> None:
    start(Pace(noise=0.2))
    problems = (Problem(seq_q=seq) for seq in (256, 512, 1024))
    whole = planned(*problems, names=("naive", "sdpa:math", "sdpa:flash"))
    results: list[Result] = []
    settings = sweep.settings_of(sweep.Request(restarts=4, budget="60s"), (), ["cpu"])
    Runner(whole, settings, results.extend, Recorded()).run()
    assert [result.status for result in results] == [Status.OK] * 4 * 9


def later(*seconds: float) -> LaterGroups:
    groups = planned(*(Problem(seq_q=64 + number) for number in range(len(seconds))), names=("naive",)).groups
    return LaterGroups(groups, lambda rest: list(seconds[len(seconds) - len(rest) :]))


def test_all_later_groups_have_their_time_reserved_if_they_may_fit() -> None:
    groups = later(1.0, 2.0, 3.0, 4.0)
    next(iter(groups))
    assert groups.seconds == 9
    assert groups.reserved_s(11.0) == 9
    assert groups.reserved_s(1.01 + 9.0 / MARGIN) == 9


def test_otherwise_as_many_as_fit_with_usual_rounds() -> None:
    groups = later(1.0, 2.0, 3.0, 4.0)
    next(iter(groups))
    assert groups.reserved_s(1.0 + 5.0 + 2 * ROUNDS_S) == pytest.approx(5.0 + 2 * ROUNDS_S)
    assert groups.reserved_s(1.0 + 5.0) == pytest.approx(2.0 + ROUNDS_S)
    assert groups.reserved_s(1.0) == 0


def test_later_restarts_come_after_the_groups_of_this_one() -> None:
    groups = later(1.0, 2.0)
    assert [groups.reserved_s(100.0, [8.0, 8.0]) for _ in groups] == [18.0, 16.0]
    groups = later(1.0, 2.0)
    next(iter(groups))
    assert groups.reserved_s(11.5, [8.0, 8.0]) == pytest.approx(10.0 + ROUNDS_S)


def test_predictions_of_a_long_plan_are_renewed_now_and_then() -> None:
    calls: list[int] = []

    def predicted(rest: Sequence[Group]) -> list[float]:
        calls.append(len(rest))
        return [1.0] * len(rest)

    groups = planned(*(Problem(seq_q=64 + number) for number in range(100)), names=("naive",)).groups
    seconds = [rest.seconds for rest in [LaterGroups(groups, predicted)] for _ in rest]
    assert seconds == list(range(99, -1, -1))
    assert calls == list(range(100, 0, -5))
