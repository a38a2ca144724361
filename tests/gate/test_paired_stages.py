"""Restarts and further seeds of a paired gate, with times that are set in place of workers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from attnbench.analysis import noise_floor
from attnbench.cli.gate import _headline, _sufficient_budget
from attnbench.cli.running import PreparedGate
from attnbench.engine import sweep
from attnbench.engine.group import Group
from attnbench.engine.plan import Plan
from attnbench.engine.runner import Runner, SilentObserver
from attnbench.engine.sweep import Request, Sweep
from attnbench.errors import UsageError
from attnbench.gate import evidence, judgement, known_noise, paired, record, significance
from attnbench.gate.paired import GateRun
from attnbench.gate.trees import Revision
from attnbench.machine import hardware
from attnbench.records import run_directory
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Cause, Outcome, Result, Status
from tests.conftest import Command
from tests.gate.test_verdicts import gated, lines
from tests.samples import ceilings
from tests.simulated_runner import SimulatedRunner

BASE, HEAD = Revision(name="HEAD~1", path=("/old",)), Revision(name="the working tree", path=("/new",))
SLOW, EQUAL = 64, 128  # the lengths of two cases; head is slower in the first
DEVICE = "cpu:threads=1"
ONE_CASE = ("--seq", "64", "--mask", "none", "-b", "naive", "--device", DEVICE)


class SlowerHead(SimulatedRunner):
    """In the first case head takes 5 % longer, with twice the error; errors depend on the seed."""

    def time_s(self, case: Case, arm: Arm) -> float:
        return super().time_s(case, arm) * (1.05 if _is_slow(case, arm) else 1.0)

    def rms_error(self, case: Case, arm: Arm) -> float:
        seed = self.settings.procedures["cpu"].seed
        return super().rms_error(case, arm) * (1 + seed) * (2 if _is_slow(case, arm) else 1)


def _is_slow(case: Case, arm: Arm) -> bool:
    return arm.copy == evidence.HEAD and case.problem.seq_q == SLOW


class Counted(SilentObserver):
    """An observer that adds up the results that are announced, and those that end."""

    def __init__(self) -> None:
        self.announced = self.ended = 0
        self.reasons: list[str] = []
        self.notes: list[str] = []

    def result(self, result: Result, remaining_s: float) -> None:
        self.ended += 1

    def more(self, count: int, why: str = "") -> None:
        self.announced += count
        self.reasons.append(why)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Cut(SimulatedRunner):
    """The budget ends before anything is measured."""

    def _result(self, group: Group, arm: Arm, restart: int) -> Result:
        cut = super()._result(group, arm, restart)
        return msgspec.structs.replace(cut, status=Status.SKIPPED, reason="budget", cause=Cause.BUDGET, samples={})


class CutLater(SlowerHead, Cut):
    """The budget ends after the first look."""

    def _result(self, group: Group, arm: Arm, restart: int) -> Result:
        return (SlowerHead if restart < 4 else Cut)._result(self, group, arm, restart)


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sweep:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(paired, "Runner", SlowerHead)
    axes = {"seq": f"{SLOW},{EQUAL}", "mask": "none"}
    return sweep.prepare(paired.request(Request(axes=axes, backend="naive", device=DEVICE, rounds="5")))


Measure = Callable[..., GateRun]
Announced = Callable[[Sweep], Plan]


@pytest.fixture
def measured(ready: Sweep, tmp_path: Path) -> Measure:
    def measured(head: Revision = HEAD, **options: object) -> GateRun:
        options = {"observer": SilentObserver(), **options}
        return paired.measure(ready, BASE, head, directory=tmp_path / "gate", **options)

    return measured


def restarts(ended: GateRun) -> dict[int, set[int]]:
    """The restarts of each case, by its length."""
    return {
        seq: {result.restart for result in ended.run.results if result.case.problem.seq_q == seq}
        for seq in (SLOW, EQUAL)
    }


def outcomes(ended: GateRun) -> dict[tuple[str, str], Outcome]:
    return {(verdict.metric, verdict.label.split()[2]): verdict.outcome for verdict in ended.judgement.verdicts}


def test_undecided_cases_have_more_restarts_and_errors_that_grew_further_seeds(measured: Measure) -> None:
    observer = Counted()
    ended = measured(observer=observer)
    # Four looks: after 4, 6 and 9 restarts only a larger change is decided.
    assert restarts(ended) == {SLOW: set(range(13)), EQUAL: set(range(4))}
    # Restarts, arms: the first case has an A/A control. The first look, the others, then the further seeds.
    assert observer.announced == observer.ended == 4 * (3 + 2) + (13 - 4) * 3 + 4 * 3
    slow = f"b1 h8 q{SLOW} kv{SLOW} d64 none fp32 fwd naive"
    assert observer.reasons == [
        "",
        f"2 more restarts of {slow}, undecided after 4",
        f"3 more restarts of {slow}, undecided after 6",
        f"4 more restarts of {slow}, undecided after 9",
        f"4 further seeds of {slow}, where the error of head is larger than that of base",
    ]
    assert outcomes(ended) == {
        ("time_s", f"q{SLOW}"): Outcome.REGRESSED, ("rms_err", f"q{SLOW}"): Outcome.REGRESSED,
        ("peak_bytes", f"q{SLOW}"): Outcome.SAME, ("time_s", f"q{EQUAL}"): Outcome.SAME,
        ("rms_err", f"q{EQUAL}"): Outcome.SAME, ("peak_bytes", f"q{EQUAL}"): Outcome.SAME,
    }  # fmt: skip
    (errors,) = ended.run.manifest.gate["seeds"].values()
    assert errors == [pytest.approx([seed * 1e-7, seed * 2e-7]) for seed in (2, 3, 4, 5)]
    assert (ended.interrupted, ended.note) == (False, "")


def test_a_stage_is_told_what_earlier_ones_learnt(measured: Measure) -> None:
    told: list[dict[str, float]] = []
    right: list[frozenset[str]] = []

    def run(runner: Runner) -> None:
        told.append(dict(runner.settings.call_s))
        runner.call_s["case@arm"] = 1e-3 * len(told)
        right.append(runner.settings.right_on_new_inputs)
        runner.right_on_new_inputs.add(f"case@{len(right)}")

    measured(watch=run)
    assert told[:3] == [{}, {"case@arm": 1e-3}, {"case@arm": 2e-3}]
    assert right[:3] == [frozenset(), {"case@1"}, {"case@1", "case@2"}]


def test_what_is_stored_names_sides_and_no_folders(measured: Measure) -> None:
    manifest = measured().run.manifest
    assert {(arm.copy, arm.path) for arm in manifest.arms} == {(1, ("base",)), (2, ("head",)), (3, ("base",))}
    assert set(manifest.environments) == {arm.id for arm in manifest.arms}
    assert (manifest.gate["base"]["name"], manifest.gate["base"]["path"]) == ("HEAD~1", [])
    assert manifest.seconds["rounds"] == 4.0  # looks


def test_no_restart_follows_the_last_look(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "LOOKS", {4: 0.5, 6: 0.5})
    assert restarts(measured()) == {SLOW: set(range(6)), EQUAL: set(range(4))}


def test_a_seed_without_the_error_of_one_side_is_left_out(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    of_seed = SlowerHead._result

    def failing(runner: SlowerHead, group: Group, arm: Arm, restart: int) -> Result:
        measured = of_seed(runner, group, arm, restart)
        return msgspec.structs.replace(measured, facts={}) if runner.settings.procedures["cpu"].seed == 3 else measured

    monkeypatch.setattr(SlowerHead, "_result", failing)
    (errors,) = measured().run.manifest.gate["seeds"].values()
    assert errors == [pytest.approx([seed * 1e-7, seed * 2e-7]) for seed in (2, 3, 5)]


def test_no_further_look_is_taken_when_the_budget_is_spent(measured: Measure) -> None:
    observer = Counted()
    assert restarts(measured(budget_s=0.0, observer=observer)) == {SLOW: set(range(4)), EQUAL: set(range(4))}
    slow = f"b1 h8 q{SLOW} kv{SLOW} d64 none fp32 fwd naive"
    assert observer.notes == [f"the budget ended before 2 more restarts of {slow}"]


def test_no_further_restart_is_announced_once_the_budget_cut_all_of_a_look(
    measured: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "Runner", CutLater)
    observer = Counted()
    ended = measured(observer=observer)
    slow = f"b1 h8 q{SLOW} kv{SLOW} d64 none fp32 fwd naive"
    assert observer.reasons[:2] == ["", f"2 more restarts of {slow}, undecided after 4"]
    assert observer.notes == [f"the budget ended before 2 more restarts of {slow}"]
    (reason,) = [each.reason for each in ended.judgement.verdicts if (each.metric, each.label) == ("time_s", slow)]
    assert reason.endswith(" so far, after 4 restarts: 2 more may settle it, in a gate with more time (--budget)")


def test_a_gate_that_measured_nothing_names_a_budget_that_suffices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attnbench_command: Command
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(paired, "Runner", Cut)
    words = ["gate", "--noop", *ONE_CASE, "--budget", "1s", "--inconclusive", "ok"]
    monkeypatch.setattr(sys, "argv", ["attnbench", *words])
    done = attnbench_command(*words)
    assert done.returncode == 6
    assert re.search(r", more than the budget of 1 s: try --budget \d+s$", done.stderr, re.MULTILINE)
    (line,) = re.findall(r"^next: (attnbench gate --noop .*)$", done.stderr, re.MULTILINE)
    assert re.search(r" --inconclusive ok --budget \d*[05]s$", line)
    assert "--budget 1s" not in line
    assert [_sufficient_budget(needed_s, 30.0) for needed_s in (41.0, 4.0)] == ["45s", "60s"]


def test_an_interrupted_gate_says_so_and_verifies_no_further_seeds(measured: Measure) -> None:
    runners: list[Runner] = []

    def stop(runner: Runner) -> None:
        runner.stop_requested = True
        runners.append(runner)

    ended = measured(watch=stop)
    assert (ended.interrupted, len(runners), ended.run.manifest.gate["seeds"]) == (True, 1, {})


def test_a_noise_floor_that_cannot_be_stored_changes_no_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attnbench_command: Command
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(paired, "Runner", SimulatedRunner)
    done = attnbench_command("gate", "--noop", *ONE_CASE)
    assert done.returncode == 0
    assert "naive" in done.stdout
    assert "the noise floor of this machine is not updated: cannot write to" in done.stderr


def test_head_against_itself_shows_the_resolution_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attnbench_command: Command
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(paired, "Runner", SimulatedRunner)
    done = attnbench_command("gate", "--noop", *ONE_CASE)
    assert done.returncode == 0
    assert "A slowdown of 1.5 times its margin" in done.stdout
    run = run_directory.read(run_directory.resolve("last", run_directory.results_root()))
    pairs = noise_floor.load(run.manifest.fingerprint, DEVICE)
    assert len(pairs) == 2  # the A/A control, and head: both are base again
    outcomes = [verdict.outcome for verdict in judgement.judge(run).verdicts if verdict.metric == "time_s"]
    assert outcomes == [Outcome.SAME]


def test_a_gate_without_controls_says_nothing_of_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = gated(*lines())
    known_noise.add(run, record.of(run))
    assert list(tmp_path.iterdir()) == []


def test_a_gate_checks_rates_above_the_ceilings_of_this_machine(
    measured: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {DEVICE: ceilings()}
    monkeypatch.setattr(sweep, "calibrated", lambda *_: known)
    runners: list[Runner] = []
    measured(watch=runners.append)
    first, *others = runners
    assert all(runner.settings.ceilings == known for runner in (first, *others))


@pytest.fixture
def announced(ready: Sweep, tmp_path: Path) -> Announced:
    def announced(swept: Sweep) -> Plan:
        plans: list[Plan] = []
        paired.measure(swept, BASE, HEAD, directory=tmp_path / "gate", observer=SilentObserver(), announce=plans.append)
        (plan,) = plans
        return plan

    return announced


def test_one_restart_gives_base_and_head_of_each_case_and_one_control(ready: Sweep, announced: Announced) -> None:
    assert announced(ready).cases == 2 * 2 + 1
    assert ready.settings.restarts == 4


def test_a_gate_says_first_what_it_compares_and_how_long_it_takes(ready: Sweep, announced: Announced) -> None:
    gate = PreparedGate(ready, BASE, HEAD, paired.EVERY_CASE, paired.HERE, 900.0)
    plan = announced(ready)
    machine, what = _headline(gate, plan).splitlines()
    assert machine.startswith("attnbench ")
    begin = f"gate custom · the working tree against HEAD~1 · 2 cases · {DEVICE} · about "
    assert re.fullmatch(re.escape(begin) + r".* for 4 restarts \(.*\), up to 26 where undecided, within 15 min", what)
    nothing = msgspec.structs.replace(plan, groups=())
    assert _headline(gate, nothing).endswith(f" · 0 cases · {DEVICE} · nothing to measure")


def test_only_cases_of_the_most_frequent_backend_have_a_control(announced: Announced) -> None:
    both = sweep.prepare(Request(axes={"seq": "64", "mask": "none"}, backend="naive,sdpa:math", device=DEVICE))
    assert announced(both).cases == 2 * 2 + 1


def test_cases_are_chosen_by_what_they_are(ready: Sweep) -> None:
    kept = paired.chosen(ready, lambda case, _: case.problem.seq_q == SLOW)
    assert [cell.problem.seq_q for cell, _ in kept.cells] == [SLOW]


def test_one_case_is_chosen_by_label_or_id(ready: Sweep) -> None:
    cell, _ = ready.cells[0]
    case = Case(problem=cell.problem, backend="naive", mode=cell.mode)
    for name in (case.label, case.id[:12]):
        assert [chosen for chosen, _ in paired.only(ready, name).cells] == [cell]
    with pytest.raises(UsageError, match=r"--case 'nothing': no such case; there are .*q64.*; .*q128[^.]*$"):
        paired.only(ready, "nothing")


def test_a_backend_that_is_named_twice_is_refused() -> None:
    twice = sweep.prepare(Request(axes={"seq": "64", "mask": "none"}, backend="naive,naive", device=DEVICE))
    with pytest.raises(UsageError, match="--backend: naive twice: a gate has one base and one head"):
        paired.check(twice)


@pytest.mark.parametrize(("gpus", "device"), [([], "cpu:threads=1"), (["H200"], "cuda:0")])
def test_a_gate_runs_on_the_gpu_or_on_one_thread(monkeypatch: pytest.MonkeyPatch, gpus: list[str], device: str) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    assert paired.on_device(Request()).device == device
    assert paired.on_device(Request(device="cpu")).device == "cpu"


def test_a_wrong_head_is_verified_on_no_further_seeds(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = SimulatedRunner._result

    def wrong(runner: SimulatedRunner, group: Group, arm: Arm, restart: int) -> Result:
        result = simulated(runner, group, arm, restart)
        failed = arm.copy == 2 and group.problem.seq_q == SLOW
        return msgspec.structs.replace(result, status=Status.INCORRECT, reason="out: error 0.3") if failed else result

    monkeypatch.setattr(SimulatedRunner, "_result", wrong)
    observer = Counted()
    assert measured(observer=observer).run.manifest.gate["seeds"] == {}
    assert observer.reasons == [""]
