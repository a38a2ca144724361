"""Messages between the main process and a worker, and the pipe that carries them.

A message is msgpack behind four bytes of length. The first message carries the protocol version, because an arm may
import another version of attnbench. Nothing here uses stdout: kernels and autotuners print there.
"""

import os
import select
import struct
import time
from typing import Generic, TypeVar

import msgspec

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.case import Case
from attnbench.records.ceilings import ForeignLoad, Point, Rate
from attnbench.records.result import Environment, Procedure, Status, Timing

VERSION = 2
EXPECTED_FILE = "expected.json"  # the record of expected values in their directory

_LENGTH = struct.Struct("!I")


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages. Tags are part of the protocol: workers of other versions read them."""

    @property
    def phase(self) -> str:
        """Name of the step in reasons and in the seconds that a manifest lists."""
        return str(self.__struct_config__.tag).lower()


ReplyT = TypeVar("ReplyT", bound=Message)
ReceivedT = TypeVar("ReceivedT")


class WorkerRequest(Message, Generic[ReplyT], frozen=True, kw_only=True):
    """Base of the messages to a worker, by the type of the reply. `RequestFailed` may answer each of them."""


class WorkerStarted(Message, frozen=True, kw_only=True, tag="Started"):
    """Python and torch are up, and the import of the backend begins: sent before `WorkerOpened`, if asked for."""


class WorkerOpened(Message, frozen=True, kw_only=True, tag="Opened"):
    """The worker is up: its environment, or why it cannot run the backend."""

    version: int = VERSION
    environment: Environment = Environment()
    capability: tuple[int, int] = (0, 0)
    unavailable: str = ""  # why the backend cannot run on this device
    checks_new_inputs: bool = False  # whether it answers `CheckNewInputs`; workers of older versions do not
    changes_backend: bool = False  # whether `PrepareCase` may name another backend of `backends.ONE_PROCESS`
    warm_s: float = 0.0  # part of the time so far that the instrument took, which is not import time


class OpenWorker(WorkerRequest[WorkerOpened], frozen=True, kw_only=True, tag="Open"):
    """The first message. A worker without a device is an oracle: it computes expected values and times nothing."""

    version: int = VERSION
    backend: str = ""  # empty: only the device is opened
    device: str = ""
    memory_bytes: int = 0  # limit of the worker's data segment; 0: no limit
    cpus: tuple[int, ...] = ()  # CPUs to run on; empty: any
    python: str = ""  # the interpreter of the worker, where it is not that of the main process
    report_start: bool = False  # send `WorkerStarted` first; workers of older versions do not
    gradients: bool = False  # cases need them: make a first backward pass, for which torch imports more


class ExpectedComputed(Message, frozen=True, kw_only=True, tag="Expected"):
    """The expected values are written."""

    share: float  # of all query rows
    seconds: float


class ComputeExpected(WorkerRequest[ExpectedComputed], frozen=True, kw_only=True, tag="Expect"):
    """To the oracle: compute the expected values of a problem and write them to `directory`."""

    problem: Problem
    mode: Mode
    seed: int
    inputs: str
    directory: str
    budget_s: float


class CasePrepared(Message, frozen=True, kw_only=True, tag="Prepared"):
    """The case is ready: seconds of each step of the preparation, and facts about what runs."""

    seconds: dict[str, float]
    facts: dict[str, object]


class PrepareCase(WorkerRequest[CasePrepared], frozen=True, kw_only=True, tag="Prepare"):
    """Make the inputs, prepare the backend and call it once."""

    case: Case
    procedure: Procedure


class CaseVerified(Message, frozen=True, kw_only=True, tag="Verified"):
    """The verdict of a check, with error figures by output."""

    ok: bool
    reason: str
    errors: dict[str, dict[str, float | None]]
    changed_state: tuple[str, ...] = ()  # by the backend's code so far: "default dtype: float32 -> bfloat16"
    idle_cores: float | None = None  # that the process keeps busy between calls, where that was measured


class VerifyCase(WorkerRequest[CaseVerified], frozen=True, kw_only=True, tag="Verify"):
    """Compare the outputs with expected values: those of the procedure's inputs, and of the other inputs if named.

    `brief`: only the procedure's inputs, in restarts after the first, which checked everything else.
    """

    directory: str
    peaked_directory: str = ""
    further_directories: dict[str, str] = {}  # of further distributions
    brief: bool = False
    seed: int = 0  # of the transformed inputs, secret from the backend until now


class CheckOutput(WorkerRequest[CaseVerified], frozen=True, kw_only=True, tag="Check"):
    """Compare the outputs of timed calls, and of calls after them, with the expected values."""

    seed: int = 0  # of the inputs of further calls
    brief: bool = False  # fewer further calls, for a case that was verified in full before


class CheckNewInputs(WorkerRequest[CaseVerified], frozen=True, kw_only=True, tag="CheckNew"):
    """Compare the output on inputs of another seed with the expected values, and its time with that on seen inputs."""

    directory: str
    seed: int
    inputs: str


class CaseSettled(Message, frozen=True, kw_only=True, tag="Settled"):
    """The pace of the blocks is known, or the time limit of settling has passed."""

    call_s: float
    settled: bool
    seconds: float


class SettleCase(WorkerRequest[CaseSettled], frozen=True, kw_only=True, tag="Settle"):
    """Call until the pace of the blocks is known."""

    call_s: float = 0.0  # of a call in an earlier restart, which one block confirms; 0: not known


class BlockTimed(Message, frozen=True, kw_only=True, tag="Timed"):
    """The readings of a block: seconds of one call each."""

    values: list[float]
    calls: int
    tags: tuple[str, ...] = ()
    facts: dict[str, float] = {}


class TimeBlock(WorkerRequest[BlockTimed], frozen=True, kw_only=True, tag="Time"):
    """Time one block, on inputs that differ from those of the block before."""

    seed: int = 0  # of the transformation of the inputs, and of the call that is judged


class MemoryMeasured(Message, frozen=True, kw_only=True, tag="Measured"):
    """Memory of one call, in bytes."""

    peak: int
    total: int
    facts: dict[str, int | str] = {}


class MeasureMemory(WorkerRequest[MemoryMeasured], frozen=True, kw_only=True, tag="Measure"):
    """Measure the memory of one call."""


class CaseProbed(Message, frozen=True, kw_only=True, tag="Probed"):
    """Figures by probe."""

    figures: dict[str, dict[str, object]]


class ProbeCase(WorkerRequest[CaseProbed], frozen=True, kw_only=True, tag="Probe"):
    """Run probes by their names in `probes.PROBES`."""

    names: tuple[str, ...]


class CaseProfiled(Message, frozen=True, kw_only=True, tag="Profiled"):
    """Figures of a profile; its files are in the directory of the request."""

    figures: dict[str, object]


class ProfileCase(WorkerRequest[CaseProfiled], frozen=True, kw_only=True, tag="Profile"):
    """Profile the case and write files to `directory`; with `bare`, only call it in NVTX ranges."""

    directory: str
    bare: bool = False


class EnergyMeasured(Message, frozen=True, kw_only=True, tag="Energized"):
    """Joules of one call, or why there is no figure."""

    joules: float = 0.0
    above_idle: float | None = None
    seconds: float = 0.0
    calls: int = 0
    source: str = ""
    absent: str = ""


class MeasureEnergy(WorkerRequest[EnergyMeasured], frozen=True, kw_only=True, tag="Energize"):
    """Measure the energy of a call, over seconds of uninterrupted calls."""


class CaseRetimed(Message, frozen=True, kw_only=True, tag="Retimed"):
    """Blocks in another timing mode, or why that mode is not available."""

    blocks: tuple[BlockTimed, ...] = ()
    absent: str = ""


class RetimeCase(WorkerRequest[CaseRetimed], frozen=True, kw_only=True, tag="Retime"):
    """Settle in another timing mode, then time `blocks` blocks in it."""

    timing: Timing
    blocks: int


class DeviceCalibrated(Message, frozen=True, kw_only=True, tag="Calibrated"):
    """Ceilings. The fields are those of `records.ceilings.Ceilings` with these names, but for the load."""

    matmul: dict[str, Rate]
    refused: dict[str, str]
    bandwidth: dict[str, tuple[Point, ...]]
    exp_per_s: float | None
    exp_derived: bool
    launch_s: float | None
    foreign_load: ForeignLoad | None  # meanwhile; None: unknown


class CalibrateDevice(WorkerRequest[DeviceCalibrated], frozen=True, kw_only=True, tag="Calibrate"):
    """Measure the ceilings of the device; `parts` of: matmul, bandwidth, exp, launch."""

    parts: tuple[str, ...]


class CaseReleased(Message, frozen=True, kw_only=True, tag="Done"):
    """The case is released."""


class ReleaseCase(WorkerRequest[CaseReleased], frozen=True, kw_only=True, tag="Release"):
    """Drop the prepared case and return its memory to the system."""


class RequestFailed(Message, frozen=True, kw_only=True, tag="Failed"):
    """The request raised an exception in the worker, which goes on serving."""

    status: Status
    reason: str
    trace: str = ""


AnyRequest = (
    OpenWorker | ComputeExpected | PrepareCase | VerifyCase | CheckOutput | CheckNewInputs | SettleCase | TimeBlock
    | MeasureMemory | ProbeCase | ProfileCase | MeasureEnergy | RetimeCase | CalibrateDevice | ReleaseCase
)  # fmt: skip
AnyReply = (
    WorkerStarted | WorkerOpened | ExpectedComputed | CasePrepared | CaseVerified | CaseSettled | BlockTimed
    | MemoryMeasured | CaseProbed | CaseProfiled | EnergyMeasured | CaseRetimed | DeviceCalibrated | CaseReleased
    | RequestFailed
)  # fmt: skip


class ChannelClosedError(Exception):
    """The process at the other end is gone."""


class NoAnswerError(Exception):
    """No message arrived in time."""


class Channel(Generic[ReceivedT]):
    """One end of the pipe pair between the main process and a worker."""

    def __init__(self, read_fd: int, write_fd: int, decoder: msgspec.msgpack.Decoder[ReceivedT]) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._decoder = decoder

    def send(self, message: Message) -> None:
        """Write one message. Raises ChannelClosedError."""
        body = msgspec.msgpack.encode(message)
        view = memoryview(_LENGTH.pack(len(body)) + body)
        try:
            while view:
                view = view[os.write(self._write_fd, view) :]
        except OSError as error:
            raise ChannelClosedError(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> ReceivedT:
        """Read one message; blocks without polling. Raises ChannelClosedError or NoAnswerError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        length = _LENGTH.unpack(self._take(_LENGTH.size, deadline))[0]
        return self._decoder.decode(self._take(length, deadline))

    def close(self) -> None:
        for descriptor in (self._read_fd, self._write_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._read_fd = self._write_fd = -1

    def _take(self, count: int, deadline: float | None) -> bytes:
        chunks: list[bytes] = []
        while count:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._read_fd], [], [], left)[0]:
                    raise NoAnswerError
            try:
                chunk = os.read(self._read_fd, min(count, 1 << 20))
            except OSError as error:
                raise ChannelClosedError(str(error)) from error
            if not chunk:
                raise ChannelClosedError("end of file")
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)


def to_worker(read_fd: int, write_fd: int) -> Channel[AnyReply]:
    """The main process's end."""
    return Channel(read_fd, write_fd, msgspec.msgpack.Decoder(AnyReply))


def to_main_process(read_fd: int, write_fd: int) -> Channel[AnyRequest]:
    """The worker's end."""
    return Channel(read_fd, write_fd, msgspec.msgpack.Decoder(AnyRequest))
