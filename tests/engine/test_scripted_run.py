"""A run over scripted workers: what is verified in brief, what the budget leaves out, and the time that is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from attnbench.analysis.metrics import METRICS
from attnbench.analysis.restarts import Restarts
from attnbench.attention import inputs
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import group_runner, oracle, sweep
from attnbench.engine.arm_session import ArmSession
from attnbench.engine.forecast import ARM_OVERHEAD_S, ORACLE_MAX_S, Forecast
from attnbench.engine.group_runner import GroupRunner, RunSettings
from attnbench.engine.oracle import ExpectedFiles, Oracle
from attnbench.engine.plan import Plan
from attnbench.engine.request import Request
from attnbench.engine.runner import Ending, Runner
from attnbench.engine.worker_process import WorkerFailedError
from attnbench.records.arm import Arm
from attnbench.records.ceilings import Rate
from attnbench.records.result import Cause, Key, Procedure, Result, Status
from attnbench.worker import protocol
from tests.engine.test_expected_cache import stored
from tests.engine.test_plan import planned
from tests.engine.test_rounds import STEADY, ScriptedWorker, clock
from tests.samples import ceilings

__all__ = ["clock"]  # a fixture for every test here
PROCEDURE = Procedure(min_rounds=3, max_rounds=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class RecordedWorker(ScriptedWorker):
    """A scripted worker that records the verifications, and the times that it is told."""

    opened = protocol.WorkerOpened(checks_new_inputs=True)

    def __init__(self, verified: list[bool], known_s: list[float], prepared: list[str]) -> None:
        super().__init__(STEADY)
        self._verified, self._known_s, self._prepared = verified, known_s, prepared

    def ask(self, message: object, *rest: object) -> Any:
        match message:
            case protocol.PrepareCase():
                self._prepared.append(message.case.backend)
                planned = {"plan": 0.5} if message.case.problem.requests else {}
                return protocol.CasePrepared(seconds=planned, facts={})
            case protocol.VerifyCase():
                self._verified.append(message.brief)
                return protocol.CaseVerified(ok=True, reason="", errors={})
            case protocol.CheckNewInputs():
                return protocol.CaseVerified(ok=True, reason="", errors={})
            case protocol.CheckOutput():
                assert message.brief == self._verified[-1]
                return protocol.CaseVerified(ok=True, reason="", errors={})
            case protocol.ReleaseCase():
                return protocol.CaseReleased()
            case protocol.SettleCase():
                self._known_s.append(message.call_s)
        return super().ask(message, *rest)


class Scripted:
    """Stands for the processes of a run: its workers and its oracle."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.prepared: list[str] = []
        self.brief: list[bool] = []  # of each verification
        self.known_s: list[float] = []  # that each settling was told
        self.environments: dict[str, object] = {}
        self.failures: dict[str, Exception] = {}
        self.gradients = False

    def __call__(self, *_: object) -> Scripted:
        return self

    def open(self, arms: Sequence[Arm], _deadline: float, *_: object) -> None:
        self.opened += [arm.name for arm in arms]

    def __getitem__(self, arm: Arm) -> RecordedWorker:
        return RecordedWorker(self.brief, self.known_s, self.prepared)

    def expect(self, *_: object) -> tuple[ExpectedFiles, dict[str, ExpectedFiles]]:
        files = ExpectedFiles(Path("expected"), 1.0)
        return files, {"peaked": files}

    def expect_new(self, *_: object) -> ExpectedFiles:
        return ExpectedFiles(Path("expected"), 1.0)

    def lacking(self, _arms: Iterable[Arm]) -> list[Arm]:
        return []

    def start(self, *_: object) -> None:
        """No process."""

    terminate = terminate_all = start


class Recorded:
    """An observer that keeps the time that was left after each result, and the changes of their number."""

    def __init__(self) -> None:
        self.left_s: list[float] = []
        self.changes: list[tuple[int, str]] = []

    def phase(self, text: str) -> None:
        """Ignore the phase."""

    def more(self, count: int, why: str = "") -> None:
        self.changes.append((count, why))

    def note(self, text: str) -> None:
        """Ignore the note."""

    def result(self, _: Result, remaining_s: float) -> None:
        self.left_s.append(remaining_s)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    processes = Scripted()
    for name in ("Workers", "Oracle"):
        monkeypatch.setattr(group_runner, name, processes)
    return processes


def measured(
    plan: Plan, restarts: int = 1, budget_s: float | None = None, done: frozenset[Key] = frozenset()
) -> tuple[list[Result], list[float]]:
    """The results of a run, and the seconds that were left after each."""
    results: list[Result] = []
    observer = Recorded()
    settings = RunSettings(procedures={"cpu": PROCEDURE}, restarts=restarts, budget_s=budget_s)
    Runner(plan, settings, results.extend, observer, done).run()
    return results, observer.left_s


def test_a_case_is_verified_in_full_once_on_a_machine_and_in_brief_after_that(scripted: Scripted) -> None:
    plan = planned(Problem(seq_q=64), names=("naive",))
    (first, _), _ = measured(plan, restarts=2)
    assert scripted.brief == [False, True]
    assert "verified_earlier" not in first.facts
    (again,), _ = measured(plan)
    assert scripted.brief == [False, True, True]
    assert again.facts["verified_earlier"]
    measured(planned(Problem(seq_q=65), names=("naive",)))
    assert scripted.brief[-1] is False


@pytest.mark.parametrize("whole_restarts", [False, True])
def test_each_arm_is_first_to_start_and_to_prepare_in_as_many_restarts(
    scripted: Scripted, whole_restarts: bool
) -> None:
    names = ("naive", "sdpa:math", "sdpa:flash")
    results: list[Result] = []
    settings = RunSettings(procedures={"cpu": PROCEDURE}, restarts=3, whole_restarts=whole_restarts)
    Runner(planned(Problem(seq_q=64), names=names), settings, results.extend, Recorded()).run()
    starts = scripted.opened[:: len(names)]
    assert starts[:: 1 + whole_restarts] == list(names)  # whole restarts open all workers, then those of each group
    assert scripted.prepared[:: len(names)] == list(names)
    assert [result.arm.name for result in results] == list(names) * 3  # stored in the order of the plan


@pytest.mark.usefixtures("scripted")
def test_memory_is_measured_in_the_first_two_restarts() -> None:
    results, _ = measured(planned(Problem(seq_q=64), names=("naive", "sdpa:math")), restarts=4)
    measured_in = {name: {each.restart for each in results if name in each.samples} for name in ("peak_memory", "time")}
    assert measured_in == {"peak_memory": {0, 1}, "time": {0, 1, 2, 3}}
    assert METRICS["peak_bytes"].compute(Restarts([each for each in results if each.case.backend == "naive"])) == 1


@pytest.mark.usefixtures("scripted")
def test_a_rate_above_a_ceiling_is_checked_on_new_inputs_once_and_again_until_it_is_right() -> None:
    plan = planned(Problem(seq_q=64), names=("naive",))
    low = {plan.arms[0].device: ceilings(matmul={"fp32": Rate(burst=1.0, sustained=1.0, size=8)})}
    results: list[Result] = []
    settings = RunSettings(procedures={"cpu": PROCEDURE}, restarts=3, ceilings=low)
    runner = Runner(plan, settings, results.extend, Recorded())
    runner.run()
    assert [result.facts.get("new_inputs") for result in results] == ["right", None, None]
    assert runner.right_on_new_inputs == {f"{results[0].case.id}@{results[0].arm.id}"}
    right = frozenset(runner.right_on_new_inputs)
    Runner(plan, replace(settings, right_on_new_inputs=right), results.extend, Recorded()).run()
    assert [result.facts.get("new_inputs") for result in results[3:]] == [None] * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordedWorker, "opened", protocol.WorkerOpened())  # of an older version
        Runner(plan, settings, results.extend, Recorded()).run()
    assert [result.facts.get("new_inputs") for result in results[6:]] == ["not checked on new inputs"] * 3


def test_settling_is_told_the_time_of_a_call_in_the_restart_before(scripted: Scripted) -> None:
    plan = planned(Problem(seq_q=64), names=("naive", "sdpa:math"))
    measured(plan, restarts=2)
    assert scripted.known_s == [0.0, 0.0, 1e-3, 1e-3]
    settings = RunSettings(
        procedures={"cpu": PROCEDURE}, call_s={f"{plan.groups[0].case(plan.arms[0]).id}@{plan.arms[0].id}": 0.5}
    )
    runner = Runner(plan, settings, lambda _: None, Recorded())
    runner.run()
    assert scripted.known_s[-2:] == [0.5, 0.0]
    assert set(runner.call_s.values()) == {1e-3}


@pytest.mark.parametrize("mode", Mode)
def test_workers_of_a_gate_are_told_whether_cases_need_gradients(scripted: Scripted, mode: Mode) -> None:
    plan = planned(Problem(seq_q=64), names=("naive",), mode=mode)
    settings = RunSettings(procedures={"cpu": PROCEDURE}, whole_restarts=True)
    Runner(plan, settings, lambda _: None, Recorded()).run()
    assert scripted.gradients is mode.needs_grad


def test_every_arm_takes_every_position_equally_often_in_every_restart(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference too: it is timed in rounds like everyone. Each restart has results and workers of its own."""
    ended: list[int] = []
    monkeypatch.setattr(scripted, "terminate_all", lambda *_: ended.append(len(results)))
    request = Request(axes={"seq": "64", "mask": "none"}, backend="naive,sdpa:flash,sdpa:flash", device="cpu:threads=1")
    settings = RunSettings(procedures={"cpu": Procedure(min_rounds=6, max_rounds=6)}, restarts=2)
    results: list[Result] = []
    Runner(sweep.prepare(request).plan, settings, results.extend, Recorded()).run()
    assert ended[:2] == [3, 6]
    arms = sorted((result.arm.backend, result.arm.copy, result.restart) for result in results)
    names = ("naive", 1), ("sdpa:flash", 1), ("sdpa:flash", 2)
    assert arms == [(*name, restart) for name in names for restart in (0, 1)]
    for result in results:
        samples = (result.samples[name] for name in ("warmup_time", "time") if name in result.samples)
        positions = [block.position for sample in samples for block in sample.blocks]
        assert sorted(positions[:6]) == [0, 0, 1, 1, 2, 2]


def test_a_gate_starts_the_workers_of_a_restart_before_it_times_anything(scripted: Scripted) -> None:
    plan = planned(Problem(seq_q=64), Problem(seq_q=65), names=("naive", "sdpa:math"))
    settings = RunSettings(procedures={"cpu": PROCEDURE}, whole_restarts=True)
    counts: list[int] = []
    Runner(plan, settings, lambda _: counts.append(len(scripted.opened)), Recorded()).run()
    assert scripted.opened[:2] == ["naive", "sdpa:math"]
    assert counts == [4, 6]  # two at first, and those of each group, which run then


@pytest.mark.usefixtures("scripted")
def test_a_case_of_a_gate_whose_head_is_wrong_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first verification decides it; every restart would say the same."""
    verify = ArmSession.verify

    def verify_head(session: ArmSession, expected: ExpectedFiles, stressing: dict[str, ExpectedFiles]) -> None:
        if session.arm.copy == 2 and session.case.problem.seq_q == 64:
            raise WorkerFailedError(Status.INCORRECT, "out: error 0.3")
        verify(session, expected, stressing)

    monkeypatch.setattr(ArmSession, "verify", verify_head)
    plan = planned(Problem(seq_q=64), Problem(seq_q=65), names=("naive", "naive"))
    settings = RunSettings(procedures={"cpu": PROCEDURE}, restarts=4, whole_restarts=True, deciding_copy=2)
    results, observer = list[Result](), Recorded()
    assert Runner(plan, settings, results.extend, observer).run() == Ending()
    restarts = {seq: [each.restart for each in results if each.case.problem.seq_q == seq] for seq in (64, 65)}
    assert restarts == {64: [0, 0], 65: [0, 0, 1, 1, 2, 2, 3, 3]}
    ((count, why),) = observer.changes
    assert count == -6
    assert why == "b1 h8 q64 kv64 d64 none fp32 fwd naive is incorrect, which no later restart changes"
    results.clear()
    Runner(plan, replace(settings, deciding_copy=0), results.extend, observer).run()
    assert len(results) == 16


@pytest.mark.usefixtures("scripted")
def test_a_batch_that_is_planned_has_the_number_of_layers_that_share_its_plan() -> None:
    batch = Problem(batch=2, seq_q=1, seq_kv=64, requests="2q1s64")
    results, _ = measured(planned(batch, Problem(seq_q=64), names=("naive",), layers=32))
    assert {result.case.problem.requests: result.facts.get("layers") for result in results} == {"2q1s64": 32, "": None}


def test_no_worker_starts_for_what_the_budget_is_too_short_for(scripted: Scripted) -> None:
    results, _ = measured(planned(Problem(seq_q=64), Problem(seq_q=128), names=("naive",)), budget_s=0.01)
    assert {(result.status, result.cause) for result in results} == {(Status.SKIPPED, Cause.BUDGET)}
    assert scripted.opened == []


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(("in_order", "lengths"), [(True, {64}), (False, {64, 128, 65})])
def test_a_plan_in_order_ends_at_the_first_group_that_the_budget_is_too_short_for(
    monkeypatch: pytest.MonkeyPatch, in_order: bool, lengths: set[int]
) -> None:
    """The last group would fit, but groups that are short enough are no sample of a plan."""
    monkeypatch.setattr(
        GroupRunner, "needed_s", lambda _, groups: [1e6 * (group.problem.seq_q == 128) for group in groups]
    )
    plan = planned(*(Problem(seq_q=seq) for seq in (64, 65, 128)), names=("naive",))
    groups = {group.problem.seq_q: group for group in plan.groups}
    plan = msgspec.structs.replace(plan, groups=tuple(groups[seq] for seq in (64, 128, 65)))
    results: list[Result] = []
    settings = RunSettings(procedures={"cpu": PROCEDURE}, budget_s=600.0, in_order=in_order)
    assert Runner(plan, settings, results.extend, Recorded()).run() == Ending()
    assert {result.case.problem.seq_q for result in results} == lengths
    assert {result.case.problem.seq_q for result in results if result.status is Status.OK} == lengths - {128}


@pytest.mark.usefixtures("scripted")
def test_the_time_left_falls_to_zero_and_is_never_above_the_budget() -> None:
    plan = planned(*(Problem(seq_q=seq) for seq in (64, 128, 256)), names=("naive",))
    _, left_s = measured(plan, restarts=2)
    assert left_s == sorted(left_s, reverse=True)
    assert left_s[0] > left_s[-1] == 0
    _, left_s = measured(plan, restarts=2, budget_s=3.0)
    assert max(left_s) <= 3.0


@pytest.mark.usefixtures("scripted")
def test_the_time_left_of_a_continued_run_is_that_of_what_it_lacks() -> None:
    plan = planned(*(Problem(seq_q=seq) for seq in (64, 128, 4096)), names=("naive",))
    done = frozenset(
        (group.case(arm).id, arm.id, restart)
        for group in plan.groups
        for arm in group.arms
        for restart in range(2)
        if group.problem.seq_q > 64
    )
    results, left_s = measured(plan, restarts=2, done=done)
    assert [result.case.problem.seq_q for result in results] == [64, 64]
    assert left_s[1] == 0
    assert left_s[0] < plan.groups[-1].seconds


def test_expected_values_of_an_earlier_run_are_read_and_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(oracle, "Worker", refuse)
    problem, mode = Problem(seq_q=64), planned(Problem(seq_q=64), names=("naive",)).groups[0].mode
    entries = []
    stressing = dict.fromkeys(inputs.stressing(problem, mode), oracle.STRESSING_BUDGET_S)
    for distribution, budget_s in {"normal": oracle.BUDGET_S, **stressing}.items():
        entry = oracle.expected_cache.entry(problem, mode, PROCEDURE.seed, distribution, budget_s)
        assert entry
        entries.append(stored(entry))
    files, stressing_files = Oracle(tmp_path, 60.0, {}).expect(problem, mode, PROCEDURE)
    assert [each.directory for each in (files, *stressing_files.values())] == entries
    with pytest.raises(AssertionError, match="a process was started"):
        Oracle(tmp_path, 60.0, {}).expect(Problem(seq_q=65), mode, PROCEDURE)


@pytest.mark.usefixtures("scripted")
def test_groups_are_corrected_with_their_measured_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a problem that takes long by estimate are scripted at 1 ms, and are known when the group is learnt."""
    predicted_s: list[float] = []
    monkeypatch.setattr(
        Forecast, "learn_group", lambda forecast, group, taken: predicted_s.append(forecast.group_s(group))
    )
    plan = planned(Problem(seq_q=4096), names=("naive",))
    measured(plan)
    assert predicted_s == [pytest.approx(ARM_OVERHEAD_S + ORACLE_MAX_S, rel=0.02)]
    assert plan.seconds > 2 * predicted_s[0]


def test_the_oracle_starts_ahead_only_for_values_that_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(oracle, "Worker", lambda *_, **__: started.append(0))
    known, unknown, mode = Problem(seq_q=64), Problem(seq_q=65), Mode.FWD
    entry = oracle.expected_cache.entry(known, mode, PROCEDURE.seed, "normal", oracle.BUDGET_S)
    assert entry
    stored(entry)
    of_run = Oracle(tmp_path, 60.0, {})
    of_run.start_for(known, mode, PROCEDURE)
    assert not started
    of_run.start_for(unknown, mode, PROCEDURE)
    assert len(started) == 1
