"""Runs what README.md shows, as written, and checks the time that it states: `python -m tools.readme [OUT]`.

A time is the end of a command's comment, as in `# a first table (1 min)`, and a bound on two cores; the Python snippet
has that of the sentence before it. The result is stored in `results/reference/readme.json`, or OUT. Exit code 1 if a
command fails or takes longer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from attnbench import __version__
from attnbench.machine import hardware, resources

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
STORED = ROOT / "results" / "reference" / "readme.json"
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
TIME = re.compile(r"\((\d+) (s|min)\)$")
KERNEL = "my_kernel.py"


class Command(msgspec.Struct, frozen=True):
    """One command of the README, or its Python program."""

    text: str
    limit_s: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended."""

    text: str
    seconds: float
    code: int

    def verdict(self, limit_s: int) -> str:
        """`ok`, or what is wrong."""
        if self.code:
            return f"failed with code {self.code}"
        return "ok" if self.seconds <= limit_s else "too long"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The stored result."""

    date: str
    version: str
    machine: str
    outcomes: tuple[Outcome, ...]


def commands(text: str = TEXT) -> Iterator[Command]:
    """Every `attnbench` command with its time, and the program, in the order of the text."""
    for block in BLOCK.finditer(text):
        language, body = block.groups()
        if language == "sh":
            for line in body.splitlines():
                if line.startswith("attnbench"):
                    command, _, comment = line.partition("#")
                    yield Command(command.strip(), _limit(comment, line))
        elif f"# {KERNEL}" not in body:
            before = text[: block.start()].rstrip().rstrip(":")
            yield Command(body, _limit(before, "the Python snippet"))


def kernel(text: str = TEXT) -> str:
    """The file `my_kernel.py` that the README shows."""
    return next(body for _, body in BLOCK.findall(text) if f"# {KERNEL}" in body)


def _limit(text: str, place: str) -> int:
    stated = TIME.search(text.strip())
    if stated is None:
        raise SystemExit(f"README.md: no time is stated: {place}")
    return int(stated[1]) * (60 if stated[2] == "min" else 1)


def run(chosen: Iterable[Command], folder: Path) -> Iterator[Outcome]:
    """Run the commands one after another in the folder, as a user does."""
    (folder / KERNEL).write_text(kernel(), encoding="utf-8")
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in chosen:
        program = command.text.startswith("import")
        arguments = [sys.executable, "-c", command.text] if program else ["bash", "-c", command.text]
        begin = time.monotonic()
        done = subprocess.run(arguments, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        seconds = round(time.monotonic() - begin, 1)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
        yield Outcome(text=command.text, seconds=seconds, code=done.returncode)


def main() -> int:
    """Run all, print a line for each, and store the result."""
    chosen = list(commands())
    outcomes, failed = [], False
    with tempfile.TemporaryDirectory(prefix="attnbench-") as folder:
        for outcome, command in zip(run(chosen, Path(folder)), chosen, strict=True):
            outcomes.append(outcome)
            verdict = outcome.verdict(command.limit_s)
            failed |= verdict != "ok"
            print(
                f"{verdict}  {outcome.seconds:.1f} of {command.limit_s} s  {command.text.splitlines()[0]}", flush=True
            )
    record = Record(
        date=datetime.now(UTC).strftime("%Y-%m-%d"), version=__version__,
        machine=f"{hardware.cpu_model() or 'unknown CPU'}, {len(resources.available_cores())} cores",
        outcomes=tuple(outcomes),
    )  # fmt: skip
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else STORED
    file.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    print(file)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
