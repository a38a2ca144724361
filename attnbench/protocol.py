"""What runner and worker say to each other: messages, and the pipe that carries them.

A message is msgpack behind four bytes of length. The first one carries the protocol version, since an arm may import
attnbench from an environment of its own. Nothing here uses stdout: kernels and autotuners print there.
"""

from __future__ import annotations

import os
import select
import struct
import time
from typing import Any

import msgspec

from attnbench.attention.problem import Mode, Problem
from attnbench.case import Case
from attnbench.ceilings import Point, Rate
from attnbench.result import Environment, Procedure, Status, Timing

VERSION = 2

_LENGTH = struct.Struct("!I")


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something said; the class is the tag."""


class Open(Message, frozen=True, kw_only=True):
    """The first message. A worker without a device is an oracle: it makes expected values, and times nothing."""

    version: int = VERSION
    backend: str = ""  # empty: the device alone is looked at
    device: str = ""
    memory_bytes: int = 0  # limit of the worker's own data; 0: none
    cpus: tuple[int, ...] = ()  # to run on; empty: any


class Opened(Message, frozen=True, kw_only=True):
    """The worker is up: what it is, or why it cannot serve."""

    version: int = VERSION
    environment: Environment = Environment()
    capability: tuple[int, int] = (0, 0)
    unavailable: str = ""  # why the backend cannot run on this device
    warm_s: float = 0.0  # of the time so far, spent on the instrument and not on imports


class Expect(Message, frozen=True, kw_only=True):
    """To the oracle: compute the expected values of this problem, and write them to `directory`."""

    problem: Problem
    mode: Mode
    seed: int
    inputs: str
    directory: str
    budget_s: float


class Expected(Message, frozen=True, kw_only=True):
    """They are written."""

    share: float  # of all query rows
    seconds: float


class Prepare(Message, frozen=True, kw_only=True):
    """Make inputs and backend ready, and call once."""

    case: Case
    procedure: Procedure


class Prepared(Message, frozen=True, kw_only=True):
    """Ready. Seconds of what was done once, facts of what runs."""

    seconds: dict[str, float]
    facts: dict[str, Any]


class Verify(Message, frozen=True, kw_only=True):
    """Check the output against expected values: those of the procedure's inputs, and of peaked ones where given.

    `brief`: the procedure's inputs alone, in a launch after the first; all else was checked there.
    """

    directory: str
    peaked_directory: str = ""
    brief: bool = False


class Verified(Message, frozen=True, kw_only=True):
    """The verdict of a check."""

    ok: bool
    reason: str
    errors: dict[str, dict[str, float | None]]


class Settle(Message, frozen=True, kw_only=True):
    """Call until the time is steady."""


class Settled(Message, frozen=True, kw_only=True):
    """It is, or the time for it is over."""

    call_s: float
    settled: bool
    seconds: float


class Time(Message, frozen=True, kw_only=True):
    """One block, on inputs that differ from those of the block before."""


class Timed(Message, frozen=True, kw_only=True):
    """The readings of a block."""

    values: list[float]
    calls: int
    tags: tuple[str, ...] = ()
    facts: dict[str, float] = {}


class Check(Message, frozen=True, kw_only=True):
    """Judge the output of the last timed call."""


class Measure(Message, frozen=True, kw_only=True):
    """Memory of one call."""


class Measured(Message, frozen=True, kw_only=True):
    """Bytes."""

    peak: int
    total: int
    facts: dict[str, int] = {}


class Probe(Message, frozen=True, kw_only=True):
    """Ask the case what `probes.PROBES` names."""

    names: tuple[str, ...]


class Probed(Message, frozen=True, kw_only=True):
    """Figures by probe."""

    figures: dict[str, dict[str, Any]]


class Profile(Message, frozen=True, kw_only=True):
    """Look at the case, and leave files in `directory`; `bare` only calls it in NVTX ranges."""

    directory: str
    bare: bool = False


class Profiled(Message, frozen=True, kw_only=True):
    """What was seen."""

    figures: dict[str, Any]


class Energize(Message, frozen=True, kw_only=True):
    """Energy of a call, over seconds of calls on end."""


class Energized(Message, frozen=True, kw_only=True):
    """Joules of one call, or why they cannot be had."""

    joules: float = 0.0
    above_idle: float | None = None
    seconds: float = 0.0
    calls: int = 0
    source: str = ""
    absent: str = ""


class Retime(Message, frozen=True, kw_only=True):
    """Time the case by another mode: settle, then so many blocks."""

    timing: Timing
    blocks: int


class Retimed(Message, frozen=True, kw_only=True):
    """The blocks, or why that mode cannot be had."""

    blocks: tuple[Timed, ...] = ()
    absent: str = ""


class Calibrate(Message, frozen=True, kw_only=True):
    """Measure what the device can do at most; `parts` of: matmul, bandwidth, exp, launch."""

    parts: tuple[str, ...]


class Calibrated(Message, frozen=True, kw_only=True):
    """Ceilings, as `ceilings.Ceilings` has them."""

    matmul: dict[str, Rate]
    refused: dict[str, str]
    bandwidth: dict[str, tuple[Point, ...]]
    exp_per_s: float | None
    exp_derived: bool
    launch_s: float | None


class Release(Message, frozen=True, kw_only=True):
    """Forget the case; give memory back."""


class Done(Message, frozen=True, kw_only=True):
    """Nothing more to say."""


class Failed(Message, frozen=True, kw_only=True):
    """What went wrong in the worker; it is still there to say so."""

    status: Status
    reason: str
    trace: str = ""


Request = (
    Open | Expect | Prepare | Verify | Probe | Settle | Time | Check | Measure | Energize | Retime | Profile | Calibrate
    | Release
)  # fmt: skip
Reply = (
    Opened | Expected | Prepared | Verified | Probed | Settled | Timed | Measured | Energized | Retimed | Profiled
    | Calibrated | Done | Failed
)  # fmt: skip


class ClosedError(Exception):
    """The other side is gone."""


class SilentError(Exception):
    """The other side did not answer in time."""


class Channel:
    """One end of the pipe pair between runner and worker."""

    def __init__(self, read_fd: int, write_fd: int, kind: Any) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._decoder = msgspec.msgpack.Decoder(kind)

    def send(self, message: Message) -> None:
        """Write one message. Raises ClosedError."""
        body = msgspec.msgpack.encode(message)
        view = memoryview(_LENGTH.pack(len(body)) + body)
        try:
            while view:
                view = view[os.write(self._write_fd, view) :]
        except (BrokenPipeError, OSError) as error:
            raise ClosedError(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> Any:
        """Read one message; blocks without polling. Raises ClosedError or SilentError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        length = _LENGTH.unpack(self._take(_LENGTH.size, deadline))[0]
        return self._decoder.decode(self._take(length, deadline))

    def close(self) -> None:
        """Close both ends; closing twice does no harm."""
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
                    raise SilentError
            try:
                chunk = os.read(self._read_fd, min(count, 1 << 20))
            except OSError as error:
                raise ClosedError(str(error)) from error
            if not chunk:
                raise ClosedError("end of file")
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)
