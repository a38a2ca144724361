"""The work of the arms on one group: requests to their workers in order, and the Results made of the replies."""

import math
import secrets
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

from msgspec.structs import replace

from attnbench.analysis import readings, warmup
from attnbench.engine.candidates import Refusal, scratch_bytes
from attnbench.engine.group import Group
from attnbench.engine.oracle import ExpectedFiles
from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.records.arm import Arm
from attnbench.records.result import (
    NEW_INPUTS_RIGHT,
    Cause,
    Procedure,
    Result,
    Sample,
    Status,
    TimedBlock,
    Timing,
    sample,
)
from attnbench.worker import probes, protocol
from attnbench.worker.protocol import ReplyT

RETIMED_BLOCKS = 5
MEMORY_RESTARTS = 2  # memory has no noise: later restarts would show the same
MIN_ROUNDS_OVER_BUDGET = 3  # of a group that began to be timed


class ArmSession:
    """The work of one arm on one group, from preparation to its Result. Every step may raise WorkerFailedError."""

    def __init__(self, group: Group, arm: Arm, worker: Worker, restart: int, procedure: Procedure) -> None:
        self.group, self.arm, self.worker, self.restart, self.procedure = group, arm, worker, restart, procedure
        self.case = group.case(arm)
        self.samples: dict[str, Sample] = {}
        self.facts: dict[str, object] = {}
        self._absent: dict[str, str] = {}  # extras that could not be measured, and why
        self.values: list[float] = []
        self.blocks: list[TimedBlock] = []
        self.medians: list[float | None] = []  # by round
        self.warmup = 0  # leading rounds that do not count
        self.deadline = math.inf  # of the budget, on the clock of time.monotonic()
        self.call_s = self.settle_s = 0.0  # of a call, and of settling, before the rounds
        self.in_full = False  # whether the verification was not brief
        self.started_at = datetime.now(UTC).isoformat(timespec="milliseconds")

    @property
    def key(self) -> str:
        """The case and the arm: the same in every restart."""
        return f"{self.case.id}@{self.arm.id}"

    def _ask(self, message: protocol.WorkerRequest[ReplyT]) -> ReplyT:
        return self.worker.ask(message, self.procedure.timeout_s, self.deadline)

    def prepare(self) -> None:
        """Make the inputs, prepare the backend and call it once."""
        reply = self._ask(protocol.PrepareCase(case=self.case, procedure=self.procedure))
        seconds = {**reply.seconds, "import": self.worker.import_s}
        self.samples |= {name: sample("s", [value]) for name, value in seconds.items() if value is not None}
        self.facts |= reply.facts
        if "plan" in self.samples and self.group.layers:
            self.facts["layers"] = self.group.layers

    def verify(self, expected: ExpectedFiles, stressing: Mapping[str, ExpectedFiles]) -> None:
        """Verify the output, in full if there are stressing inputs. Raises WorkerFailedError for a wrong output."""
        directories = {distribution: str(files.directory) for distribution, files in stressing.items()}
        request = protocol.VerifyCase(
            directory=str(expected.directory),
            peaked_directory=directories.pop("peaked", ""),
            further_directories=directories,
            brief=not stressing,
            seed=secret_seed(),
        )
        self._check(self._ask(request))
        self.facts["verified_share"] = expected.share

    def probe(self, names: Collection[str]) -> None:
        """Run probes, each variant in a request of its own, so that the reason of a crash can name it."""
        if not names:
            return
        figures: dict[str, dict[str, object]] = {}
        self.facts["probes"] = figures
        for part in probes.parts(names):
            try:
                answer = self._ask(protocol.ProbeCase(names=(part,))).figures
            except WorkerFailedError as failure:
                failure.reason = f"{part}: {failure.reason}"
                raise
            for name, values in answer.items():
                figures.setdefault(name, {}).update(values)

    def settle(self, call_s: float = 0.0) -> float:
        """Warm up; return the seconds of a call. `call_s`: in an earlier restart, 0 if there was none."""
        reply = self._ask(protocol.SettleCase(call_s=call_s))
        self.facts |= {"settled": reply.settled, "settle_s": reply.seconds}
        self.call_s, self.settle_s = reply.call_s, reply.seconds
        return reply.call_s

    @property
    def least_s(self) -> float:
        """Predicted seconds of the fewest rounds, and of the checks and the memory after them."""
        return MIN_ROUNDS_OVER_BUDGET * max(self.procedure.block_s, self.call_s) + 3 * self.call_s

    def time(self, number: int, position: int) -> None:
        """Time one block, in round `number` as the arm at `position`."""
        reply = self._ask(protocol.TimeBlock(seed=secret_seed()))
        self.values += reply.values
        self.blocks.append(_block(reply, number, position))
        self.medians.append(readings.location(reply.values))

    def finish(self, extras: Collection[str] = ()) -> None:
        """Verify the last timed output; outside the rounds measure memory, in the first restarts, and the extras."""
        self._check(self._ask(protocol.CheckOutput(seed=secret_seed(), brief=not self.in_full)))
        self._judge_warmup()
        if self.restart < MEMORY_RESTARTS:
            self._memory()
        if "energy" in extras:
            self._energy()
        if "timers" in extras:
            self._other_timers()

    def check_new_inputs(self, expected: ExpectedFiles, inputs: str, seed: int) -> None:
        """Check the case on inputs that it cannot have seen. Raises WorkerFailedError for a kernel that remembers."""
        message = protocol.CheckNewInputs(directory=str(expected.directory), seed=seed, inputs=inputs)
        errors = self.facts["errors"]
        self._check(self._ask(message))
        self.facts |= {"errors": errors, "new_inputs": NEW_INPUTS_RIGHT}

    def profile(self, directory: str, bare: bool) -> None:
        """Profile the case. It runs slower meanwhile, so this comes after everything that is timed."""
        message = protocol.ProfileCase(directory=directory, bare=bare)
        self.facts["profile"] = self.worker.ask(message, 2 * self.procedure.timeout_s).figures

    def _memory(self) -> None:
        memory = self._ask(protocol.MeasureMemory())
        self.samples["peak_memory"] = sample("B", [memory.peak])
        self.samples["total_memory"] = sample("B", [memory.total])
        self.facts |= {f"memory_{name}": value for name, value in memory.facts.items()}
        if (predicted := scratch_bytes(self.case)) is not None:
            self.facts["memory_predicted"] = predicted

    def _energy(self) -> None:
        reply = self._ask(protocol.MeasureEnergy())
        if reply.absent:
            self._absent["energy"] = reply.absent
            return
        self.samples["energy"] = sample("J", [reply.joules])
        if reply.above_idle is not None:
            self.samples["energy_above_idle"] = sample("J", [reply.above_idle])
        self.facts["energy"] = {"source": reply.source, "seconds": reply.seconds, "calls": reply.calls}

    def _other_timers(self) -> None:
        for timing in (mode for mode in Timing if mode is not self.procedure.timing):
            reply = self._ask(protocol.RetimeCase(timing=timing, blocks=RETIMED_BLOCKS))
            if reply.absent:
                self._absent[f"time_{timing}"] = reply.absent
            else:
                values = [value for block in reply.blocks for value in block.values]
                blocks = tuple(_block(block, number, position=0) for number, block in enumerate(reply.blocks))
                self.samples[f"time_{timing}"] = sample("s", values, blocks)

    def _judge_warmup(self) -> None:
        """Record whether the time was steady in the rounds that count, and the seconds before them."""
        steady = warmup.warmup_of_arm(self.medians) <= self.warmup
        in_rounds = zip(self.medians, self.blocks[: self.warmup], strict=False)
        seconds = sum((median or 0.0) * block.calls * block.readings for median, block in in_rounds)
        self.facts |= {"settled": bool(self.facts["settled"]) and steady, "settle_s": self.settle_s + seconds}

    @property
    def rounds(self) -> int:
        """How many rounds count."""
        return len(self.blocks) - self.warmup

    def timed(self) -> Sample:
        """The readings of the rounds that count."""
        return self._of_rounds(self.warmup, len(self.blocks))

    def _of_rounds(self, first: int, end: int) -> Sample:
        start, blocks = sum(block.readings for block in self.blocks[:first]), tuple(self.blocks[first:end])
        return sample("s", self.values[start : start + sum(block.readings for block in blocks)], blocks)

    def times(self, prefix: str = "") -> dict[str, Sample]:
        """Samples of the rounds that count, and of those that do not where there are any."""
        samples = {f"{prefix}time": self.timed()}
        if self.warmup:
            samples[f"{prefix}warmup_time"] = self._of_rounds(0, self.warmup)
        return samples

    def release(self) -> None:
        """Free the memory of the case, for the next group."""
        self._ask(protocol.ReleaseCase())

    def result(self, status: Status = Status.OK, reason: str = "", cause: Cause | None = None) -> Result:
        """The Result to store. A case that failed has no samples: its times would be those of a wrong output."""
        samples = {**self.samples, **self.times()} if status is Status.OK else {}
        absent = {"absent": self._absent} if self._absent else {}
        result = Refusal(status, reason, cause).result(
            self.case, self.arm, self.procedure, restart=self.restart, group=self.group.id
        )
        return replace(result, started_at=self.started_at, samples=samples, facts={**self.facts, **absent})

    def _check(self, reply: protocol.CaseVerified) -> None:
        self.facts["errors"] = reply.errors
        if reply.idle_cores is not None:
            self.facts["idle_cores"] = reply.idle_cores
        if reply.changed_state:
            self.facts["changed_state"] = list(reply.changed_state)
        if not reply.ok:
            self.worker.fail(Status.INCORRECT, reply.reason)


class GroupSessions:
    """The sessions of a group that are live, and the results of the others.

    A step that fails ends the session of its arm with the status of the failure; the other arms go on. `on_failure` is
    called with each such session.
    """

    def __init__(
        self,
        group: Group,
        restart: int,
        procedures: dict[str, Procedure],
        on_failure: Callable[[ArmSession, WorkerFailedError], None],
    ) -> None:
        self.group, self.restart, self._procedures, self._on_failure = group, restart, procedures, on_failure
        self.live: list[ArmSession] = []
        self._results: dict[str, Result] = {}

    @property
    def results(self) -> list[Result]:
        """Of the group's arms in order, without borrowed arms and without sessions that are still live."""
        return [self._results[arm.id] for arm in self.group.arms if arm.id in self._results]

    def _procedure(self, arm: Arm) -> Procedure:
        return self._procedures[arm.parsed_device.kind]

    def add(self, arm: Arm, worker: Worker) -> None:
        self.live.append(ArmSession(self.group, arm, worker, self.restart, self._procedure(arm)))

    def refuse(self, arm: Arm, refusal: Refusal) -> None:
        self._results[arm.id] = refusal.result(
            self.group.case(arm), arm, self._procedure(arm), restart=self.restart, group=self.group.id
        )

    def refuse_live(self, refusal: Refusal) -> None:
        for session in self.live:
            self.refuse(session.arm, refusal)

    def step(self, work: Callable[[ArmSession], None]) -> None:
        """Do the work in every live session."""
        for session in list(self.live):
            self.step_one(session, work)

    def step_one(self, session: ArmSession, work: Callable[[ArmSession], None]) -> None:
        try:
            work(session)
        except WorkerFailedError as failure:
            self.live.remove(session)
            self._on_failure(session, failure)
            self._results[session.arm.id] = session.result(failure.status, failure.reason, failure.cause)

    def complete(self) -> None:
        """Record the result of every live session."""
        self._results |= {session.arm.id: session.result() for session in self.live}


def secret_seed() -> int:
    """A seed that the code of a backend cannot know before the message arrives."""
    return secrets.randbits(63)


def _block(reply: protocol.BlockTimed, number: int, position: int) -> TimedBlock:
    return TimedBlock(
        round=number,
        position=position,
        readings=len(reply.values),
        calls=reply.calls,
        tags=reply.tags,
        facts=reply.facts,
    )
