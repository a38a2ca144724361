"""One arm's work on one group, and the oracle that knows the right answer: messages to a worker, in their order."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnbench import host, plan, protocol
from attnbench.arm import Arm
from attnbench.attention.problem import Mode, Problem
from attnbench.plan import Group
from attnbench.pool import BuriedError, Worker
from attnbench.result import Block, Procedure, Result, Sample, Status, Timing, sample

BUDGET_S = 2.0  # of computing expected values: beyond it, whole (batch, kv head) groups are drawn by seed
PEAKED_BUDGET_S = 0.2
RETIMED_BLOCKS = 5
KEPT_BYTES = 2 * 1024**3  # of expected values on disk

Expectation = tuple[Path, float]  # the folder of expected values, and the share of query rows that they cover


class Oracle:
    """The process that computes expected values, once a problem; every arm reads them from memory-mapped files."""

    def __init__(self, directory: Path, timeout_s: float, spent: dict[str, float]) -> None:
        self._directory, self._timeout_s, self._spent = directory, timeout_s, spent
        self._worker: Worker | None = None
        self._made: dict[tuple[Problem, Mode, str], Expectation] = {}
        self._count = 0

    def start(self) -> None:
        """Begin to import, so that it is up when it is needed."""
        if self._worker is None:
            self._worker = Worker(None, host.available_cores(), 0, spent=self._spent)

    def both(self, problem: Problem, mode: Mode, procedure: Procedure) -> tuple[Expectation, Expectation]:
        """Expectations for the procedure's own inputs, and for peaked ones."""
        own = self._expect(problem, mode, procedure, procedure.inputs, BUDGET_S)
        return own, self._expect(problem, mode, procedure, "peaked", PEAKED_BUDGET_S)

    def _expect(self, problem: Problem, mode: Mode, procedure: Procedure, inputs: str, budget_s: float) -> Expectation:
        """The folder of the expected values, and the share of rows that they cover."""
        key = (problem, mode if mode is Mode.FWD else Mode.FWD_BWD, inputs)
        if key not in self._made:
            self.start()
            assert self._worker
            self._worker.open(self._timeout_s)
            self._make_room()
            self._count += 1
            path = self._directory / f"{self._count:06d}-{inputs}"
            message = protocol.Expect(
                problem=problem, mode=key[1], seed=procedure.seed, inputs=inputs, directory=str(path), budget_s=budget_s
            )
            try:
                reply = self._worker.ask(message, max(self._timeout_s, 60 * budget_s))
            except BuriedError:
                self._worker = None
                raise
            self._made[key] = path, reply.share
        return self._made[key]

    def _make_room(self) -> None:
        """Drop the oldest expectations beyond KEPT_BYTES; they can be made again."""
        sizes = {key: sum(f.stat().st_size for f in made[0].iterdir()) for key, made in self._made.items()}
        for key in list(self._made):
            if sum(sizes.values()) <= KEPT_BYTES:
                return
            shutil.rmtree(self._made.pop(key)[0])
            del sizes[key]

    def bury(self) -> None:
        """End the process."""
        if self._worker:
            self._worker.bury()
            self._worker = None


class Bench:
    """One arm's work on one group, from preparing to its Result."""

    def __init__(self, group: Group, arm: Arm, worker: Worker, launch: int, procedure: Procedure) -> None:
        self.group, self.arm, self.worker, self.launch, self.procedure = group, arm, worker, launch, procedure
        self.case = group.case(arm)
        self.samples: dict[str, Sample] = {}
        self.facts: dict[str, Any] = {}
        self.values: list[float] = []
        self.blocks: list[Block] = []
        self.started_at = datetime.now(UTC).isoformat(timespec="milliseconds")

    def _ask(self, message: protocol.Request) -> Any:
        return self.worker.ask(message, self.procedure.timeout_s)

    def prepare(self) -> None:
        """Inputs and backend ready, called once."""
        reply = self._ask(protocol.Prepare(case=self.case, procedure=self.procedure))
        seconds = {**reply.seconds, "import": self.worker.import_s}
        self.samples |= {name: sample("s", [value]) for name, value in seconds.items() if value is not None}
        self.facts |= reply.facts

    def verify(self, expected: Expectation, peaked: Expectation | None) -> None:
        """The gate before any timing, in full where `peaked` is given; raises BuriedError where the output is wrong."""
        folder = str(peaked[0]) if peaked else ""
        message = protocol.Verify(directory=str(expected[0]), peaked_directory=folder, brief=peaked is None)
        self._judge(self._ask(message))
        self.facts["verified_share"] = expected[1]

    def probe(self, names: Collection[str]) -> None:
        """Questions beyond right or wrong."""
        self.facts["probes"] = self._ask(protocol.Probe(names=tuple(names))).figures

    def settle(self) -> float:
        """Warm up; gives the seconds of a call."""
        reply = self._ask(protocol.Settle())
        self.facts |= {"settled": reply.settled, "settle_s": reply.seconds}
        return float(reply.call_s)

    def time(self, number: int, position: int) -> None:
        """One block."""
        reply = self._ask(protocol.Time())
        self.values += reply.values
        self.blocks.append(
            Block(
                round=number,
                position=position,
                readings=len(reply.values),
                calls=reply.calls,
                tags=reply.tags,
                facts=reply.facts,
            )
        )

    def finish(self, extras: Collection[str] = ()) -> None:
        """The last timed output is judged; then memory and what else was asked for, outside the timed rounds."""
        self._judge(self._ask(protocol.Check()))
        memory = self._ask(protocol.Measure())
        self.samples["peak_memory"] = sample("B", [memory.peak])
        self.samples["total_memory"] = sample("B", [memory.total])
        self.facts |= {f"memory_{name}": value for name, value in memory.facts.items()}
        if (predicted := plan.scratch_bytes(self.case)) is not None:
            self.facts["memory_predicted"] = predicted
        if "energy" in extras:
            self._energy()
        if "timers" in extras:
            self._other_timers()

    def profile(self, directory: str, bare: bool) -> None:
        """A deep look, slowed by being looked at: after everything that is timed."""
        message = protocol.Profile(directory=directory, bare=bare)
        self.facts["profile"] = self.worker.ask(message, 2 * self.procedure.timeout_s).figures

    def _energy(self) -> None:
        reply = self._ask(protocol.Energize())
        if reply.absent:
            self.facts.setdefault("absent", {})["energy"] = reply.absent
            return
        self.samples["energy"] = sample("J", [reply.joules])
        if reply.above_idle is not None:
            self.samples["energy_above_idle"] = sample("J", [reply.above_idle])
        self.facts["energy"] = {"source": reply.source, "seconds": reply.seconds, "calls": reply.calls}

    def _other_timers(self) -> None:
        for timing in (mode for mode in Timing if mode is not self.procedure.timing):
            reply = self._ask(protocol.Retime(timing=timing, blocks=RETIMED_BLOCKS))
            if reply.absent:
                self.facts.setdefault("absent", {})[f"time_{timing}"] = reply.absent
            else:
                blocks = tuple(
                    Block(round=n, position=0, readings=len(r.values), calls=r.calls, tags=r.tags, facts=r.facts)
                    for n, r in enumerate(reply.blocks)
                )
                self.samples[f"time_{timing}"] = sample("s", [v for r in reply.blocks for v in r.values], blocks)

    def timed(self) -> Sample:
        """All readings so far."""
        return sample("s", self.values, tuple(self.blocks))

    def release(self) -> None:
        """Give the memory of the case back, for the next group."""
        self._ask(protocol.Release())

    def result(self, status: Status = Status.OK, reason: str = "") -> Result:
        """What is stored. Times of a case that failed are not kept: they would be times of nothing."""
        samples = {**self.samples, "time": self.timed()} if status is Status.OK else {}
        return Result(
            case=self.case,
            case_id=self.case.id,
            arm=self.arm,
            status=status,
            launch=self.launch,
            reason=reason,
            group=self.group.id,
            procedure=self.procedure,
            started_at=self.started_at,
            samples=samples,
            facts=self.facts,
        )

    def _judge(self, verdict: protocol.Verified) -> None:
        self.facts["errors"] = verdict.errors
        if not verdict.ok:
            raise BuriedError(Status.INCORRECT, verdict.reason)
