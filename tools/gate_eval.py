"""Error rates of the gate on this machine, from real A/A runs and real slowdowns of known size. Resumable.

`python -m tools.gate_eval run FILE HOURS` runs gates for that many hours and appends a line for each to FILE: the
evidence for the rule, and the blocks of the first restart for other rules. `python -m tools.gate_eval table FILE`
prints the error rates. `make gate-eval` does both. `python -m tools.gate_eval simulate RUNS` prints those of simulated
noise.

A slowdown is real work: under the same label head computes more heads than base (40 against 41, 42, 44). Its true size
is measured in the same run: in the first restarts, the first call of a case in head's process, which is not timed by
the gate, calls both kernels in turn. Gates of before have it measured apart (`python -m tools.gate_eval realised
FILE`). `python -m tools.gate_eval spreads RUN` compares locations of a restart on a stored A/A gate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from attnbench.analysis import readings, stats
from attnbench.gate import evidence, judgement, record, rule
from attnbench.gate.rule import Evidence, Margins
from attnbench.machine import worker_environment
from attnbench.records import run_directory
from attnbench.records.arm import parse_device
from attnbench.records.result import Sample, Verdict
from tools import gate_simulation

HEADS = 40
MORE = (0, 1, 2, 4)  # heads: 0, 2.5, 5, 10 % more work
LENGTHS = (128, 160, 192, 224, 256, 288, 320, 352, 384, 448)
MASKS = ("none", "causal")
POWER_EVERY = 3  # gates: a power run takes several times as long as an A/A run
DIGITS = 4
KERNEL = """
import torch
import torch.nn.functional as F

HEADS, MORE = {heads}, {more}

def attend(q, k, v, causal=False, scale=None):
    # More heads than requested, under the same label.
    more = MORE[q.shape[2], causal]
    q, k, v = (torch.cat([one, one[:, :more]], dim=1) if more else one.clone() for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)[:, :HEADS].contiguous()
"""
# Appended to the kernel of head: in the first restarts, its first call of a case measures the true slowdown, with and
# without the additional heads in turn, in this process. The gate does not time the first call.
TRUTH = """
import json
import math
import statistics
import time
from pathlib import Path

TURNS, WARM_TURNS = 20, 4  # the first ones are not counted
RESTARTS = 6
FILE = Path(__file__).with_name("truth.jsonl")
compute, lines = attend, [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
cells = [(length, causal) for length, causal, _ in lines]
measured = {cell for cell in cells if cells.count(cell) >= RESTARTS}

def attend(q, k, v, causal=False, scale=None):
    cell = q.shape[2], causal
    if MORE[cell] and cell not in measured:
        measured.add(cell)
        measure(cell, q, k, v, causal, scale)
    return compute(q, k, v, causal, scale)

def measure(cell, q, k, v, causal, scale):
    more, logs = MORE[cell], []
    for turn in range(TURNS):
        times = dict()
        for MORE[cell] in ((0, more) if turn % 2 else (more, 0)):
            start = time.perf_counter_ns()
            compute(q, k, v, causal, scale)
            times[MORE[cell]] = time.perf_counter_ns() - start
        logs.append(math.log(times[more] / times[0]))
    MORE[cell] = more
    line = json.dumps([*cell, statistics.median(logs[WARM_TURNS:])])
    with FILE.open("a") as file:
        file.write(line + chr(10))
"""


class Case(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The evidence of one case, its true slowdown, and its first blocks."""

    evidence: Evidence
    more: int = 0  # heads that head computes in addition to those of base
    truth: tuple[float, ...] = ()  # log(head / base) by restart, measured in head's process by calls in turn
    base: tuple[float, ...] = ()  # medians of the blocks of the first restart
    head: tuple[float, ...] = ()


class Gate(msgspec.Struct, kw_only=True, omit_defaults=True, dict=True):
    """One gate: a line of the file."""

    kind: str  # aa or power
    at: str
    commit: str
    machine: str
    seconds: float
    load: float  # average over a minute, when it began
    forks: bool = False  # whether its workers were forks, which gates do not use (docs/decisions/12)
    factor: float
    resolution_s: float
    cases: list[Case]
    controls: list[Evidence] = msgspec.field(name="sentinels")  # stored under its first name

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdicts on time by the current rule."""
        doubts = rule.doubts({f"{control.label}@{control.device}": control for control in self.controls}, self._margins)
        return rule.verdicts([case.evidence for case in self.cases], self._margins, doubts)

    @property
    def unfinished(self) -> int:
        """How many cases have fewer restarts than the current rule asks for."""
        return len(rule.next_step([case.evidence for case in self.cases], self._margins).cases)

    @property
    def _margins(self) -> Margins:
        return Margins(factor=self.factor, resolution_s=self.resolution_s)


def levels(number: int) -> dict[tuple[int, bool], int]:
    """The additional heads by length and mask; each gate shifts them by one case."""
    cells = [(length, mask == "causal") for length in LENGTHS for mask in MASKS]
    return {cell: MORE[(place + number) % len(MORE)] for place, cell in enumerate(cells)}


# -- running ----------------------------------------------------------------------------------------------------------


def run(file: Path, hours: float) -> None:
    """Run two A/A gates and one with slowdowns in turn, for that many hours."""
    until = time.monotonic() + 3600 * hours
    number = len(read(file))
    while time.monotonic() < until:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="gate-eval-") as folder:
            more = _measure(Path(folder), number)
            gate = distilled(Path(folder) / "run", more, load, _truth(Path(folder) / "head" / "truth.jsonl"))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as lines:
            lines.write(msgspec.json.encode(gate) + b"\n")
        outcomes = Counter(verdict.outcome.value for verdict in gate.verdicts)
        print(number, gate.kind, f"{gate.seconds:.0f} s", dict(outcomes), flush=True)
        number += 1


def _measure(folder: Path, number: int) -> dict[tuple[int, bool], int] | None:
    """Run a gate into folder/run; return its additional heads, or None for an A/A gate of the whole suite."""
    command = [sys.executable, "-m", "attnbench", "-q", "gate", "-o", str(folder / "run"), "--inconclusive", "ok"]
    if number % POWER_EVERY != POWER_EVERY - 1:
        subprocess.run([*command, "ci", "--noop"], check=False, stdout=subprocess.DEVNULL)
        return None
    more = levels(number // POWER_EVERY)
    for name, heads in (("base", dict.fromkeys(more, 0)), ("head", more)):
        (folder / name).mkdir()
        kernel = KERNEL.format(heads=HEADS, more=heads) + (TRUTH if name == "head" else "")
        (folder / name / "kernel.py").write_text(kernel)
    command += ["-b", "kernel.py:attend", "--seq", ",".join(map(str, LENGTHS)), "--heads", str(HEADS)]
    command += ["--mask", ",".join(MASKS), "--base-path", str(folder / "base")]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=folder / "head")
    return more


def _truth(file: Path) -> dict[tuple[int, bool], list[float]]:
    """The true effects by length and mask, in the order of restarts."""
    truth: dict[tuple[int, bool], list[float]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        length, causal, effect = json.loads(line)
        truth.setdefault((length, causal), []).append(_digits(effect))
    return truth


def distilled(
    path: Path, more: dict[tuple[int, bool], int] | None, load: float,
    truth: Mapping[tuple[int, bool], Sequence[float]] = MappingProxyType({}),
) -> Gate:  # fmt: skip
    """What the rules need of a stored gate."""
    run = run_directory.read(path)
    gate, pairings, commit = record.of(run), evidence.pairings(run.results), run.manifest.commit or {}
    pairs = {pair.key: pair for pair in pairings}
    cases = []
    for case in judgement.cases_of(pairings, gate):
        pair = pairs[case.case_id, case.device]
        assert pair.base
        assert pair.head
        cell = pair.either.case.problem.seq_q, pair.either.case.problem.mask == "causal"
        cases.append(
            Case(
                evidence=_short(case), more=more[cell] if more else 0, truth=tuple(truth.get(cell, ())),
                base=_blocks(pair.base.times[0]), head=_blocks(pair.head.times[0]),
            )
        )  # fmt: skip
    return Gate(
        kind="power" if more else "aa", at=run.manifest.created_at, commit=commit.get("commit", "")[:12],
        machine=run.manifest.fingerprint, seconds=round(run.manifest.seconds["total"], 1), load=round(load, 2),
        factor=gate.noise.factor, resolution_s=gate.noise.resolution_s, cases=cases,
        controls=[_short(control) for control in evidence.controls(pairings).values()],
    )  # fmt: skip


def _short(case: Evidence) -> Evidence:
    return msgspec.structs.replace(
        case, base_s=_digits(case.base_s), head_s=_digits(case.head_s), effects=tuple(map(_digits, case.effects))
    )  # fmt: skip


def _digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _blocks(sample: Sample) -> tuple[float, ...]:
    return tuple(_digits(value) for value in readings.finite(readings.block_medians(sample)))


def read(file: Path) -> list[Gate]:
    """All gates of the file."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [msgspec.convert(_current(msgspec.json.decode(line)), Gate) for line in lines]


def _current(gate: dict[str, Any]) -> dict[str, Any]:
    """A gate in which the restarts of a case are one list; the first ones were stored in two."""
    for case in (*(each["evidence"] for each in gate["cases"]), *gate["sentinels"]):
        case.setdefault("effects", case.get("screen", []) + case.get("confirm", []))
    return gate


# -- which location of a restart is the steadiest ----------------------------------------------------------------------


def spreads(path: Path) -> Iterator[str]:
    """The sd between restarts of a stored A/A gate, by the location within a block and over rounds."""
    sds: dict[tuple[str, str], list[float]] = {}
    for pair in evidence.pairings(run_directory.read(path).results):
        for restarts in filter(None, (pair.head, pair.control)):
            assert pair.base
            base = {result.restart: result for result in pair.base.results}
            for within, over in product(("median", "lower_quartile", "least"), ("mean", "median", "trimmed_mean")):
                logs = [
                    stats.log_ratios(result.samples["time"], base[result.restart].samples["time"], within)
                    for result in restarts.results
                    if result.restart in base
                ]
                sd = np.std([readings.LOCATIONS[over](values) for values in logs], ddof=1)
                sds.setdefault((within, over), []).append(100 * float(sd))
    yield f"{path.name}: sd between restarts, median over {len(sds['median', 'mean'])} pairs of equal arms"
    for (within, over), values in sds.items():
        yield f"  block {within:<14}  rounds {over:<12}  {np.median(values):.2f} %"


# -- how large the slowdowns really are -------------------------------------------------------------------------------

REALISED = """
import importlib.util, json, sys, time
import torch
torch.set_num_threads(1)

def load(path):
    spec = importlib.util.spec_from_file_location(path, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.attend

base, *heads = [load(path) for path in sys.argv[1:]]
for length in {lengths}:
    for causal in (False, True):
        q, k, v = (torch.randn(1, {heads}, length, 64) for _ in range(3))
        times = [[] for _ in sys.argv[1:]]
        for turn in range({turns}):
            for place in range(len(times)):
                place = (place + turn) % len(times)
                start = time.perf_counter_ns()
                (base, *heads)[place](q, k, v, causal=causal)
                times[place].append(time.perf_counter_ns() - start)
        print(json.dumps([length, causal, times]), flush=True)
"""


def realised(turns: int = 60, processes: int = 2) -> dict[tuple[int, bool, int], float]:
    """log(head / base) by length, mask and level: medians of calls in turn in one process, over some processes."""
    effects: dict[tuple[int, bool, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for more in MORE:
            path = Path(folder) / f"kernel{more}.py"
            same = {(length, causal): more for length in LENGTHS for causal in (False, True)}
            path.write_text(KERNEL.format(heads=HEADS, more=same))
            paths.append(str(path))
        script = REALISED.format(lengths=LENGTHS, heads=HEADS, turns=turns)
        for _ in range(processes):
            done = subprocess.run(
                [sys.executable, "-c", script, *paths], check=True, capture_output=True, text=True,
                # The allocator of a worker matters most.
                env={**os.environ, **worker_environment.arm_environment(parse_device("cpu:threads=1"))},
            )  # fmt: skip
            for length, causal, times in map(json.loads, done.stdout.splitlines()):
                base = np.array(times[0])
                for more, head in zip(MORE[1:], times[1:], strict=True):
                    logs = np.log(np.array(head) / base)[turns // 10 :]
                    effects.setdefault((length, causal, more), []).append(float(np.median(logs)))
    return {key: float(np.median(values)) for key, values in effects.items()}


def truths(file: Path) -> Path:
    """The file of the realised slowdowns, in the folder of the gates."""
    return file.with_name("realised.json")


def known(file: Path) -> dict[tuple[int, bool, int], float]:
    """The slowdowns that `realised` wrote."""
    return {(length, causal, more): value for length, causal, more, value in json.loads(truths(file).read_text())}


def main(arguments: Sequence[str]) -> Iterable[str]:
    """Run one of five commands; return the lines to print."""
    from tools import gate_tables

    command, file = arguments[0], Path(arguments[1])
    if command == "simulate":
        return gate_simulation.table(int(arguments[1]))
    if command == "spreads":
        return spreads(file)
    if command == "run":
        run(file, float(arguments[2]))
        return []
    if command == "realised":
        effects = [[*key, _digits(value)] for key, value in sorted(realised().items())]
        truths(file).parent.mkdir(parents=True, exist_ok=True)
        truths(file).write_text(json.dumps(effects).replace("], [", "],\n[") + "\n")
        return []
    return gate_tables.table(read(file), known(file))


if __name__ == "__main__":
    print("\n".join(main(sys.argv[1:])))
