"""Run command lines of a table in every state of their streams, each in a fork of this process; print the outcomes.

`python -m tests.cli.every_state FOLDER COMMAND ...`, in the directory of the repository. A fork needs no start of an
interpreter and no imports. Signals go to the fork only, and come with the first write of the command.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pwd
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from attnbench import cli

RUNS = Path(__file__).parents[1] / "stored" / "0.1.0"
RUN, OTHER, GATE = str(RUNS / "run-a"), str(RUNS / "run-b"), str(RUNS / "gate")
# A GPU backend on a CPU: the whole way of a command, with a refusal in place of a worker.
REFUSED = ("--seq", "16", "-b", "flash-attn:2", "--device", "cpu")
# By command: a command line, and its exit code with streams that work. Each is fast, and starts no worker.
COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {
    "": (("--version",), 0),
    "run": (("run", *REFUSED), 6),
    "report": (("report", "missing"), 2),
    "show": (("show", RUN), 0),
    "plot": (("plot", "missing"), 2),
    "viz": (("viz", "causal", "--seq", "64"), 0),
    "merge": (("merge", RUN, OTHER, "-o", "merged"), 0),
    "export": (("export", RUN, "--to", "csv"), 0),
    "compare": (("compare", RUN, OTHER), 0),
    "fleet": (("fleet", RUN), 4),
    "gate": (("gate", GATE), 3),
    "bisect": (("bisect", "HEAD", "HEAD", *REFUSED), 2),
    "history": (("history", "missing.jsonl"), 2),
    "verify": (("verify", *REFUSED), 6),
    "calibrate": (("calibrate", "--show", "--device", "cpu"), 6),
    "scaling": (("scaling", *REFUSED), 6),
    "claims": (("claims", "--run", RUN), 0),
    "profile": (("profile", *REFUSED), 6),
    "tune": (("tune", "--show", "--arch", "sm_90"), 0),
    "replay": (("replay", "chat", "--model", "missing.json", "--simulate-only"), 2),
    "predict": (("predict", RUN, "--check"), 6),
    "query": (("query", "SELECT 1", "missing"), 2),
    "recommend": (("recommend", RUN), 0),
    "corpus": (("corpus", "--list"), 0),
    "explain": (("explain", *REFUSED), 0),
    "help": (("help", "run"), 0),
    "new-backend": (("new-backend", "mine"), 0),
    "doctor": (("doctor", "--quick"), 0),
    "list backends": (("list", "backends"), 0),
    "list suites": (("list", "suites"), 0),
    "list masks": (("list", "masks"), 0),
    "list biases": (("list", "biases"), 0),
    "list weightings": (("list", "weightings"), 0),
    "list metrics": (("list", "metrics"), 0),
    "list devices": (("list", "devices"), 0),
    "baseline save": (("baseline", "save", "name", "missing"), 2),
    "baseline promote": (("baseline", "promote", "missing"), 2),
    "baseline list": (("baseline", "list"), 0),
    "baseline show": (("baseline", "show", "missing"), 4),
    "baseline rm": (("baseline", "rm", "missing"), 4),
    "suite list": (("suite", "list", "missing"), 2),
    "suite show": (("suite", "show", "quick"), 0),
    "suite validate": (("suite", "validate", "quick"), 0),
    "suite schema": (("suite", "schema"), 0),
    "suite from-config": (("suite", "from-config", "missing.json"), 2),
}


class Interrupting(io.FileIO):
    """A file whose first writes send signals to this process."""

    signals: list[signal.Signals] = []

    def write(self, data: object) -> int:
        if self.signals:
            os.kill(os.getpid(), self.signals.pop(0))
        return super().write(data)  # type: ignore[arg-type]


def closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def closed() -> None:
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]  # as Python sets it when it starts


def full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def ascii_only() -> None:
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "ascii")


def no_home() -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)

    def no_line(_: object) -> pwd.struct_passwd:
        raise KeyError("no line in the list of users")

    pwd.getpwuid = no_line


def signals(*numbers: signal.Signals) -> Callable[[], None]:
    def prepare() -> None:
        Interrupting.signals = list(numbers)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(Interrupting(number, "w", closefd=False), "utf-8", write_through=True) for number in (1, 2)
        )

    return prepare


STATES: dict[str, Callable[[], None]] = {
    "plain": lambda: None,
    "closed pipe": closed_pipe,
    "closed stdout": closed,
    "full disk": full_disk,
    "ascii": ascii_only,
    "no home": no_home,
    "SIGTERM": signals(signal.SIGTERM),
    "SIGHUP": signals(signal.SIGHUP),
    "SIGINT": signals(signal.SIGINT),
    "SIGINT twice": signals(signal.SIGINT, signal.SIGINT),
}


def outcome(name: str, state: str, folder: Path) -> dict[str, object]:
    """The exit code, both outputs and the temporary folders that are left, of one command line in one state."""
    folder.mkdir(parents=True)
    child = os.fork()
    if not child:
        os._exit(in_fork(COMMANDS[name][0], STATES[state], folder))
    _, status = os.waitpid(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "stdout": (folder / "stdout").read_text("utf-8", "replace"),
        "stderr": (folder / "stderr").read_text("utf-8", "replace"),
        "left": [path.name for path in (folder / "temporary").iterdir()],
    }


def in_fork(arguments: tuple[str, ...], prepare: Callable[[], None], folder: Path) -> int:
    """What an interpreter does with a command line, from its streams to its last flush."""
    os.chdir(folder)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it
    (folder / "temporary").mkdir()
    os.environ["TMPDIR"], tempfile.tempdir = str(folder / "temporary"), None
    for number, path in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    prepare()
    sys.argv = ["attnbench", *arguments]
    code = 0
    try:
        cli.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:
        code = 120  # as Python ends when its last flush fails
    return code


def import_all(names: Sequence[str], folder: Path) -> None:
    """Run the command lines here, so that no fork has to import anything or to build the parser."""
    out = sys.stdout
    for name in names:
        (folder / "imports" / name).mkdir(parents=True)
        os.chdir(folder / "imports" / name)
        sys.stdout = io.StringIO()
        cli.invoke(list(COMMANDS[name][0]))
    sys.stdout = out


def main(folder: Path, names: Sequence[str]) -> None:
    import_all(names, folder)
    gc.freeze()
    print(json.dumps({
        name: {state: outcome(name, state, folder / f"{state} {name}") for state in STATES} for name in names
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
