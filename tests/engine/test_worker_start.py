"""Workers that are forks of a process with torch are like those that Python starts anew."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench.engine import worker_process, worker_start
from attnbench.engine.worker_process import Log, Worker, WorkerFailedError
from attnbench.records.arm import Arm
from attnbench.records.result import Status
from attnbench.worker import fork_server
from tests.waiting import wait_for_end

pytestmark = [pytest.mark.workers, pytest.mark.skipif(sys.platform != "linux", reason="only Linux has fork servers")]

TOLD = "its process: "
KERNEL = f"""
import json, os, resource, signal, sys, torch, numpy
links = [f"/proc/self/fd/{{name}}" for name in os.listdir("/proc/self/fd")]
open_files = sorted(os.readlink(link).partition(":")[0] for link in links if os.path.lexists(link))
facts = dict(path=sys.path, cwd=os.getcwd(), environment=dict(os.environ), argv=sys.argv[0], flags=str(sys.flags),
             stdin=os.readlink("/proc/self/fd/0"), files=open_files, pid=os.getpid(), parent=os.getppid(),
             session=os.getsid(0) == os.getpid(), group=os.getpgid(0) == os.getpid(),
             threads=torch.get_num_threads(), numpy=numpy.__file__, limits=resource.getrlimit(resource.RLIMIT_DATA),
             handlers=[str(signal.getsignal(number)) for number in (1, 2, 15)],
             address=torch.empty(1 << 20).data_ptr(), score=open("/proc/self/oom_score_adj").read(),
             seed=torch.initial_seed(), numpy_seed=int(numpy.random.get_state()[1][1]))
print({TOLD!r} + json.dumps(facts))

def attend(q, k, v, *, causal, scale): ...
"""
OF_EACH = ("pid", "seed", "numpy_seed")  # what differs between any two processes


@pytest.fixture(scope="module", autouse=True)
def _servers_end() -> Iterator[None]:
    yield
    worker_start.end_all()


def told(folder: Path, arm: Arm) -> dict[str, object]:
    """What the kernel found in its worker, without the worker's own temporary folder."""
    worker = Worker(arm, (), 1 << 40, folder / "log")
    try:
        worker.open(timeout_s=600)
    finally:
        worker.terminate()
    line = next(line for line in (folder / "log").read_text().splitlines() if line.startswith(TOLD))
    facts: dict[str, object] = json.loads(line.removeprefix(TOLD))
    environment = facts["environment"]
    assert isinstance(environment, dict)
    assert environment.pop("TMPDIR").startswith("/")
    return facts


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    """A kernel in a source tree of its own."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "kernel.py").write_text(KERNEL)
    return Arm(backend="kernel.py:attend", device="cpu:threads=1", path=(str(tmp_path / "tree"),))


def test_a_fork_is_like_a_process_that_python_starts(tmp_path: Path, arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forked, other = told(tmp_path, arm), told(tmp_path, arm)
    monkeypatch.setattr(sys, "platform", "linux without fork servers")
    started = told(tmp_path, arm)
    assert started["parent"] == os.getpid() != forked["parent"] == other["parent"]
    assert all(len({forked[name], other[name], started[name]}) == 3 for name in OF_EACH)
    for name in (*OF_EACH, "parent", "address"):
        del forked[name], started[name]
    assert forked == started


def test_a_tree_with_a_module_of_the_same_name_gets_its_own(tmp_path: Path, arm: Arm) -> None:
    tree = Path(arm.path[0])
    (tree / "torchgen").mkdir()  # a folder without __init__.py is no module
    assert told(tmp_path, arm)["cwd"] == str(tree)
    (tree / "sympy.py").write_text("raise SystemExit('a sympy of the tree')")
    kernel = (tree / "kernel.py").read_text()
    (tree / "kernel.py").write_text(f"try:\n    import sympy\nexcept SystemExit as error:\n    print(error)\n{kernel}")
    told(tmp_path, arm)
    assert "a sympy of the tree" in (tmp_path / "log").read_text()


def test_forks_do_not_have_equal_addresses(tmp_path: Path, arm: Arm) -> None:
    assert len({told(tmp_path, arm)["address"] for _ in range(3)}) > 1


def opened() -> Worker:
    worker = Worker(Arm(backend="naive", device="cpu:threads=1"), (), 0)
    worker.open(timeout_s=600)
    return worker


def test_what_ended_a_fork_is_known() -> None:
    for sent in (signal.SIGKILL, signal.SIGSEGV):
        worker = opened()
        os.kill(worker._process.pid, sent)
        with pytest.raises(WorkerFailedError, match=f"died of {sent.name}"):
            worker._receive(60.0, "import", math.inf)
        assert worker._process.wait() == -sent
        with pytest.raises(ProcessLookupError):
            worker._process.send_signal(signal.SIGUSR1)  # its number may be that of another process now


def test_what_a_crashed_fork_has_started_is_killed_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, complete = Log.text, list[bool]()

    def end(log: Log) -> str:
        written = text(log)
        complete.append(not log._thread.is_alive())
        return written

    monkeypatch.setattr(Log, "text", end)
    monkeypatch.setattr(worker_process, "LOG_LIMIT_S", 60.0)  # a busy machine is slow
    kernel = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)

def attend(q, k, v, *, causal, scale): ...
"""
    (tmp_path / "kernel.py").write_text(kernel)
    worker = Worker(Arm(backend=f"{tmp_path}/kernel.py:attend", device="cpu:threads=1"), (), 0, tmp_path / "log")
    with pytest.raises(WorkerFailedError, match="died of SIGKILL"):
        worker.open(timeout_s=600)
    assert complete
    assert all(complete)  # its child did not hold the pipe open
    child = next(line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("child"))
    wait_for_end([int(child.split()[1])])


class Scripted(worker_start.ForkServer):
    """A fork server whose answers are made here; it has no process."""

    def __init__(self, *answers: dict[str, object]) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pending = deque[worker_start.ForkedProcess]()
        self.workers, self.imports, self.started = 0, True, 0.0
        with other:
            for answer in answers:
                other.send(json.dumps(answer).encode())

    @property
    def runs(self) -> bool:
        return False

    def asked(self) -> worker_start.ForkedProcess:
        """A worker that waits for its answer."""
        self._pending.append(worker := worker_start.ForkedProcess(self))
        self.workers += 1
        return worker


def test_the_answer_of_an_interrupted_wait_is_that_of_no_other_worker() -> None:
    stale: dict[str, object] = {"waited": 7, "code": 0}
    server = Scripted(stale, {"pid": 8, "ready_at": 1.0}, stale, {"waited": 8, "code": -9})
    worker = server.asked()
    assert (worker.pid, worker.wait()) == (8, -9)
    assert not server.workers


def test_where_the_system_allows_no_fork_the_worker_has_ended() -> None:
    server = Scripted({"pid": fork_server.NO_PROCESS, "ready_at": 1.0})
    worker = server.asked()
    assert worker.wait() == 1
    assert not server.workers
    with pytest.raises(ProcessLookupError):
        _ = worker.pid


def test_a_server_that_cannot_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptors: list[int]) -> int:
        raise OSError(errno.EAGAIN, "too many processes")

    monkeypatch.setattr(fork_server, "fork", refuse)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(ours, [b"{}"], [0])
        ours.shutdown(socket.SHUT_WR)
        assert fork_server.serve(theirs) is None
        assert json.loads(ours.recv(1000))["pid"] == fork_server.NO_PROCESS


def test_waiting_for_a_fork_has_a_limit() -> None:
    worker = opened()
    with pytest.raises(subprocess.TimeoutExpired):
        worker._process.wait(timeout=0.01)
    worker.terminate()
    assert worker._process.wait() == -signal.SIGKILL


def test_workers_end_with_their_server_and_the_next_one_has_another() -> None:
    worker = opened()
    process = worker._process
    assert isinstance(process, worker_start.ForkedProcess)
    server = process._server
    os.kill(server._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerFailedError, match="died of SIGKILL") as failure:
        worker._receive(60.0, "import", math.inf)
    assert failure.value.status is Status.CRASHED
    after = opened()
    assert isinstance(after._process, worker_start.ForkedProcess)
    assert after._process._server is not server
    after.terminate()


def test_a_worker_is_killed_while_its_server_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THIS_TEST", "1")  # variables of its own: another server
    worker = Worker(Arm(backend="naive", device="cpu:threads=1"), (), 0)
    worker.terminate()
    assert worker._process.wait() == -signal.SIGKILL


def test_the_imports_of_the_server_count_for_each_of_its_workers() -> None:
    first = opened()
    second = opened()
    first.terminate()
    second.terminate()
    assert first.import_s is not None
    assert second.import_s is not None
    assert isinstance(second._process, worker_start.ForkedProcess)
    assert second.import_s > second._process.shared_s > 0.0


def test_idle_servers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_start, "START_S", 0.01)  # they are killed while they import, as after 0.2 s
    used = opened()
    for number in range(worker_start.MAX_SERVERS + 2):
        monkeypatch.setenv("OF_THIS_TEST", str(number))
        Worker(Arm(backend="naive", device="cpu:threads=1"), (), 0).terminate()
    assert len(worker_start._servers) <= worker_start.MAX_SERVERS
    assert isinstance(used._process, worker_start.ForkedProcess)
    assert used._process._server.runs
    used.terminate()
    worker_start.end_all()
    assert not worker_start._servers
