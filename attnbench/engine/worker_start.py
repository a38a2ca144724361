"""Start worker processes: as forks of a process that has imported torch where this is possible, else with Python.

A fork starts in milliseconds; Python and torch take seconds of CPU for each process. Fork servers are shared by all
workers of this process that need the same interpreter and the same variables at the start of Python.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, cast

import msgspec

from attnbench.worker import fork_server

# Variables that Python and torch do not read when they are imported; a fork has its own.
OF_A_WORKER = frozenset(("TMPDIR", "PYTHONPATH", "PWD", "OLDPWD", "TORCHINDUCTOR_CACHE_DIR", "COLUMNS", "LINES"))
PREFIXES = ("ATTNBENCH_", "XDG_", "PYTEST_")
OWN_MODULES = ("attnbench.worker.session", "attnbench.machine.device.cpu")
OF_GRADIENTS = ("torch.fx.experimental.symbolic_shapes",)  # torch imports it for a first backward pass
MAX_SERVERS = 4  # that are idle, each with the memory of torch
START_S = 0.2  # until a fork that is to be killed has begun


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with."""

    executable: str
    descriptors: tuple[int, int, int]  # to read requests, to write replies, for the output
    environment: Mapping[str, str]  # with `path` in PYTHONPATH
    path: tuple[str, ...] = ()  # absolute folders of modules that this worker adds to PYTHONPATH
    root: str = ""  # the one of them that has the attnbench of this process, if the worker imports that one
    cwd: str | None = None
    forks: bool = True  # whether it may be a fork: a GPU allows none
    gradients: bool = False  # it makes a backward pass


class Process(Protocol):
    """A worker process, as far as its owner needs it; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """The number of the process, and of its group. Raises ProcessLookupError where it never began."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal. Raises ProcessLookupError."""


def start(options: Start) -> Process:
    """Start a worker process in a session of its own: Ctrl-C does not reach it, and all of it can be killed."""
    if options.forks and sys.platform == "linux":
        return _server(options).fork(options)
    command = [options.executable, *fork_server.FLAGS, "-m", fork_server.MODULE, *map(str, options.descriptors[:2])]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=options.descriptors[2], stderr=options.descriptors[2],
        pass_fds=options.descriptors[:2], env=options.environment, cwd=options.cwd, start_new_session=True,
    )  # fmt: skip


class ForkServer:
    """A process that has imported torch, and forks workers. It ends with this process, and its workers end with it."""

    def __init__(self, options: Start, environment: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pending = deque[ForkedProcess]()  # in the order of their requests
        self.workers = 0  # that are not known to have ended
        self.imports = True  # until its first answer
        self.started = time.monotonic()
        modules = ("torch", *(OWN_MODULES if options.root else ()), *(OF_GRADIENTS if options.gradients else ()))
        with theirs:
            self._process = subprocess.Popen(
                [options.executable, *fork_server.FLAGS, fork_server.__file__, str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL, stdout=options.descriptors[2], stderr=options.descriptors[2],
                pass_fds=(theirs.fileno(),), env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def runs(self) -> bool:
        """Whether it can fork more workers."""
        return self._process.poll() is None

    def fork(self, options: Start) -> ForkedProcess:
        """Ask for a worker; the answer is read when it is needed, after the imports."""
        request = {
            "variables": {name: value for name, value in options.environment.items() if _of_a_worker(name)},
            "path": [folder for folder in options.path if folder != options.root],
            "cwd": options.cwd or _here(),
        }
        worker = ForkedProcess(self)
        with contextlib.suppress(OSError):  # it has ended, as the worker will report
            socket.send_fds(self._control, [json.dumps(request).encode()], options.descriptors)
        self._pending.append(worker)
        self.workers += 1
        return worker

    def wait_for(self, worker: ForkedProcess, seconds: float | None) -> bool:
        """Whether the worker has begun, waiting so long for its answer; None: until the server answers or ends."""
        while worker in self._pending:
            if not (answer := self._receive(seconds)):
                return False
            if "pid" in answer:  # another one is of a wait that was interrupted
                self._pending.popleft().began(answer["pid"], answer["ready_at"])
                self.imports = False
        return True

    def exit_code(self, pid: int, seconds: float | None) -> int | None:
        """The exit code of a worker; None if it still runs after so many seconds."""
        while self._pending and self.wait_for(self._pending[-1], None):
            pass
        with contextlib.suppress(OSError):
            self._control.send(json.dumps({"wait": pid, "seconds": seconds}).encode())
        while answer := self._receive(None):
            if answer.get("waited") == pid:
                return cast("int | None", answer["code"])
        return self.death()

    def death(self) -> int:
        """The exit code of the server, which its workers share."""
        return self._process.wait()

    def end(self) -> None:
        """Kill it and its workers."""
        if self.runs:  # else its number may be that of another process
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._control.close()

    def _receive(self, seconds: float | None) -> dict[str, Any]:
        """The next answer; empty where none comes in time, or the server has ended."""
        with contextlib.suppress(OSError):
            self._control.settimeout(seconds)
            answer = self._control.recv(fork_server.MAX_BYTES)
            return dict(json.loads(answer)) if answer else {}
        return {}


class ForkedProcess:
    """A worker that a fork server has forked, or will fork when it has imported torch."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._asked = time.monotonic()
        self._pid: int | None = None
        self._ready_at = self._asked
        self._code: int | None = None

    def began(self, pid: int, ready_at: float) -> None:
        """Note what the server answered; `ready_at`: when its imports ended, on time.monotonic()."""
        self._pid, self._ready_at = pid, ready_at
        if pid == fork_server.NO_PROCESS:
            self._pid, self._code = None, 1
            self._server.workers -= 1

    @property
    def shared_s(self) -> float:
        """Seconds of the imports of the server that passed before this worker was asked for."""
        self._server.wait_for(self, None)
        return min(self._ready_at, self._asked) - self._server.started

    @property
    def pid(self) -> int:
        """The number of the process, and of its group. Raises ProcessLookupError where it never began."""
        if not self._server.wait_for(self, START_S if self._server.imports else None):
            self._server.end()  # it has ended, or it imports and no worker of it runs
        if self._pid is None:
            raise ProcessLookupError
        return self._pid

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        imports = not self._server.wait_for(self, timeout) and timeout is not None and self._server.runs
        if self._code is None:
            code = None if imports else self._exit_code(timeout)
            if code is None:
                raise subprocess.TimeoutExpired(fork_server.MODULE, timeout or 0.0)
            self._code = code
            self._server.workers -= 1
        return self._code

    def _exit_code(self, timeout: float | None) -> int | None:
        return self._server.death() if self._pid is None else self._server.exit_code(self._pid, timeout)

    def send_signal(self, sig: int, /) -> None:
        """Send a signal. Raises ProcessLookupError."""
        if self._code is not None:  # its number may be that of another process
            raise ProcessLookupError
        os.kill(self.pid, sig)


def shared_s(process: Process) -> float:
    """Seconds of imports that the process has from others, and that passed before it was asked for."""
    return process.shared_s if isinstance(process, ForkedProcess) else 0.0


def _of_a_worker(variable: str) -> bool:
    return variable in OF_A_WORKER or variable.startswith(PREFIXES)


def _here() -> str | None:
    """The working directory; None if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


_servers: dict[tuple[object, ...], ForkServer] = {}  # the one used last comes last


def _server(options: Start) -> ForkServer:
    """The server for this interpreter and these variables, started if none runs."""
    variables = {name: value for name, value in options.environment.items() if not _of_a_worker(name)}
    inherited = [options.root, os.environ.get("PYTHONPATH", "")]
    environment = {**variables, "PYTHONPATH": os.pathsep.join(filter(None, inherited))}
    key = (options.executable, *sorted(environment.items()))
    server = _servers.pop(key, None)
    if server is None or not server.runs:
        _make_room()
        server = ForkServer(options, environment)
    _servers[key] = server
    return server


def _make_room() -> None:
    """End servers that no worker needs, the one used longest ago first."""
    for key, server in list(_servers.items()):
        if not server.runs or (len(_servers) >= MAX_SERVERS and not server.workers):
            _servers.pop(key).end()


@atexit.register
def end_all() -> None:
    """End all fork servers."""
    while _servers:
        _servers.popitem()[1].end()
