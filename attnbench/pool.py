"""Worker processes seen from outside: start, ask with a deadline, bury. One process an arm, and one for the oracle.

A worker is started from the main thread, since the parent-death signal of Linux follows the thread that forked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attnbench
from attnbench import host, protocol
from attnbench.arm import Arm, parse_device
from attnbench.result import Status

LOG_BYTES = 1024**2  # of what a worker prints, the end is kept
_CHUNK = 1 << 16


class BuriedError(Exception):
    """A worker is gone, or said that it failed: the status of the case, and why."""

    def __init__(self, status: Status, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.trace = status, reason, trace


class Log:
    """The end of what a worker prints, read by a thread so that a full pipe never blocks the worker."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._descriptor, _CHUNK):
                self._kept += chunk
                if len(self._kept) > 2 * LOG_BYTES:
                    del self._kept[:-LOG_BYTES]
        os.close(self._descriptor)

    def text(self) -> str:
        """What is kept, as text."""
        return bytes(self._kept[-LOG_BYTES:]).decode(errors="replace")

    def last_line(self) -> str:
        """The last line that says something."""
        # torch traces its profiler with USDT lines; they say nothing of a death.
        said = (line.strip() for line in self.text().splitlines())
        lines = [line for line in said if line and not line.startswith("USDT:")]
        return lines[-1][:300] if lines else ""

    def finish(self) -> None:
        """Wait for what is still in the pipe; a grandchild may hold it open, so not for long."""
        self._thread.join(timeout=1.0)


class Worker:
    """One worker process. Raises BuriedError from `ask`, and is then of no further use."""

    def __init__(
        self,
        arm: Arm | None,
        cpus: Sequence[int],
        memory_bytes: int,
        log_path: Path | None = None,
        spent: dict[str, float] | None = None,
    ) -> None:
        self.arm, self.cpus, self.memory_bytes, self._log_path = arm, tuple(cpus), memory_bytes, log_path
        self.spent = defaultdict(float) if spent is None else spent  # seconds of waiting for an answer, by phase
        self.started = time.monotonic()
        self.import_s: float | None = None
        self.opened: protocol.Opened | None = None
        self._kills = _system_oom_kills()
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        out_read, out_write = os.pipe()
        self._process = subprocess.Popen(
            [_python(arm), "-P", "-m", "attnbench.worker", str(down_read), str(up_write)],
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=out_write,
            pass_fds=(down_read, up_write),
            env=_environment(arm, len(self.cpus)),
            cwd=arm.path[0]
            if arm and arm.path
            else None,  # a relative `file.py:callable` is that of the arm's own tree
            start_new_session=True,  # the terminal's Ctrl-C is not for workers; and the whole session can be killed
        )
        for descriptor in (down_read, up_write, out_write):
            os.close(descriptor)
        self._log = Log(out_read)
        self._channel = protocol.Channel(up_read, down_write, protocol.Reply)
        with contextlib.suppress(protocol.ClosedError):  # `open` will see it, and say why
            self._channel.send(self._open_message())

    def _open_message(self) -> protocol.Open:
        if self.arm is None:
            return protocol.Open(cpus=self.cpus)
        return protocol.Open(
            backend=self.arm.backend, device=self.arm.device, memory_bytes=self.memory_bytes, cpus=self.cpus
        )

    def open(self, timeout_s: float) -> protocol.Opened:
        """Wait until it is up; the clock of the import started with the process."""
        if self.opened is None:
            reply = self._receive(timeout_s - (time.monotonic() - self.started), timeout_s, "import")
            self.import_s = time.monotonic() - self.started - reply.warm_s
            if reply.version != protocol.VERSION:
                reason = f"its attnbench speaks protocol {reply.version}, this one {protocol.VERSION}: not comparable"
                self._fail(Status.UNAVAILABLE, reason)
            self.opened = reply
        return self.opened

    def ask(self, message: protocol.Request, timeout_s: float) -> Any:
        """Send, and wait for the answer; the phase in a reason is the message's name."""
        phase = type(message).__name__.lower()
        try:
            self._channel.send(message)
        except protocol.ClosedError:
            self._report_death(phase)
        return self._receive(timeout_s, timeout_s, phase)

    def bury(self) -> None:
        """End the process and all that it started; keep its log. Burying twice does no harm."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        self._log.finish()
        if self._log_path and (text := self._log.text()):
            with contextlib.suppress(OSError):  # a log that cannot be written must not cost a result
                self._log_path.parent.mkdir(exist_ok=True)
                self._log_path.write_text(text)

    def _receive(self, left_s: float, timeout_s: float, phase: str) -> Any:
        started = time.monotonic()
        try:
            reply = self._channel.receive(max(left_s, 0.001))
        except protocol.SilentError:
            self._fail(Status.TIMEOUT, f"{phase}: no answer within {timeout_s:g} s")
        except protocol.ClosedError:
            self._report_death(phase)
        finally:
            self.spent[phase] += time.monotonic() - started
        if isinstance(reply, protocol.Failed):
            if reply.status is Status.UNSUPPORTED:
                raise BuriedError(reply.status, reply.reason)
            self._fail(reply.status, reply.reason, reply.trace)
        return reply

    def _report_death(self, phase: str) -> None:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._fail(Status.CRASHED, f"{phase}: closed its pipe and lives on")
        self._log.finish()
        said = f": {last}" if (last := self._log.last_line()) else ""
        if code == -signal.SIGKILL and _system_oom_kills() > self._kills:
            self._fail(Status.OOM, f"{phase}: the system ran out of memory and killed the worker")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        self._fail(Status.CRASHED, f"{phase}: {how}{said}")

    def _fail(self, status: Status, reason: str, trace: str = "") -> None:
        self.bury()
        raise BuriedError(status, reason, trace)


def _python(arm: Arm | None) -> str:
    return arm.python if arm and arm.python else sys.executable


def _environment(arm: Arm | None, threads: int) -> dict[str, str]:
    """This process's variables, those of the device, those of the arm; our package importable by this interpreter."""
    device = parse_device(arm.device if arm else f"cpu:threads={max(threads, 1)}")
    chosen = {**os.environ, **host.arm_environment(device), **dict(arm.env if arm else ())}
    path = list(arm.path) if arm else []
    if not (arm and arm.python):
        path.append(str(Path(attnbench.__file__).parent.parent))
    chosen["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [chosen.get("PYTHONPATH", "")])])
    # Inductor compiles in the worker itself: its pool of processes would outlive a kill and disturb the other arms.
    chosen.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    return chosen


def _system_oom_kills() -> int:
    """How often Linux killed for want of memory since it started; 0 where it does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
