"""Worker processes from outside: start, ask with a deadline, terminate. One for each arm, and one for the oracle.

A worker is started from the main thread, since the parent-death signal of Linux follows the thread that forked.
"""

import contextlib
import getpass
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, cast

from msgspec.structs import replace

from attnbench import backends
from attnbench.attention import user_folders
from attnbench.engine import worker_start
from attnbench.machine import resources, worker_environment
from attnbench.records.arm import Arm, Device
from attnbench.records.result import Cause, Environment, Status
from attnbench.worker import failures, protocol
from attnbench.worker.protocol import ReplyT

START_LIMIT_S = 120.0  # for Python and torch, which run before any code of the user
LOG_BYTES = 1024**2  # of the end of a worker's output
MAX_LOG = 4_000  # characters of it that are stored with a failure
STACK_LIMIT_S = 5.0  # for the stack of a worker that does not answer
LOG_LIMIT_S = 5.0  # for the rest of the output of a process that ended: a grandchild may hold the pipe open
FATAL = "Fatal Python error:"  # as faulthandler prints it
_CHUNK = 1 << 16
ROOT = str(Path(__file__).parents[2])  # of this attnbench


class WorkerFailedError(Exception):
    """A worker died, did not answer, or reported a failure: the status of the case, and why.

    `trace`: of the exception in the worker; `log`: the end of the worker's output.
    """

    def __init__(self, status: Status, reason: str, trace: str = "", log: str = "", cause: Cause | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.cause = status, reason, cause
        self.facts = {name: text for name, text in (("trace", trace), ("log", log)) if text}  # of the result


class Log:
    """The end of a worker's output, read by a thread so that a full pipe never blocks the worker."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._descriptor, _CHUNK):
                self._buffer += chunk
                if len(self._buffer) > 2 * LOG_BYTES:
                    del self._buffer[:-LOG_BYTES]
        os.close(self._descriptor)

    def text(self) -> str:
        """The end of the output of a process that ended."""
        self._thread.join(timeout=LOG_LIMIT_S)
        return self.text_so_far()

    def text_so_far(self) -> str:
        return bytes(self._buffer[-LOG_BYTES:]).decode(errors="replace")

    def end(self) -> str:
        """The last lines of the output of a process that ended, at most MAX_LOG characters."""
        # torch traces its profiler with USDT lines, which never explain a failure.
        lines = [line.rstrip() for line in self.text().splitlines() if not line.startswith("USDT:")]
        text = "\n".join(lines).strip()
        return text if len(text) <= MAX_LOG else text[-MAX_LOG:].partition("\n")[2]


class Worker:
    """One worker process. After `open` or `ask` raises WorkerFailedError, only an unsupported case leaves it alive."""

    def __init__(
        self,
        arm: Arm | None,
        cpus: Sequence[int],
        memory_bytes: int,
        log_path: Path | None = None,
        spent: dict[str, float] | None = None,
        gradients: bool = False,
        forks: bool = True,
    ) -> None:
        self._log_path = log_path
        self._temporary = tempfile.TemporaryDirectory(prefix="attnbench-", ignore_cleanup_errors=True)
        self.spent = defaultdict(float) if spent is None else spent  # seconds until replies, by phase
        self.started = time.monotonic()
        self.import_s: float | None = None
        self.opened: protocol.WorkerOpened | None = None
        self._backend, self._kills = arm.backend if arm else "", _system_oom_kills()
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        out_read, out_write = os.pipe()
        self._process = worker_start.start(
            worker_start.Start(
                executable=os.path.expanduser(arm.python if arm else "") or sys.executable,
                descriptors=(down_read, up_write, out_write),
                environment=_environment(arm, len(cpus), self._temporary.name),
                path=_path(arm),
                root=_own_root(arm),
                # A relative `file.py:callable` is looked up in the arm's source tree.
                cwd=os.path.abspath(arm.path[0]) if arm and arm.path else None,
                forks=forks and (arm is None or arm.parsed_device.kind == "cpu"),
                gradients=gradients,
            )
        )
        for descriptor in (down_read, up_write, out_write):
            os.close(descriptor)
        self._log = Log(out_read)
        self._channel = protocol.to_worker(up_read, down_write)
        message = protocol.OpenWorker(memory_bytes=memory_bytes, cpus=tuple(cpus), report_start=True)
        if arm:
            message = replace(message, backend=arm.backend, device=arm.device, python=arm.python, gradients=gradients)
        with contextlib.suppress(protocol.ChannelClosedError):  # `open` reports it
            self._channel.send(message)

    def open(self, timeout_s: float, deadline: float = math.inf) -> protocol.WorkerOpened:
        """Wait until the worker has imported its backend. The timeout does not include the import of torch.

        `deadline`: of the budget, on the clock of time.monotonic().
        """
        if self.opened is None:
            reply = self._receive(START_LIMIT_S, "import", deadline, self.started)
            if isinstance(reply, protocol.WorkerStarted):
                reply = self._receive(timeout_s, "import", deadline)
            assert isinstance(reply, protocol.WorkerOpened)
            self.import_s = time.monotonic() - self.started - reply.warm_s + worker_start.shared_s(self._process)
            if reply.version != protocol.VERSION:
                reason = f"its attnbench speaks protocol {reply.version}, this one {protocol.VERSION}: not comparable"
                self.fail(Status.UNAVAILABLE, reason)
            self.opened = reply
            if reply.unavailable:
                self.fail(Status.UNAVAILABLE, reply.unavailable)
        return self.opened

    def ask(self, message: protocol.WorkerRequest[ReplyT], timeout_s: float, deadline: float = math.inf) -> ReplyT:
        """Send a request and wait for its reply. A failure's reason begins with the phase of the request."""
        try:
            self._channel.send(message)
        except protocol.ChannelClosedError:
            self._report_death(message.phase)
        return cast("ReplyT", self._receive(timeout_s, message.phase, deadline))

    def kill(self) -> None:
        """Kill the process and its children, and do not wait for their end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Kill the process and its children, and write its log. A second call does nothing more."""
        self.kill()
        self._process.wait()
        self._channel.close()
        self._temporary.cleanup()
        text = self._log.text()
        if self._log_path and text:
            with contextlib.suppress(OSError):  # a log that cannot be written must not end the run
                self._log_path.parent.mkdir(exist_ok=True)
                self._log_path.write_text(text)

    def _receive(self, timeout_s: float, phase: str, deadline: float, since: float | None = None) -> protocol.AnyReply:
        """Wait for a message; `since`: when the timeout began, now if None."""
        started = time.monotonic()
        end = min((since or started) + timeout_s, deadline)
        try:
            reply = self._channel.receive(max(end - started, 0.001))
        except protocol.NoAnswerError:
            if time.monotonic() >= deadline:
                self.terminate()
                raise WorkerFailedError(Status.SKIPPED, "budget", cause=Cause.BUDGET) from None
            self._report_hang(phase, timeout_s)
        except protocol.ChannelClosedError:
            self._report_death(phase)
        finally:
            self.spent[phase] += time.monotonic() - started
        if isinstance(reply, protocol.RequestFailed):
            if reply.status is Status.UNSUPPORTED:
                raise WorkerFailedError(reply.status, reply.reason)
            self.fail(reply.status, reply.reason, reply.trace)
        return reply

    def _report_hang(self, phase: str, timeout_s: float) -> NoReturn:
        """Fail with the line of the user's code that the worker is at."""
        before = self._log.text_so_far()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + STACK_LIMIT_S
        while not (where := self._place_since(len(before))) and time.monotonic() < until:
            time.sleep(0.01)
        self.fail(Status.TIMEOUT, f"{phase}: no answer within {timeout_s:g} s{where and f' ({where})'}")

    def _place_since(self, printed: int) -> str:
        """The place in the user's code that whole lines name after so many characters of the output."""
        return failures.place_in_text(self._log.text_so_far()[printed:].rpartition("\n")[0])

    def _report_death(self, phase: str) -> NoReturn:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.fail(Status.CRASHED, f"{phase}: closed its pipe and lives on")
        self.kill()  # what it has started may hold the pipe of its output open
        if code == -signal.SIGKILL and _system_oom_kills() > self._kills:
            self.fail(Status.OOM, f"{phase}: the system ran out of memory and killed the worker")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        printed, _, stack = self._log.end().partition(FATAL)
        lines = printed.strip().splitlines()
        where = failures.place_in_text(stack)
        last = failures.of_death(-code, printed, self._backend) or (lines[-1].strip()[:300] if lines else "")
        # A library that was built for other CPUs is not available on this one; a kernel may have a bug.
        built_otherwise = code == -signal.SIGILL and self._backend in backends.BUILTIN
        status = Status.UNAVAILABLE if built_otherwise else Status.CRASHED
        self.fail(status, f"{phase}: {how}{where and f' ({where})'}{last and f': {last}'}")

    def fail(self, status: Status, reason: str, trace: str = "") -> NoReturn:
        """Terminate the worker and raise WorkerFailedError with the end of its output."""
        self.terminate()
        log = "" if status is Status.UNAVAILABLE else self._log.end()
        raise WorkerFailedError(status, reason, trace, log)


class Workers:
    """The running workers of a run by arm. `phase` is called with each step.

    `shared`: arms that differ only in a backend of `backends.ONE_PROCESS` have one worker, and must not be measured in
    one group; and workers that would start last, on fewer than all cores, start with the first.
    """

    def __init__(
        self,
        memory_bytes: int,
        timeout_s: float,
        logs: Path | None,
        spent: dict[str, float],
        phase: Callable[[str], None],
        shared: bool = False,
    ) -> None:
        self._memory_bytes, self._timeout_s, self._logs, self._spent = memory_bytes, timeout_s, logs, spent
        self._phase, self._shared = phase, shared
        self.gradients = False  # whether those that start from now on make a first backward pass at once
        self.forks = True  # whether they may be forks
        self._apart: set[str] = set()  # names of workers whose attnbench cannot change its backend
        self._workers: dict[str, Worker] = {}
        self.environments: dict[str, Environment] = {}  # by arm id
        self.failures: dict[str, WorkerFailedError] = {}  # of workers that could not start, by arm id

    def __getitem__(self, arm: Arm) -> Worker:
        return self._workers[self._name(arm)]

    def lacking(self, arms: Iterable[Arm]) -> list[Arm]:
        """Those of the arms whose worker does not run and may start."""
        return [arm for arm in arms if self._name(arm) not in self._workers and arm.id not in self.failures]

    def _name(self, arm: Arm) -> str:
        """The worker of the arm."""
        if self._shared and arm.backend in backends.ONE_PROCESS and arm.parsed_device.kind == "cpu":
            common = replace(arm, backend="torch").id
            return arm.id if common in self._apart else common
        return arm.id

    def open(
        self, arms: Sequence[Arm], deadline: float = math.inf, on_free_core: Callable[[], object] = lambda: None
    ) -> None:
        """Start the workers that do not run, one for each core at a time; none after the deadline.

        `on_free_core` is called once if they are no multiple of the cores.
        """
        cores = len(resources.available_cores())
        missing = {self._name(arm) for arm in arms} - self._workers.keys()
        at_once = cores + (len(missing) % cores if self._shared else 0)
        starting, running, started = deque[Arm](), list[Arm](), 0
        for arm in arms:
            if self._name(arm) in self._workers:
                running.append(arm)
                continue
            if len(starting) == at_once:
                self._opened(starting.popleft(), deadline)
            self._start(arm)
            starting.append(arm)
            started += 1
        if started % cores:
            on_free_core()
        for arm in (*starting, *running):
            self._opened(arm, deadline)

    def _start(self, arm: Arm) -> None:
        """Start the worker of the arm, if it does not run."""
        if (name := self._name(arm)) not in self._workers:
            self._phase(f"starting {arm.name}")
            log = self._logs / f"{name.replace('/', '_')}.log" if self._logs else None
            cpus = resources.cores_for(arm.parsed_device)
            self._workers[name] = Worker(arm, cpus, self._memory_bytes, log, self._spent, self.gradients, self.forks)

    def _opened(self, arm: Arm, deadline: float) -> None:
        """Wait until the worker has started, or note why it did not."""
        self._start(arm)  # another arm may have found that it needs a worker of its own, or that the common one fails
        worker = self._workers[name := self._name(arm)]
        try:
            opened = worker.open(self._timeout_s, deadline)
        except WorkerFailedError as failure:
            del self._workers[name]
            self.failures[arm.id] = failure
        else:
            if name != arm.id and not opened.changes_backend:
                self._apart.add(name)
                self._workers[arm.id] = self._workers.pop(name)
        if worker.opened:
            self.environments[arm.id] = worker.opened.environment

    def terminate(self, arm: Arm) -> None:
        """End the worker of this arm; its next group gets a new one."""
        if worker := self._workers.pop(self._name(arm), None):
            worker.terminate()

    def terminate_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()  # Linux frees the memory of all of them at once
        for worker in self._workers.values():
            worker.terminate()
        self._workers.clear()


def _environment(arm: Arm | None, threads: int, temporary: str) -> dict[str, str]:
    """The variables of this process, of the device and of the arm, with attnbench importable by this interpreter.

    `temporary`: the worker's own folder of temporary files, since a killed process removes none.
    """
    device = arm.parsed_device if arm else Device(kind="cpu", threads=max(threads, 1))
    variables = {**os.environ, **worker_environment.arm_environment(device), **dict(arm.env if arm else ())}
    if variables.get("HOME") == user_folders.NO_HOME:
        del variables["HOME"]  # compilers cache their kernels
    variables["PYTHONPATH"] = os.pathsep.join([*_path(arm), *filter(None, [variables.get("PYTHONPATH", "")])])
    variables.setdefault("TORCHINDUCTOR_CACHE_DIR", _inductor_cache())
    variables["TMPDIR"] = temporary
    # Inductor compiles in the worker itself: its pool of processes would outlive a kill and disturb the other arms.
    variables.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    return variables


def _path(arm: Arm | None) -> tuple[str, ...]:
    """The folders of the arm, and the one of this attnbench unless the arm has another interpreter."""
    folders = map(os.path.abspath, arm.path) if arm else ()  # the worker has another working directory
    return (*folders, *(() if arm and arm.python else (ROOT,)))


def _own_root(arm: Arm | None) -> str:
    """The folder of this attnbench, if the worker imports this one."""
    other = arm and (arm.python or any((Path(folder) / "attnbench").exists() for folder in arm.path))
    return "" if other else ROOT


def _inductor_cache() -> str:
    """The folder in which torch caches compiled kernels by default, outside the temporary folder of a worker."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid_{os.getuid()}"
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


def _system_oom_kills() -> int:
    """How many processes Linux has killed for lack of memory since boot; 0 where it does not count them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
