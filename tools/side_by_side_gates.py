"""Other tools on the changes that gate_eval plants, each as its users run it. Resumable.

`python -m tools.side_by_side_gates run FILE MINUTES` compares base with head by each tool in turn, for that many
minutes, and appends a line for each comparison to FILE. Then, as `python -m tools.side_by_side_gates table FILE`, it
prints false alarms, power and wall times. A comparison has four cases. In every second one base and head are equal
(A/A); in the others head computes 2, 4 and 12 more heads than the 40 of base in three cases, another three each time.
Needs asv, pytest-benchmark and hyperfine; without hyperfine the others are compared.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from attnbench.gate import trees
from attnbench.machine import identity
from tools.gate_eval import HEADS, KERNEL
from tools.rates import wilson

Cell = tuple[int, bool]  # length, causal

MORE = (0, 2, 4, 12)  # heads: 0, 5, 10, 30 % more work
CASES: tuple[Cell, ...] = tuple(product((192, 320), (False, True)))
PROCESS_S = 1.0  # of calls in one process that hyperfine times
MEASURED_S = 1.0  # by each Timer of torch


class ComparedCase(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool said about one case."""

    length: int
    causal: bool
    more: int  # heads that head computes in addition to those of base
    slower: bool  # whether the tool calls head slower


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison of base with head by one tool: a line of the file."""

    tool: str
    version: str
    at: str
    commit: str
    machine: str
    load: float  # average over a minute, when it began
    seconds: float
    cases: list[ComparedCase]

    @property
    def equal(self) -> bool:
        """Whether base and head were the same in every case."""
        return not any(case.more for case in self.cases)


class Tool(NamedTuple):
    """How a tool compares the folders base and head of a folder."""

    version: Callable[[], str]
    compare: Callable[[Path], set[Cell]]  # the cases that it calls slower
    prepare: Callable[[Path], None] = lambda folder: None  # not timed: users do it once


def planted(number: int) -> dict[Cell, int]:
    """The additional heads of each case in the comparison of this number: none in every second one."""
    return {case: MORE[(place + number // 2) % len(MORE)] * (number % 2) for place, case in enumerate(CASES)}


def write_sides(folder: Path, more: dict[Cell, int]) -> None:
    """Write base/kernel.py and head/kernel.py."""
    for name, heads in (("base", dict.fromkeys(more, 0)), ("head", more)):
        (folder / name).mkdir()
        (folder / name / "kernel.py").write_text(KERNEL.format(heads=HEADS, more=heads))


def call(command: Sequence[str | Path], folder: Path, codes: Sequence[int] = (0,), **variables: str) -> str:
    """Run a command on one thread; return what it printed. Raises SystemExit, with that, for other exit codes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


# -- attnbench ---------------------------------------------------------------------------------------------------------


def gate(folder: Path) -> set[Cell]:
    """`attnbench gate`, whose verdict on the time is `regressed`."""
    lengths = sorted({length for length, _ in CASES})
    command = [
        sys.executable,
        "-m",
        "attnbench",
        "-q",
        "gate",
        "-b",
        "kernel.py:attend",
        "--heads",
        str(HEADS),
        "--mask",
    ]
    command += ["none,causal", "--seq", ",".join(map(str, lengths)), "--base-path", folder / "base", "--json"]
    output = call([*command, "-o", folder / "run"], folder / "head", codes=(0, 1, 3))
    return regressed(output)


def regressed(output: str) -> set[Cell]:
    """The cases of `gate --json` that are slower; lines of stderr are between its records."""
    records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    labels = [v["label"] for v in records if (v.get("metric"), v.get("outcome")) == ("time_s", "regressed")]
    return {
        (int(length), mask == "causal") for length, mask in re.findall(r" q(\d+) .* (none|causal) ", "\n".join(labels))
    }


# -- pytest-benchmark --------------------------------------------------------------------------------------------------

PYTEST = """
import kernel
import pytest
import torch

@pytest.mark.parametrize(("length", "causal"), {cases})
def test_attend(benchmark, length, causal):
    q, k, v = (torch.randn(1, {heads}, length, 64) for _ in range(3))
    benchmark(kernel.attend, q, k, v, causal=causal)
"""


def pytest_benchmark(folder: Path) -> set[Cell]:
    """Save a run of base, then compare that of head with it by `--benchmark-compare-fail=mean:5%`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:attnbench", "test_kernel.py"]
    command += [f"--benchmark-storage={folder / 'saved'}", "--rootdir=."]
    for side in ("base", "head"):
        (folder / side / "test_kernel.py").write_text(PYTEST.format(cases=list(CASES), heads=HEADS))
    call([*command, "--benchmark-save=base"], folder / "base")
    options = ("--benchmark-compare", "--benchmark-compare-fail=mean:5%")
    return failed_comparisons(call([*command, *options], folder / "head", codes=(0, 1)))


def failed_comparisons(output: str) -> set[Cell]:
    """The cases whose mean grew by more than pytest-benchmark allows."""
    names = re.findall(r"test_attend\[(\d+)-(True|False)\].* - Field 'mean' has failed", output)
    return {(int(length), causal == "True") for length, causal in names}


# -- asv ---------------------------------------------------------------------------------------------------------------

ASV = """
import os
import sys

sys.path.append({packages!r})  # torch, for the environment of asv
sys.path.insert(0, os.path.join(os.environ["ASV_ENV_DIR"], "project"))  # the commit that is measured

import kernel
import torch

class Attention:
    params = {params}
    param_names = ["length", "causal"]

    def setup(self, length, causal):
        self.inputs = [torch.randn(1, {heads}, length, 64) for _ in range(3)]

    def time_attend(self, length, causal):
        kernel.attend(*self.inputs, causal=causal)
"""
ENVIRONMENT = Path(tempfile.gettempdir()) / "attnbench-asv"  # of asv; it takes a minute to make


def asv_variables() -> dict[str, str]:
    """A home for the description of the machine, so that the user's stays as it is."""
    ENVIRONMENT.mkdir(exist_ok=True)
    return {"HOME": str(ENVIRONMENT)}


def prepare_asv(folder: Path) -> None:
    """Write the project as two commits, and make the environment."""
    import torch

    project = folder / "project"
    (project / "benchmarks").mkdir(parents=True)
    (project / "benchmarks" / "__init__.py").touch()
    lengths = sorted({length for length, _ in CASES})
    packages = str(Path(torch.__file__).parent.parent)
    text = ASV.format(params=[lengths, [False, True]], heads=HEADS, packages=packages)
    (project / "benchmarks" / "attention.py").write_text(text)
    configuration = {
        "version": 1, "project": "kernel", "repo": ".", "branches": ["main"], "environment_type": "virtualenv",
        "pythons": [f"{sys.version_info[0]}.{sys.version_info[1]}"], "env_dir": str(ENVIRONMENT / "env"),
        "build_command": [], "install_command": [], "uninstall_command": [],
    }  # fmt: skip
    (project / "asv.conf.json").write_text(json.dumps(configuration))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    call([*git, "init", "-q", "-b", "main"], project)
    for side in ("base", "head"):
        shutil.copy(folder / side / "kernel.py", project)
        call([*git, "add", "."], project)
        call([*git, "commit", "-q", "--allow-empty", "-m", side], project)
    call([sys.executable, "-m", "asv", "machine", "--yes"], project, **asv_variables())
    # asv 0.6 ends with 1 here, and prints its environments.
    call([sys.executable, "-m", "asv", "setup"], project, codes=(0, 1), **asv_variables())


def asv_continuous(folder: Path) -> set[Cell]:
    """`asv continuous`, which marks with + what is worse by its factor of 1.1."""
    command = [sys.executable, "-m", "asv", "continuous", "main~1", "main"]
    return worsened(call(command, folder / "project", codes=(0, 1), **asv_variables()))


def worsened(output: str) -> set[Cell]:
    """The rows of asv's table that are worse."""
    if "failed" in output:
        raise SystemExit(output)
    rows = re.findall(r"^\| \+ .*time_attend\((\d+), (True|False)\)", output, re.MULTILINE)
    return {(int(length), causal == "True") for length, causal in rows}


# -- hyperfine ---------------------------------------------------------------------------------------------------------

PROCESS = """
import sys
import time

sys.path.insert(0, sys.argv[1])
import kernel
import torch

length, causal, calls = int(sys.argv[2]), sys.argv[3] == "True", int(sys.argv[4])
q, k, v = (torch.randn(1, {heads}, length, 64) for _ in range(3))
start = time.perf_counter()
for _ in range(calls):
    kernel.attend(q, k, v, causal=causal)
print((time.perf_counter() - start) / calls)
"""


def hyperfine(folder: Path) -> set[Cell]:
    """`hyperfine BASE HEAD` for each case: head is slower where the printed ratio is above 1 by more than its error."""
    script = folder / "process.py"
    script.write_text(PROCESS.format(heads=HEADS))
    slower = set()
    for length, causal in CASES:
        python = [sys.executable, script.name]
        call_s = float(call([*python, "base", str(length), str(causal), "20"], folder))
        words = [str(length), str(causal), str(max(1, round(PROCESS_S / call_s)))]
        sides = [" ".join([*python, side, *words]) for side in ("base", "head")]
        if head_slower(
            call(["hyperfine", "--style", "basic", "--warmup", "1", "-n", "base", "-n", "head", *sides], folder)
        ):
            slower.add((length, causal))
    return slower


def head_slower(output: str) -> bool:
    """Whether hyperfine's summary says that base ran faster, by more than the error that it prints."""
    summary = re.search(r"'?base'? ran\s+([\d.]+) ± ([\d.]+) times faster than '?head", output)
    return bool(summary) and float(summary[1]) - float(summary[2]) > 1


# -- torch.utils.benchmark ---------------------------------------------------------------------------------------------

TIMER = """
import pickle
import sys

sys.path.insert(0, sys.argv[1])
import kernel
import torch
from torch.utils.benchmark import Timer

measured = []
for length, causal in {cases}:
    q, k, v = (torch.randn(1, {heads}, length, 64) for _ in range(3))
    timer = Timer(
        "attend(q, k, v, causal=causal)", globals=dict(attend=kernel.attend, q=q, k=k, v=v, causal=causal),
        label="attention", sub_label=f"{{length}} {{causal}}", description=sys.argv[1],
    )
    measured.append(timer.blocked_autorange(min_run_time={seconds}))
pickle.dump(measured, open(f"{{sys.argv[1]}}.pickle", "wb"))
"""
COMPARE = """
import pickle
from torch.utils.benchmark import Compare

compare = Compare([m for side in ("base", "head") for m in pickle.load(open(f"{side}.pickle", "rb"))])
compare.colorize(rowwise=True)
compare.print()
"""
BEST = "\033[92m"  # the colour of what is within 1 % of the best of its row


def torch_compare(folder: Path) -> set[Cell]:
    """Timers of base in one process, of head in the next; head is slower where Compare does not mark it as best."""
    (folder / "timer.py").write_text(TIMER.format(cases=list(CASES), heads=HEADS, seconds=MEASURED_S))
    for side in ("base", "head"):
        call([sys.executable, "timer.py", side], folder)
    return not_best(call([sys.executable, "-c", COMPARE], folder))


def not_best(output: str) -> set[Cell]:
    """The rows whose second column, head, has not the colour of the best."""
    rows = re.findall(r"^ +(\d+) (True|False) +\|.*?\|(.*)$", output, re.MULTILINE)
    return {(int(length), causal == "True") for length, causal, head in rows if BEST not in head}


HYPERFINE = "hyperfine, its ratio and error"
TOOLS = {
    "attnbench gate": Tool(partial(version, "attnbench"), gate),
    "pytest-benchmark, mean:5%": Tool(partial(version, "pytest-benchmark"), pytest_benchmark),
    "asv continuous, factor 1.1": Tool(partial(version, "asv"), asv_continuous, prepare_asv),
    HYPERFINE: Tool(partial(call, ["hyperfine", "--version"], Path()), hyperfine),
    "torch Compare, 1 % from the best": Tool(partial(version, "torch"), torch_compare),
}


# -- running and the table ---------------------------------------------------------------------------------------------


def run(file: Path, minutes: float) -> None:
    """Compare by the tool with the fewest comparisons, as long as the next one ends in time by its last duration."""
    until = time.monotonic() + 60 * minutes
    available = dict(TOOLS)
    if not shutil.which("hyperfine"):
        print("hyperfine is not installed (apt-get install hyperfine): it is left out", file=sys.stderr)
        del available[HYPERFINE]
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stored = read(file)
        by_tool = {name: [each for each in stored if each.tool == name] for name in available}
        name = min(by_tool, key=lambda name: len(by_tool[name]))
        last_s = by_tool[name][-1].seconds if by_tool[name] else 0.0
        if time.monotonic() + last_s > until:
            return
        compared = compare(name, planted(len(by_tool[name])))
        with file.open("ab") as lines:
            lines.write(msgspec.json.encode(compared) + b"\n")
        slower = [f"{case.length} {case.causal} +{case.more}" for case in compared.cases if case.slower]
        print(f"{name}: {compared.seconds:.0f} s, slower: {', '.join(slower) or 'none'}", flush=True)


def compare(name: str, more: dict[Cell, int]) -> Comparison:
    """One comparison by this tool, in a folder of its own."""
    load, at = os.getloadavg()[0], datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as path:
        folder = Path(path)
        write_sides(folder, more)
        TOOLS[name].prepare(folder)
        started = time.monotonic()
        slower = TOOLS[name].compare(folder)
        seconds = time.monotonic() - started
    cases = [
        ComparedCase(length=length, causal=causal, more=heads, slower=(length, causal) in slower)
        for (length, causal), heads in more.items()
    ]
    return Comparison(
        tool=name, version=TOOLS[name].version().split()[-1], at=at, commit=trees.head().commit[:12],
        machine=identity.fingerprint()[0], load=round(load, 2), seconds=round(seconds, 1), cases=cases,
    )  # fmt: skip


def read(file: Path) -> list[Comparison]:
    """All comparisons of the file."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [msgspec.json.decode(line, type=Comparison) for line in lines]


def table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """False alarms, power and wall time of each tool, as Markdown."""
    found = " | ".join(f"found of +{100 * more / HEADS:.0f} %" for more in MORE[1:])
    yield f"| tool | A/A comparisons with an alarm | equal cases called slower | {found} | median time |"
    yield f"|---|{'---:|' * (len(MORE) + 2)}"
    for name in dict.fromkeys(each.tool for each in comparisons):
        of_tool = [each for each in comparisons if each.tool == name]
        equal = [each for each in of_tool if each.equal]
        cases = [case for each in of_tool for case in each.cases]
        alarms = sum(any(case.slower for case in each.cases) for each in equal)
        levels = [[case.slower for case in cases if case.more == more] for more in MORE]
        shares = " | ".join(f"{sum(level)} of {len(level)}" for level in levels)
        seconds = np.median([each.seconds for each in of_tool])
        yield f"| {name} | {alarms} of {len(equal)} ({wilson(alarms, len(equal))}) | {shares} | {seconds:.0f} s |"


if __name__ == "__main__":
    command, path, *minutes = sys.argv[1:]
    if command == "run":
        run(Path(path), float(minutes[0]))
    print("\n".join(table(read(Path(path)))))
