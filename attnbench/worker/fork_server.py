"""A process that imports torch once, and forks the workers that need it: `python fork_server.py SOCKET_FD MODULE...`.

A worker goes on from here as `python -m attnbench.worker` would: with its own session, output, variables, working
directory and import path. If its import path would have given it another version of a module that is imported here,
it starts Python again. `attnbench.engine.worker_start` is the other end of the socket; each message is one JSON object.

This file runs as a script and imports nothing of attnbench, since base and head of a gate have their own.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import secrets
import select
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

MAX_BYTES, MAX_FDS = 1 << 20, 3  # of a message
MODULE = "attnbench.worker"  # what a worker runs
# Of its Python; -u: what a kernel prints just before it crashes, or is found wrong, reaches the log.
FLAGS = ("-P", "-u")
AT_START = frozenset(("sitecustomize", "usercustomize"))  # imported by Python itself
MAX_SHIFT_PAGES = 4096
NO_PROCESS = -1  # in place of a pid: the system allows no fork


def import_all(modules: Iterable[str]) -> None:
    """Import what workers share. What fails here fails in them too, and they report it."""
    gc.disable()  # an import makes no garbage that is worth a search
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.enable()
    gc.freeze()


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the other end closes; in a forked process, return its request at once."""
    ready_at = time.monotonic()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_BYTES, MAX_FDS)
        if not message:
            return None
        request = json.loads(message)
        if "wait" in request:
            code = exit_code(request["wait"], request["seconds"])
            control.send(json.dumps({"waited": request["wait"], "code": code}).encode())
            continue
        try:
            pid = fork(descriptors)
        except OSError:  # no memory, or too many processes
            pid = NO_PROCESS
        if not pid:
            return {**request, "descriptors": descriptors}
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(json.dumps({"pid": pid, "ready_at": ready_at}).encode())


def fork(descriptors: list[int]) -> int:
    """Fork a session of its own whose output goes to the last descriptor; 0 in the new process, as os.fork."""
    began, begins = os.pipe()
    pid = os.fork()
    if pid:
        os.close(begins)
        os.read(began, 1)  # from now on the whole session can be killed
        os.close(began)
        return pid
    os.close(began)
    os.setsid()
    for standard in (1, 2):
        os.dup2(descriptors[-1], standard)
    os.close(descriptors.pop())
    os.close(begins)
    return 0


def exit_code(pid: int, seconds: float | None) -> int | None:
    """The exit code of a worker as in `subprocess`, negative for a signal; None if it runs after so many seconds."""
    ended = os.pidfd_open(pid)
    try:
        if not select.select([ended], [], [], seconds)[0]:
            return None
    finally:
        os.close(ended)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def become_worker(request: dict[str, Any]) -> None:
    """Be the worker of this request: its variables, working directory, import path, arguments."""
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(request["variables"])
    tempfile.tempdir = None  # TMPDIR may differ
    if request["cwd"]:
        os.chdir(request["cwd"])
    arguments = list(map(str, request["descriptors"]))
    if any(map(shadows, request["path"])):
        for descriptor in request["descriptors"]:
            os.set_inheritable(descriptor, True)
        os.execv(sys.executable, [sys.executable, *FLAGS, "-m", MODULE, *arguments])
    sys.path[:0] = request["path"]
    importlib.invalidate_caches()
    differ()
    sys.argv = [MODULE, *arguments]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def shadows(folder: str) -> bool:
    """Whether the folder has another version of a module that is imported here."""
    try:
        entries = {name.partition(".")[0] for name in os.listdir(folder)}
    except OSError:
        return False
    imported = AT_START | {name for name in sys.modules if "." not in name and name != "__main__"}
    found = (PathFinder.find_spec(name, [folder]) for name in entries & imported)
    return any(spec and spec.origin for spec in found)  # a folder without __init__.py comes after all of sys.path


def differ() -> None:
    """Make this process differ from other forks, as new processes do: seeds, and the addresses of what it allocates."""
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    pages = secrets.randbelow(MAX_SHIFT_PAGES)
    ctypes.CDLL(None).malloc(ctypes.c_size_t(pages * os.sysconf("SC_PAGE_SIZE")))


def main() -> None:
    """Import, then serve; a forked worker leaves the loop with its request."""
    runpy.run_path(str(Path(__file__).with_name("process.py")))["die_with_parent"]()
    control = socket.socket(fileno=int(sys.argv[1]))
    import_all(sys.argv[2:])
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):  # the first worker's output, which ends with it
        os.dup2(nowhere, standard)
    os.close(nowhere)
    request = serve(control)
    control.close()
    if request:
        become_worker(request)


if __name__ == "__main__":
    main()
