"""A worker process from outside."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from attnbench.engine import worker_process
from attnbench.engine.group_runner import GroupRunner, RunSettings
from attnbench.engine.worker_process import START_LIMIT_S, Worker, WorkerFailedError, Workers
from attnbench.records.arm import Arm
from attnbench.records.result import Cause, Status
from attnbench.worker import protocol

OPENED = protocol.WorkerOpened()


@pytest.mark.workers
def test_a_killed_worker_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = "import tempfile\nprint(tempfile.mkdtemp())\n\ndef attend(q, k, v, *, causal, scale): ...\n"
    (tmp_path / "kernel.py").write_text(kernel)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    worker = Worker(Arm(backend=f"{tmp_path}/kernel.py:attend", device="cpu:threads=1"), (), 0, tmp_path / "a" / "log")
    try:
        worker.open(timeout_s=600)
    finally:
        worker.terminate()
    assert str(tmp_path / "temporary") in (tmp_path / "a" / "log").read_text()
    assert list((tmp_path / "temporary").iterdir()) == []


class ScriptedChannel:
    """Receives what a worker sends that starts, and records the seconds that it may take."""

    def __init__(self) -> None:
        self.limits: list[float] = []
        self._replies: list[object] = [protocol.WorkerStarted(), OPENED]

    def receive(self, timeout_s: float) -> object:
        self.limits.append(timeout_s)
        return self._replies.pop(0)


def test_the_timeout_does_not_include_the_start_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 130.0)
    worker = Worker.__new__(Worker)
    worker.opened, worker.started, worker.spent = None, 100.0, defaultdict(float)
    channel = ScriptedChannel()
    cast("Any", worker)._channel, cast("Any", worker)._process = channel, None
    assert worker.open(timeout_s=0.5) is OPENED
    assert channel.limits == [START_LIMIT_S - 30.0, 0.5]


PRINTED = (
    "tuning\nCurrent thread 0x00007f (most recent call first):\n",
    '  File "/usr/lib/python3.11/threading.py", line 9 in wait\n  File "/a/kernel.py", li',
    "ne 12 in att",
    'end\n  File "/a/kernel.py", line 7 in call\n',
)


def test_the_place_of_a_hang_is_read_when_its_line_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = cast("Any", Worker.__new__(Worker))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    texts = itertools.accumulate(PRINTED, initial="tuning\n")
    worker._log = SimpleNamespace(text_so_far=lambda: next(texts), end=lambda: "")
    worker._process, worker.terminate = SimpleNamespace(send_signal=lambda _: None), lambda: None
    with pytest.raises(WorkerFailedError) as failure:
        worker._report_hang("prepare", 60.0)
    assert failure.value.reason == "prepare: no answer within 60 s (kernel.py:12 in attend)"


@pytest.mark.parametrize(("deadline", "status"), [(math.inf, Status.TIMEOUT), (7.0, Status.SKIPPED)])
def test_a_request_ends_at_the_timeout_or_at_the_end_of_the_budget(
    deadline: float, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that never comes moves the clock to where waiting for it ends."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def receive(timeout_s: float) -> object:
        now[0] += timeout_s
        raise protocol.NoAnswerError

    worker = cast("Any", Worker.__new__(Worker))
    worker.spent, worker.terminate = defaultdict(float), lambda: None
    worker._channel = SimpleNamespace(send=lambda _: None, receive=receive)
    worker._report_hang = lambda phase, timeout_s: worker.fail(Status.TIMEOUT, f"{phase}: {timeout_s:g} s")
    worker._log = SimpleNamespace(end=lambda: "")
    with pytest.raises(WorkerFailedError) as failure:
        worker.ask(protocol.SettleCase(), 60.0, deadline)
    assert (failure.value.status, failure.value.cause) == (status, Cause.BUDGET if deadline == 7.0 else None)
    assert now == [min(60.0, deadline)]


@pytest.mark.parametrize(("backend", "status"), [("zentorch", Status.UNAVAILABLE), ("my.py:f", Status.CRASHED)])
def test_a_library_that_was_built_for_other_cpus_is_unavailable(backend: str, status: Status) -> None:
    worker = cast("Any", Worker.__new__(Worker))
    worker._backend, worker._kills, worker.kill, worker.terminate = backend, 0, lambda: None, lambda: None
    worker._process = SimpleNamespace(wait=lambda timeout: -signal.SIGILL)
    worker._log = SimpleNamespace(end=lambda: "")
    with pytest.raises(WorkerFailedError) as failure:
        worker._report_death("import")
    assert failure.value.status is status
    assert failure.value.reason.startswith("import: died of SIGILL: it runs an instruction that this CPU lacks")


class RecordedWorker:
    """A worker that starts no process and records when it starts and when it is waited for."""

    events: ClassVar[list[str]]

    changes_backend: ClassVar[bool] = True

    def __init__(self, arm: Arm, *rest: object) -> None:
        self.gradients, self.forks = rest[-2:]
        self._name, self.opened = arm.name, protocol.WorkerOpened(changes_backend=self.changes_backend)
        self.events.append(f"start {arm.name}")

    def open(self, _timeout_s: float, _deadline: float) -> protocol.WorkerOpened:
        self.events.append(f"open {self._name}")
        return self.opened

    def kill(self) -> None:
        self.events.append(f"kill {self._name}")

    def terminate(self) -> None:
        self.events.append(f"end {self._name}")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[RecordedWorker]:
    """Workers without processes, on two cores."""
    RecordedWorker.events = []
    monkeypatch.setattr(worker_process, "Worker", RecordedWorker)
    monkeypatch.setattr(worker_process.resources, "available_cores", lambda: (0, 1))
    monkeypatch.setattr(worker_process.resources, "cores_for", lambda _: (1,))
    return RecordedWorker


def of(*names: str) -> list[Arm]:
    """Arms of backends and numbers of copies: `naive#2`."""
    parts = (name.partition("#") for name in names)
    return [Arm(backend=backend, device="cpu:threads=1", copy=int(copy or 1)) for backend, _, copy in parts]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("ab", ["start a", "start b", "open a", "open b"]),
        ("abc", ["start a", "start b", "open a", "start c", "free", "open b", "open c"]),
        ("a", ["start a", "free", "open a"]),
    ],
)
def test_a_worker_starts_as_soon_as_a_core_is_free(
    recorded: type[RecordedWorker], names: str, expected: list[str]
) -> None:
    workers, arms = Workers(0, 60.0, None, defaultdict(float), lambda _: None), of(*names)
    workers.open(arms, on_free_core=lambda: recorded.events.append("free"))
    assert recorded.events == expected
    workers.open(arms)
    assert recorded.events[len(expected) :] == [f"open {name}" for name in names]
    assert set(workers.environments) == {arm.id for arm in arms}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("abc", ["start a", "start b", "start c", "free", "open a", "open b", "open c"]),
        ("abcd", ["start a", "start b", "open a", "start c", "open b", "start d", "open c", "open d"]),
        (
            "abcde",
            [
                "start a",
                "start b",
                "start c",
                "open a",
                "start d",
                "open b",
                "start e",
                "free",
                "open c",
                "open d",
                "open e",
            ],
        ),
    ],
)
def test_in_a_gate_no_worker_starts_last_on_a_part_of_the_cores(
    recorded: type[RecordedWorker], names: str, expected: list[str]
) -> None:
    workers = Workers(0, 60.0, None, defaultdict(float), lambda _: None, shared=True)
    workers.open(of(*names), on_free_core=lambda: recorded.events.append("free"))
    assert recorded.events == expected


GATE = ("naive", "naive#2", "sdpa:flash", "sdpa:flash#2", "sdpa:flash#3", "kernel.py:f", "kernel.py:f#2")


def test_a_gate_shares_the_workers_of_each_side_among_plain_backends(recorded: type[RecordedWorker]) -> None:
    workers, arms = Workers(0, 60.0, None, defaultdict(float), lambda _: None, shared=True), of(*GATE)
    workers.open(arms)
    started = [event.removeprefix("start ") for event in recorded.events if event.startswith("start")]
    assert started == ["naive", "naive#2", "sdpa:flash#3", "kernel.py:f", "kernel.py:f#2"]
    assert workers[arms[0]] is workers[arms[2]]
    assert len({id(workers[arm]) for arm in arms[1:]}) == 5
    assert set(workers.environments) == {arm.id for arm in arms}
    workers.terminate(arms[2])
    workers.open(arms)
    assert [event for event in recorded.events if event.startswith(("start naive", "end"))][-2:] == [
        "end naive",
        "start naive",
    ]


def test_workers_of_an_older_attnbench_are_not_shared(
    recorded: type[RecordedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "changes_backend", False)
    workers, arms = Workers(0, 60.0, None, defaultdict(float), lambda _: None, shared=True), of(*GATE[:4])
    for _ in range(2):
        workers.open(arms)
        assert len({id(workers[arm]) for arm in arms}) == 4
    assert sum(event.startswith("start") for event in recorded.events) == 4


def test_the_folders_of_an_arm_are_relative_to_the_process_that_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arm = Arm(backend="naive", device="cpu:threads=1", path=("base/kernels", "base"))
    path = worker_process._environment(arm, 1, "temporary")["PYTHONPATH"].split(os.pathsep)
    assert path[:2] == [str(tmp_path / "base" / "kernels"), str(tmp_path / "base")]


def test_all_workers_are_killed_before_one_is_waited_for(recorded: type[RecordedWorker]) -> None:
    workers = Workers(0, 60.0, None, defaultdict(float), lambda _: None)
    workers.open(of(*"ab"))
    workers.terminate_all()
    assert recorded.events[-4:] == ["kill a", "kill b", "end a", "end b"]


def test_a_worker_that_will_need_gradients_is_told_so(recorded: type[RecordedWorker]) -> None:
    workers, (a, b) = Workers(0, 60.0, None, defaultdict(float), lambda _: None), of(*"ab")
    workers.open([a])
    workers.gradients = True
    workers.open([a, b])
    assert [cast("Any", workers[arm]).gradients for arm in (a, b)] == [False, True]


@pytest.mark.parametrize(
    ("settings", "forks"),
    [
        (RunSettings(procedures={}), True),
        (RunSettings(procedures={}, restarts=2), False),
        (RunSettings(procedures={}, whole_restarts=True), False),
    ],
)
def test_workers_of_several_restarts_are_no_forks(
    recorded: type[RecordedWorker], settings: RunSettings, forks: bool
) -> None:
    (arm,) = of("a")
    with GroupRunner(settings, lambda _: None) as groups:
        groups._workers.open([arm])
        assert cast("Any", groups._workers[arm]).forks is forks
    assert recorded.events == ["start a", "open a", "kill a", "end a"]
