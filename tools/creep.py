"""A kernel that becomes 1 % slower with each of ten commits: what single gates, one over all commits, and history see.

`python tools/creep.py FOLDER` makes a repository in FOLDER, gates each commit against the one before, the last against
the first, and prints the trend. The work is real: each commit computes one head more than the one before, under the
same label.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COMMITS = 10
HEADS = 100
CASE = ("-b", "kernel.py:attend", "--seq", "192", "--heads", str(HEADS), "--mask", "none")
KERNEL = """
import torch
import torch.nn.functional as F

HEADS, MORE = {heads}, {more}

def attend(q, k, v, causal=False, scale=None):
    q, k, v = (torch.cat([each[:, :MORE], each], dim=1) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)[:, MORE:].contiguous()
"""
TIME = re.compile(r"\d (us|ms|s) ")
VERDICT = re.compile(r"\b(regressed|same|inconclusive|improved)\b")


def plant(folder: Path) -> None:
    """Make the repository: a first commit, and ten that add a head each."""
    folder.mkdir(parents=True)
    _git(folder, "init", "-q", "-b", "main")
    for more in range(COMMITS + 1):
        (folder / "kernel.py").write_text(KERNEL.format(heads=HEADS, more=more))
        _git(folder, "add", "kernel.py")
        message = f"{more} heads more than {HEADS}"
        _git(folder, "-c", "user.name=attnbench", "-c", "user.email=none@example.com", "commit", "-qm", message)


def gates(folder: Path) -> Iterator[str]:
    """A line for each gate, then the trend."""
    for more in range(1, COMMITS + 1):
        _git(folder, "checkout", "-q", f"main~{COMMITS - more}")
        yield f"commit {more:2}, --against 1: {_gate(folder, 1)}"
    _git(folder, "checkout", "-q", "main")
    for commits in (COMMITS // 2, COMMITS):
        yield f"commit {COMMITS}, --against {commits}: {_gate(folder, commits, trend=False)}"
    yield _attnbench(folder, "history", "history.jsonl")


def _gate(folder: Path, commits: int, trend: bool = True) -> str:
    """The row of the time of the only case."""
    history = ("--history", "history.jsonl") if trend else ()
    printed = _attnbench(folder, "-q", "gate", *CASE, "--against", str(commits), "--all", *history)
    rows = [" ".join(line.split()) for line in printed.splitlines() if VERDICT.search(line)]
    return next((row for row in rows if TIME.search(row)), printed)  # memory has rows of its own, where it grew


def _attnbench(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "attnbench", *arguments]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=os.environ).stdout


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    plant(where)
    for line in gates(where):
        print(line, flush=True)
