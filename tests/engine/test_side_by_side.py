"""A plan on several devices of one machine: each measures its own groups, at the same time as the others."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import group_runner
from attnbench.engine.group import Group
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.plan import Plan
from attnbench.engine.runner import Ending, PlanRunner, Runner, SilentObserver
from attnbench.engine.scheduler import Slot
from attnbench.engine.side_by_side import HERE, SideBySideRunner, by_device, local_runner, slots_of
from attnbench.errors import StoreError
from attnbench.machine import resources
from attnbench.records.arm import Arm
from attnbench.records.result import Key, Result
from tests.engine.test_scripted_run import PROCEDURE, RecordedWorker, Scripted, own_cache

GPUS = ("cuda:0", "cuda:1")
__all__ = ["own_cache"]  # a fixture for every test here


def plan(cases: int = 4, devices: Sequence[str] = GPUS) -> Plan:
    """Groups with an arm on each device."""
    arms = tuple(Arm(backend=name, device=device) for device in devices for name in ("naive", "sdpa:math"))
    groups = [
        Group(id=f"g{number}", problem=Problem(seq_q=64 + number), mode=Mode.FWD, arms=arms) for number in range(cases)
    ]
    return Plan(groups=tuple(groups), arms=arms)


def slots() -> list[Slot]:
    """A slot for each GPU, with one core of this machine."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    return [Slot(HERE, device, device, (core,)) for device, core in zip(GPUS, cores, strict=False)]


class ScriptedGpus(Scripted):
    """Scripted processes of both threads: who opened which arms with which cores."""

    def __init__(self) -> None:
        super().__init__()
        self.cores: dict[str, set[int]] = {}
        self.verified: dict[str, list[bool]] = {device: [] for device in GPUS}
        self.both: threading.Barrier | None = None

    def open(self, arms: Sequence[Arm], _deadline: float, *_: object) -> None:
        (device,) = {arm.device for arm in arms}
        self.cores[device] = os.sched_getaffinity(0)
        if self.both:
            self.both.wait(300)

    def __getitem__(self, arm: Arm) -> RecordedWorker:
        return RecordedWorker(self.verified[arm.device], [], [])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedGpus:
    processes = ScriptedGpus()
    for name in ("Workers", "Oracle"):
        monkeypatch.setattr(group_runner, name, processes)
    return processes


def runner(results: list[Result], done: frozenset[Key] = frozenset(), **settings: object) -> SideBySideRunner:
    chosen = msgspec.structs.replace(RunSettings(procedures={"cuda": PROCEDURE}), **settings)
    return SideBySideRunner(slots(), plan(), chosen, results.extend, SilentObserver(), done)


def keys(results: Sequence[Result]) -> Counter[Key]:
    return Counter(result.key for result in results)


def test_every_case_is_measured_once_as_one_after_the_other(scripted: ScriptedGpus) -> None:
    results: list[Result] = []
    assert runner(results, restarts=2).run() == Ending()
    one_by_one: list[Result] = []
    settings = RunSettings(procedures={"cuda": PROCEDURE}, restarts=2)
    for device in GPUS:
        Runner(plan(devices=(device,)), settings, one_by_one.extend, SilentObserver()).run()
    assert keys(results) == keys(one_by_one)
    assert set(keys(results).values()) == {1}
    assert {(result.group, result.arm.device) for result in results} == {
        (f"g{number}-{device}", device) for number in range(4) for device in GPUS
    }


def test_both_devices_measure_at_the_same_time_each_with_cores_of_its_own(scripted: ScriptedGpus) -> None:
    scripted.both = threading.Barrier(2)  # broken, unless both threads open a group at once
    results: list[Result] = []
    before = os.sched_getaffinity(0)
    runner(results).run()
    assert len(results) == 16
    assert scripted.cores == {slot.name: set(slot.cores) for slot in slots()}
    assert os.sched_getaffinity(0) == before


def test_a_plan_in_order_is_measured_in_its_order_on_each_device(scripted: ScriptedGpus) -> None:
    for in_order in (True, False):
        results: list[Result] = []
        runner(results, in_order=in_order).run()
        for device in GPUS:
            seqs = [result.case.problem.seq_q for result in results if result.arm.device == device]
            assert (seqs == sorted(seqs)) is in_order  # else the most expensive group is first


def test_what_is_stored_is_not_measured_again(scripted: ScriptedGpus) -> None:
    first: list[Result] = []
    runner(first).run()
    done = frozenset(result.key for result in first[:5])
    rest: list[Result] = []
    runner(rest, done).run()
    assert keys(rest) == keys(first[5:])


def test_an_error_of_the_store_ends_all_threads(scripted: ScriptedGpus) -> None:
    def full(_: Sequence[Result]) -> None:
        raise StoreError("no space left")

    stopped = runner([])
    stopped._append = full
    with pytest.raises(StoreError, match="no space left"):
        stopped.run()
    assert not [thread for thread in threading.enumerate() if thread.name in GPUS]


def test_an_error_of_a_thread_is_raised(scripted: ScriptedGpus) -> None:
    scripted.both = threading.Barrier(2)
    scripted.both.abort()
    with pytest.raises(threading.BrokenBarrierError):
        runner([]).run()
    assert not [thread for thread in threading.enumerate() if thread.name in GPUS]


def test_an_interruption_ends_after_the_groups_that_are_measured(scripted: ScriptedGpus) -> None:
    results: list[Result] = []
    interrupted = runner(results)

    def stop(stored: Sequence[Result]) -> None:
        results.extend(stored)
        interrupted.stop_requested = True

    interrupted._append = stop
    assert interrupted.run() == Ending(interrupted=True)
    assert 0 < len(results) < 16


def test_core_sets_that_share_no_core_have_a_slot_each() -> None:
    both = slots_of(plan(devices=("cpu:threads=1:cores=0", "cpu:threads=2:cores=2-3")), range(5))
    assert [(slot.name, slot.cores) for slot in both] == [
        ("cpu:threads=1:cores=0", (0,)), ("cpu:threads=2:cores=2-3", (2, 3)),
    ]  # fmt: skip
    assert slots_of(plan(devices=("cpu:threads=1:cores=0", "cpu:threads=2:cores=0-1")), range(5)) == []
    assert slots_of(plan(devices=("cpu:threads=1:cores=0", "cpu:threads=1")), range(5)) == []
    assert slots_of(plan(devices=("cpu:threads=1:cores=0", "cuda:0")), range(5)) == []


CORE_SETS = ("cpu:threads=1:cores=0", "cpu:threads=1:cores=1")


class ScriptedCores(Scripted):
    """Scripted processes whose blocks take these times in turn: alone, beside the others, beside the others, alone."""

    def __init__(self, *times: float) -> None:
        super().__init__()
        self.times = times

    def __getitem__(self, arm: Arm) -> RecordedWorker:
        worker = super().__getitem__(arm)
        worker._times = itertools.cycle(self.times)
        return worker


def chosen(
    monkeypatch: pytest.MonkeyPatch, beside: float, cases: int = 40, **fields: object
) -> tuple[PlanRunner, list[str]]:
    """The runner of a plan on two core sets, whose calls take `beside` times as long beside each other; and notes."""
    for name in ("Workers", "Oracle"):
        monkeypatch.setattr(group_runner, name, ScriptedCores(1.0, beside, beside, 1.0))
    notes: list[str] = []
    watcher = SilentObserver()
    monkeypatch.setattr(watcher, "note", notes.append)
    settings = RunSettings(procedures={"cpu": PROCEDURE}, **fields)
    return local_runner(plan(cases, CORE_SETS), settings, list[Result]().extend, watcher), notes


def test_core_sets_run_side_by_side_where_equal_calls_take_as_long_beside_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side_by_side, (note,) = chosen(monkeypatch, 1.004)
    assert type(side_by_side) is SideBySideRunner
    assert note.startswith(
        "core sets run side by side; times beside the others over those alone: cpu:threads=1:cores=0"
    )
    assert "+0.4 % (+0.4 % to +0.4 %, noise floor 3.0 %)" in note


@pytest.mark.parametrize("beside", [1.2, 0.8])
def test_core_sets_that_disturb_each_other_take_turns_and_a_note_says_by_how_much(
    monkeypatch: pytest.MonkeyPatch, beside: float
) -> None:
    in_turn, (note,) = chosen(monkeypatch, beside)
    assert type(in_turn) is Runner
    assert note.startswith("core sets take turns: they may disturb each other; ")
    assert f"cpu:threads=1:cores=1 {100 * (beside - 1):+.1f} %" in note


def test_core_sets_take_turns_in_a_short_run_and_without_memory_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn, notes = chosen(monkeypatch, 1.0, cases=2)
    assert type(in_turn) is Runner
    assert notes == ["core sets take turns: side by side the run would hardly be shorter"]
    in_turn, notes = chosen(monkeypatch, 1.0, memory_bytes=1024**3)
    assert type(in_turn) is Runner
    assert "core sets take turns: side by side they need " in notes[0]
    assert "--mem-limit leaves 1.00 GiB" in notes[0]


def test_the_check_counts_against_the_budget_and_a_verification_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    limited, _ = chosen(monkeypatch, 1.0, budget_s=100.0)
    assert limited.settings.budget_s is not None
    assert 0 < limited.settings.budget_s < 100
    untimed, notes = chosen(monkeypatch, 1.2, verify_only=True)
    assert (type(untimed), notes) == (SideBySideRunner, [])


def test_slots_are_gpus_with_as_many_cores_each_and_none_where_devices_would_disturb_each_other() -> None:
    both = slots_of(plan(), range(5))
    assert [(slot.name, slot.cores) for slot in both] == [("cuda:0", (0, 1)), ("cuda:1", (2, 3))]
    assert slots_of(plan(), range(3)) == []
    assert slots_of(plan(devices=("cuda:0",)), range(8)) == []
    assert slots_of(plan(devices=("cpu:threads=1", "cpu:threads=2")), range(8)) == []
    assert slots_of(plan(devices=("cuda:0", "cpu:threads=1")), range(8)) == []


def test_a_group_of_several_devices_becomes_one_for_each() -> None:
    group = plan(1).groups[0]
    borrowed = Arm(backend="sdpa:flash", device="cuda:1")
    parts = list(by_device(msgspec.structs.replace(group, borrowed=(borrowed,))))
    assert [(part.id, {arm.device for arm in part.arms}, part.borrowed) for part in parts] == [
        ("g0-cuda:0", {"cuda:0"}, ()),
        ("g0-cuda:1", {"cuda:1"}, (borrowed,)),
    ]


def test_gpus_with_enough_cores_run_side_by_side_and_all_else_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunSettings(procedures={"cuda": PROCEDURE})
    for cores, devices, kind in ((4, GPUS, SideBySideRunner), (3, GPUS, Runner), (4, ("cpu:threads=1",), Runner)):
        monkeypatch.setattr(resources, "available_cores", lambda cores=cores: tuple(range(cores)))
        assert type(local_runner(plan(devices=devices), settings, list[Result]().extend, SilentObserver())) is kind
