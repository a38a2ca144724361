"""Error rates of the gate on this machine, from real A/A runs and real slowdowns of known size. Resumable.

`python -m tools.gate_eval run FILE HOURS` runs gates for that many hours and appends a line for each to FILE: the
evidence for the rule, and the blocks of the first restart for other rules. `python -m tools.gate_eval table FILE`
prints the error rates. `make gate-eval` does both. `python -m tools.gate_eval simulate RUNS` prints those of simulated
noise.

A slowdown is real work: under the same label head computes more heads than base (40 against 41, 42, 44). Its true size
is measured in the same run: in every restart, the first call of a case in head's process, which is not timed by the
gate, calls both kernels in turn. Gates of before have it measured apart (`python -m tools.gate_eval realised FILE`).
`python -m tools.gate_eval spreads RUN` compares locations of a restart on a stored A/A gate.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from attnbench.analysis import readings, stats
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import Over
from attnbench.gate import evidence, judgement, record, rule
from attnbench.gate.rule import Evidence, Margins
from attnbench.gate.significance import until_next_look
from attnbench.machine import worker_environment
from attnbench.records import run_directory
from attnbench.records.arm import parse_device
from attnbench.records.result import Outcome, Sample, Verdict
from tools import gate_simulation

HEADS = 40
MORE = (0, 1, 2, 4)  # heads: 0, 2.5, 5, 10 % more work
LENGTHS = (128, 160, 192, 224, 256, 288, 320, 352, 384, 448)
MASKS = ("none", "causal")
POWER_EVERY = 3  # gates: a power run takes several times as long as an A/A run
DIGITS = 4
RESAMPLED = 2000
BINS = ((0, 0.5), (0.5, 1), (1, 1.25), (1.25, 1.75), (1.75, 2.25), (2.25, 3), (3, math.inf))  # printed margins
TURNS, WARM_TURNS = 20, 4  # of both kernels in the first call of a restart; the first ones are not counted
KERNEL = """
import json
import math
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

HEADS, MORE, TURNS, WARM_TURNS = {heads}, {more}, {turns}, {warm_turns}
measured = set()

def compute(q, k, v, causal, scale, more):
    q, k, v = (torch.cat([one, one[:, :more]], dim=1) if more else one.clone() for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)[:, :HEADS].contiguous()

def attend(q, k, v, causal=False, scale=None):
    # More heads than requested, under the same label.
    more = MORE[q.shape[2], causal]
    if more and TURNS and (q.shape[2], causal) not in measured:
        measured.add((q.shape[2], causal))
        measure(q, k, v, causal, scale, more)
    return compute(q, k, v, causal, scale, more)

def measure(q, k, v, causal, scale, more):
    # The true slowdown: with and without the additional heads in turn, in this process.
    logs = []
    for turn in range(TURNS):
        times = dict()
        for heads in ((0, more) if turn % 2 else (more, 0)):
            start = time.perf_counter_ns()
            compute(q, k, v, causal, scale, heads)
            times[heads] = time.perf_counter_ns() - start
        logs.append(math.log(times[more] / times[0]))
    line = json.dumps([q.shape[2], causal, statistics.median(logs[WARM_TURNS:])])
    with Path(__file__).with_name("truth.jsonl").open("a") as file:
        file.write(line + chr(10))
"""


class Case(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The evidence of one case, its true slowdown, and its first blocks."""

    evidence: Evidence
    more: int = 0  # heads that head computes in addition to those of base
    truth: tuple[float, ...] = ()  # log(head / base) by restart, measured in head's process by calls in turn
    base: tuple[float, ...] = ()  # medians of the blocks of the first restart
    head: tuple[float, ...] = ()


class Gate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One gate: a line of the file."""

    kind: str  # aa or power
    at: str
    commit: str
    machine: str
    seconds: float
    load: float  # average over a minute, when it began
    factor: float
    resolution_s: float
    cases: list[Case]
    controls: list[Evidence] = msgspec.field(name="sentinels")  # stored under its first name

    def verdicts(self) -> list[Verdict]:
        """The verdicts on time by the current rule."""
        margins = Margins(factor=self.factor, resolution_s=self.resolution_s)
        doubt = rule.too_noisy({f"{control.label}@{control.device}": control for control in self.controls}, margins)
        return rule.verdicts([case.evidence for case in self.cases], margins, doubt)


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
        outcomes = Counter(verdict.outcome.value for verdict in gate.verdicts())
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
        (folder / name / "kernel.py").write_text(_kernel(heads))
    command += ["-b", "kernel.py:attend", "--seq", ",".join(map(str, LENGTHS)), "--heads", str(HEADS)]
    command += ["--mask", ",".join(MASKS), "--base-path", str(folder / "base")]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=folder / "head")
    return more


def _kernel(more: dict[tuple[int, bool], int], turns: int = TURNS) -> str:
    return KERNEL.format(heads=HEADS, more=more, turns=turns, warm_turns=WARM_TURNS)


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
            path.write_text(_kernel(same, turns=0))
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


# -- the table --------------------------------------------------------------------------------------------------------


def table(gates: Sequence[Gate], truth: dict[tuple[int, bool, int], float]) -> Iterator[str]:
    """Error rates of the gate as Markdown, then those of other rules on the same samples."""
    equal, slower = ([gate for gate in gates if gate.kind == kind] for kind in ("aa", "power"))
    yield from _alarms(equal)
    yield ""
    yield from _power(slower, truth)
    yield ""
    yield from resampled_power(gates, RESAMPLED)
    yield ""
    yield from _others(equal, slower)


def _alarms(equal: Sequence[Gate]) -> Iterator[str]:
    verdicts = [gate.verdicts() for gate in equal]
    every = [v for of_gate in verdicts for v in of_gate]
    red = sum(any(v.outcome is Outcome.REGRESSED for v in of_gate) for of_gate in verdicts)
    loose = sum(v.outcome is Outcome.INCONCLUSIVE for v in every)
    again = resampled(equal, RESAMPLED)
    margins = sorted(v.margin for v in every if v.margin is not None)
    widest, middle = 100 * margins[-1], 100 * float(np.median(margins))
    held = [v.interval[0] <= 0 <= v.interval[1] for v in every if v.interval]
    restarts = [case.evidence.effects for gate in equal for case in gate.cases]
    plain = [stats.t_estimate(np.array(effects), Over.RESTARTS) for effects in restarts]
    plain_held = [each.low <= 0 <= each.high for each in plain if each.low is not None and each.high is not None]
    cut = sum(v.outcome is Outcome.INCONCLUSIVE and bool(until_next_look(v.restarts)) for v in every)
    seconds = [gate.seconds for gate in equal]
    yield "| A/A: `attnbench gate ci --noop` | |\n|---|---:|"
    yield f"| real gate runs | {len(equal)} |"
    yield f"| with any `regressed` | {red} ({at_most(red, len(equal))}) |"
    yield f"| resampled from them, signs of restarts at random: with any `regressed` | {again} of {RESAMPLED} |"
    yield f"| 95 % interval holds the truth, 0 | {_share(sum(held), len(held))} |"
    yield f"| 95 % t interval without regard to looks holds it | {_share(sum(plain_held), len(plain_held))} |"
    yield f"| restarts of a case | {min(map(len, restarts))} to {max(map(len, restarts))} |"
    yield f"| inconclusive cases | {loose} of {len(every)} ({wilson(loose, len(every))}) |"
    yield f"| of them measured with fewer restarts than the rule asks for | {cut} |"
    yield f"| margins | {100 * margins[0]:.1f} to {widest:.1f} %, median {middle:.1f} % |"
    yield f"| wall time of a run | median {np.median(seconds):.0f} s, longest {max(seconds):.0f} s |"


def resampled(equal: Sequence[Gate], runs: int) -> int:
    """How many A/A runs have any `regressed`, of runs resampled from the restarts of real ones with random signs."""
    rng = np.random.default_rng(0)
    drawn = [_redrawn(rng, gate, share) for gate, share in zip(equal, _shares(runs, len(equal)), strict=True)]
    return sum(int(gate_simulation.judged(effects).red.any(axis=-1).sum()) for effects in drawn)


def resampled_power(gates: Sequence[Gate], runs: int) -> Iterator[str]:
    """The share found of slowdowns that are added to resampled restarts of real gates, by printed margins."""
    rng = np.random.default_rng(1)
    times, hits = [], []
    for gate, share in zip(gates, _shares(runs, len(gates)), strict=True):
        effects = _redrawn(rng, gate, share)
        truth, slower = gate_simulation.planted(rng, effects.std(axis=-1))
        tested = gate_simulation.judged(effects + truth[..., None])
        times.append((np.expm1(truth) / np.expm1(tested.margin))[slower])
        hits.append(tested.red[slower])
    yield "| slowdown, in printed margins | resampled cases | `regressed` |\n|---|---:|---:|"
    ratios, found = np.concatenate(times), np.concatenate(hits)
    for low, high in BINS:
        chosen = (low <= ratios) & (ratios < high)
        yield f"| {_bin(low, high)} | {chosen.sum()} | {_share(int(found[chosen].sum()), int(chosen.sum()))} |"


def _shares(runs: int, gates: int) -> list[int]:
    """The runs that are drawn from each gate: equally many, and one more of the first ones."""
    return [len(range(number, runs, gates)) for number in range(gates)]


def _redrawn(rng: np.random.Generator, gate: Gate, runs: int) -> Floats:
    """Effects [runs, cases, restarts] of equal arms: deviations of the restarts of a gate, with random signs."""
    cases = []
    for case in gate.cases:
        pool = np.array(case.evidence.effects)
        if gate.kind == "power":  # without its slowdown; the mean of few restarts takes a part of their spread with it
            pool = (pool - pool.mean()) * math.sqrt(len(pool) / max(len(pool) - 1, 1))
        shape = (runs, gate_simulation.RESTARTS)
        cases.append(rng.choice(pool, shape) * rng.choice([-1, 1], shape))
    return np.stack(cases, axis=1)


def _power(slower: Sequence[Gate], truth: dict[tuple[int, bool, int], float]) -> Iterator[str]:
    rows: dict[int, list[tuple[float, Verdict]]] = {more: [] for more in MORE}
    for gate in slower:
        for case, verdict in zip(gate.cases, gate.verdicts(), strict=True):
            rows[case.more].append((_true(case, truth), verdict))
    yield "| more heads | slowdown, measured apart | cases | `regressed` | 95 % interval holds it | error, median |"
    yield "|---|---:|---:|---:|---:|---:|"
    for more, measured in rows.items():
        if measured:
            slow = 100 * math.expm1(float(np.median([true for true, _ in measured])))
            hit = sum(v.outcome is Outcome.REGRESSED for _, v in measured)
            covered = [v.interval[0] <= math.expm1(true) <= v.interval[1] for true, v in measured if v.interval]
            off = 100 * float(np.median([abs((v.change or 0.0) - math.expm1(true)) for true, v in measured]))
            shares = f"{_share(hit, len(measured))} | {_share(sum(covered), len(covered))}"
            yield f"| {more} of {HEADS} | {slow:+.1f} % | {len(measured)} | {shares} | {off:.2f} % |"
    yield "\n| slowdown, in printed margins | cases | `regressed` | 95 % interval of that share |\n|---|---:|---:|---:|"
    every = [(math.expm1(true) / v.margin, v) for measured in rows.values() for true, v in measured if v.margin]
    for low, high in BINS:
        hits = [v.outcome is Outcome.REGRESSED for times, v in every if low <= times < high]
        yield f"| {_bin(low, high)} | {len(hits)} | {_share(sum(hits), len(hits))} | {wilson(sum(hits), len(hits))} |"


def _bin(low: float, high: float) -> str:
    return f"{low} to {high}" if high < math.inf else f"{low} and more"


def _true(case: Case, truth: dict[tuple[int, bool, int], float]) -> float:
    if not case.more:
        return 0.0
    if case.truth:
        return float(np.median(case.truth))
    words = case.evidence.label.split()
    length = next(int(word[1:]) for word in words if word[0] == "q" and word[1:].isdigit())
    return truth[length, "causal" in words, case.more]


# -- other rules, on the first restart of each side --------------------------------------------------------------------


def _others(equal: Sequence[Gate], slower: Sequence[Gate]) -> Iterator[str]:
    yield "| rule, on the same samples | A/A cases red | A/A runs with any | found of +2.5 % | of +5 % | of +10 % |"
    yield "|---|---:|---:|---:|---:|---:|"
    gates = (*equal, *slower)
    by_rule = {"attnbench gate": [[v.outcome is Outcome.REGRESSED for v in gate.verdicts()] for gate in gates]}
    for name, red in RULES.items():
        by_rule[name] = [[red(case.base, case.head) for case in gate.cases] for gate in gates]
    for name, hits in by_rule.items():
        alarms = hits[: len(equal)]
        by_level = {more: [0, 0] for more in MORE}
        for gate, flags in zip(slower, hits[len(equal) :], strict=True):
            for case, hit in zip(gate.cases, flags, strict=True):
                by_level[case.more][0] += hit
                by_level[case.more][1] += 1
        cases = [hit for of_gate in alarms for hit in of_gate]
        shares = " | ".join(_share(*by_level[more]) for more in MORE[1:])
        runs = _share(sum(map(any, alarms)), len(alarms))
        yield f"| {name} | {_share(sum(cases), len(cases))} | {runs} | {shares} |"


def _pytest_benchmark(base: Sequence[float], head: Sequence[float]) -> bool:
    """--benchmark-compare-fail=median:5%, by its own check."""
    from pytest_benchmark.utils import PercentageRegressionCheck

    sides = [{"median": float(np.median(times))} for times in (head, base)]
    return PercentageRegressionCheck("median", 5.0).fails(*sides) is not None


def _asv(base: Sequence[float], head: Sequence[float]) -> bool:
    """asv continuous: worse by its factor of 1.1, and different by its own test."""
    from asv._stats import is_different
    from asv_runner.statistics import compute_stats

    statistics = [compute_stats(list(times), 1)[1] for times in (base, head)]
    different = is_different(list(base), list(head), *statistics)
    return bool(np.median(head) > 1.1 * np.median(base)) and bool(different)


def _mann_whitney(base: Sequence[float], head: Sequence[float]) -> bool:
    """At 0.05, one-sided (scipy)."""
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(head, base, alternative="greater").pvalue < 0.05)


RULES = {
    "pytest-benchmark, median:5%": _pytest_benchmark,
    "asv continuous, factor 1.1": _asv,
    "Mann-Whitney, p < 0.05": _mann_whitney,
}


def _share(hits: int, count: int) -> str:
    return f"{hits} of {count}, {100 * hits / count:.0f} %" if count else "-"


def at_most(hits: int, count: int) -> str:
    """The exact upper bound of a share, one-sided at 95 % (Clopper and Pearson 1934)."""
    if not count:
        return "-"
    from scipy.stats import binomtest

    high = binomtest(hits, count).proportion_ci(confidence_level=0.90, method="exact").high
    return f"at most {100 * high:.1f} % at 95 %"


def wilson(hits: int, count: int) -> str:
    """The 95 % interval of a share (Wilson 1927)."""
    if not count:
        return "-"
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def truths(file: Path) -> Path:
    """The file of the realised slowdowns, in the folder of the gates."""
    return file.with_name("realised.json")


def known(file: Path) -> dict[tuple[int, bool, int], float]:
    """The slowdowns that `realised` wrote."""
    return {(length, causal, more): value for length, causal, more, value in json.loads(truths(file).read_text())}


def main(arguments: Sequence[str]) -> Iterable[str]:
    """Run one of five commands; return the lines to print."""
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
    return table(read(file), known(file))


if __name__ == "__main__":
    print("\n".join(main(sys.argv[1:])))
