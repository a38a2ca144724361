"""How often the gate errs on this machine: real A/A runs, and real slowdowns of known size. Resumable.

`python tools/gate_eval.py run FILE HOURS` runs gates until the time is over and appends a line for each to FILE: what
the rule decides on, and the blocks of the first launch for other rules. `python tools/gate_eval.py table FILE` says
what they show. `make gate-eval` does both.

A slowdown is real work: behind the same label head computes more heads than base (40 against 41, 42, 44). How much
slower that is, case by case, is measured apart (`python tools/gate_eval.py realised FILE`): both kernels call by call
in turn, in one process. `python tools/gate_eval.py spreads RUN` compares locations of a launch on a stored A/A gate.
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
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from attnbench import host, stats, store
from attnbench.arm import parse_device
from attnbench.gate import evidence, judgement, rule
from attnbench.gate.rule import Evidence, Margins
from attnbench.result import Outcome, Verdict

HEADS = 40
MORE = (0, 1, 2, 4)  # heads: 0, 2.5, 5, 10 % more work
LENGTHS = (128, 160, 192, 224, 256, 288, 320, 352, 384, 448)
MASKS = ("none", "causal")
POWER_EVERY = 3  # gates: a power run takes several times as long as an A/A run
DIGITS = 4
RESAMPLED = 2000
KERNEL = """
import torch
import torch.nn.functional as F

HEADS, MORE = {heads}, {more}

def attend(q, k, v, causal=False, scale=None):
    # More heads than asked for, behind the same label.
    more = MORE[q.shape[2], causal]
    q, k, v = (torch.cat([one, one[:, :more]], dim=1) if more else one.clone() for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)[:, :HEADS].contiguous()
"""


class Case(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was measured of one case, and what is known of it."""

    evidence: Evidence
    more: int = 0  # heads that head computes beyond base's
    base: tuple[float, ...] = ()  # medians of the blocks of the first launch
    head: tuple[float, ...] = ()


class Gate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One gate, as a line of the file."""

    kind: str  # aa or power
    at: str
    commit: str
    machine: str
    seconds: float
    load: float  # average over a minute, when it began
    factor: float
    resolution_s: float
    cases: list[Case]
    sentinels: list[Evidence]

    def verdicts(self) -> list[Verdict]:
        """Of time, by the rule as it stands."""
        margins = Margins(factor=self.factor, resolution_s=self.resolution_s)
        doubt = rule.restless({f"{one.label}@{one.device}": one for one in self.sentinels}, margins)
        return rule.verdicts([one.evidence for one in self.cases], margins, doubt)


def levels(number: int) -> dict[tuple[int, bool], int]:
    """More heads by length and mask, another for every case in every gate."""
    cells = [(length, mask == "causal") for length in LENGTHS for mask in MASKS]
    return {cell: MORE[(place + number) % len(MORE)] for place, cell in enumerate(cells)}


# -- running -----------------------------------------------------------------------------------------------------------


def run(file: Path, hours: float) -> None:
    """One gate after another, two A/A and one of power in turn, until the time is over."""
    until = time.monotonic() + 3600 * hours
    number = len(read(file))
    while time.monotonic() < until:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="gate-eval-") as folder:
            more = _measure(Path(folder), number)
            one = distilled(Path(folder) / "run", more, load)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as lines:
            lines.write(msgspec.json.encode(one) + b"\n")
        seen = Counter(verdict.outcome.value for verdict in one.verdicts())
        print(number, one.kind, f"{one.seconds:.0f} s", dict(seen), flush=True)
        number += 1


def _measure(folder: Path, number: int) -> dict[tuple[int, bool], int] | None:
    """A gate into folder/run; its levels, or None for one of the whole suite against itself."""
    command = [sys.executable, "-m", "attnbench", "-q", "gate", "-o", str(folder / "run"), "--inconclusive", "ok"]
    if number % POWER_EVERY != POWER_EVERY - 1:
        subprocess.run([*command, "ci", "--noop"], check=False, stdout=subprocess.DEVNULL)
        return None
    more = levels(number // POWER_EVERY)
    for name, own in (("base", dict.fromkeys(more, 0)), ("head", more)):
        (folder / name).mkdir()
        (folder / name / "kernel.py").write_text(KERNEL.format(heads=HEADS, more=own))
    command += ["-b", "kernel.py:attend", "--seq", ",".join(map(str, LENGTHS)), "--heads", str(HEADS)]
    command += ["--mask", ",".join(MASKS), "--base-path", str(folder / "base")]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=folder / "head")
    return more


def distilled(path: Path, more: dict[tuple[int, bool], int] | None, load: float) -> Gate:
    """A stored gate -> what the rules need of it."""
    run = store.read(path)
    record, found, commit = run.manifest.gate, evidence.pairings(run.results), run.manifest.commit or {}
    assert record
    pairs = {pair.key: pair for pair in found}
    cases = []
    for one in judgement.cases_of(found, record):
        pair = pairs[one.case_id, one.device]
        assert pair.base
        assert pair.head
        cell = pair.any.case.problem.seq_q, pair.any.case.problem.mask == "causal"
        cases.append(
            Case(
                evidence=_short(one), more=more[cell] if more else 0,
                base=_blocks(pair.base.times[0]), head=_blocks(pair.head.times[0]),
            )
        )  # fmt: skip
    margins = judgement.margins_of(record)
    return Gate(
        kind="power" if more else "aa", at=run.manifest.created_at, commit=commit.get("commit", "")[:12],
        machine=run.manifest.fingerprint, seconds=round(run.manifest.seconds["total"], 1), load=round(load, 2),
        factor=margins.factor, resolution_s=margins.resolution_s, cases=cases,
        sentinels=[_short(one) for one in evidence.equal_arms(found, record["screen_launches"]).values()],
    )  # fmt: skip


def _short(one: Evidence) -> Evidence:
    return msgspec.structs.replace(
        one, base_s=_digits(one.base_s), head_s=_digits(one.head_s), screen=tuple(map(_digits, one.screen)),
        confirm=tuple(map(_digits, one.confirm)),
    )  # fmt: skip


def _digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _blocks(sample: Any) -> tuple[float, ...]:
    return tuple(_digits(value) for value in stats.finite(stats.block_medians(sample)))


def read(file: Path) -> list[Gate]:
    """All gates that were measured."""
    return [msgspec.json.decode(line, type=Gate) for line in file.read_bytes().splitlines()] if file.exists() else []


# -- which location of a launch is the steadiest -----------------------------------------------------------------------


def spreads(path: Path) -> Iterator[str]:
    """Of a stored gate of equal sides: the sd between launches by the location within a block and over rounds."""
    found: dict[tuple[str, str], list[float]] = {}
    for pair in evidence.pairings(store.read(path).results):
        for twin in filter(None, (pair.head, pair.sentinel)):
            assert pair.base
            others = {one.launch: one for one in pair.base.results}
            for within, over in product(("median", "lower_quartile", "least"), ("mean", "median", "trimmed_mean")):
                logs = [
                    stats.log_ratios(one.samples["time"], others[one.launch].samples["time"], within)
                    for one in twin.results
                    if one.launch in others
                ]
                sd = np.std([stats.LOCATIONS[over](one) for one in logs], ddof=1)
                found.setdefault((within, over), []).append(100 * float(sd))
    yield f"{path.name}: sd between launches, median over {len(found['median', 'mean'])} pairs of equal arms"
    for (within, over), values in found.items():
        yield f"  block {within:<14}  rounds {over:<12}  {np.median(values):.2f} %"


# -- how large the slowdowns really are --------------------------------------------------------------------------------

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
    found: dict[tuple[int, bool, int], list[float]] = {}
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
                env={**os.environ, **host.arm_environment(parse_device("cpu:threads=1"))},  # its allocator above all
            )  # fmt: skip
            for length, causal, times in map(json.loads, done.stdout.splitlines()):
                base = np.array(times[0])
                for more, head in zip(MORE[1:], times[1:], strict=True):
                    logs = np.log(np.array(head) / base)[turns // 10 :]
                    found.setdefault((length, causal, more), []).append(float(np.median(logs)))
    return {key: float(np.median(values)) for key, values in found.items()}


# -- the table ---------------------------------------------------------------------------------------------------------


def table(gates: Sequence[Gate], truth: dict[tuple[int, bool, int], float]) -> Iterator[str]:
    """Markdown: errors of the gate, then those of other rules on the same samples."""
    equal, slower = [one for one in gates if one.kind == "aa"], [one for one in gates if one.kind == "power"]
    yield from _alarms(equal)
    yield ""
    yield from _power(slower, truth)
    yield ""
    yield from _others(equal, slower)


def _alarms(equal: Sequence[Gate]) -> Iterator[str]:
    verdicts = [one.verdicts() for one in equal]
    every = [v for each in verdicts for v in each]
    red = sum(any(v.outcome is Outcome.REGRESSED for v in each) for each in verdicts)
    loose = sum(v.outcome is Outcome.INCONCLUSIVE for v in every)
    again, runs = resampled(equal)
    margins = sorted(v.margin for v in every if v.margin is not None)
    widest, middle = 100 * margins[-1], 100 * float(np.median(margins))
    quiet = [one.seconds for one in equal if not any(case.evidence.confirm for case in one.cases)]
    seconds = [one.seconds for one in equal]
    yield "| A/A: `attnbench gate ci --noop` | |\n|---|---:|"
    yield f"| real gate runs | {len(equal)} |"
    yield f"| with any `regressed` | {red} ({wilson(red, len(equal))}) |"
    yield f"| resampled from them, signs of launches at random: with any `regressed` | {again} of {runs} |"
    yield f"| inconclusive cases | {loose} of {len(every)} ({wilson(loose, len(every))}) |"
    yield f"| margins | {100 * margins[0]:.1f} to {widest:.1f} %, median {middle:.1f} % |"
    yield f"| wall time of a run | median {np.median(seconds):.0f} s, longest {max(seconds):.0f} s |"
    if quiet:
        yield f"| of the {len(quiet)} where the screen settled everything | median {np.median(quiet):.0f} s |"


def resampled(equal: Sequence[Gate], runs: int = RESAMPLED) -> tuple[int, int]:
    """A/A runs made of the launches of real ones, drawn again with random signs: how many have any `regressed`."""
    rng = np.random.default_rng(0)
    red = 0
    for _ in range(runs):
        one = equal[int(rng.integers(len(equal)))]
        cases = []
        for case in one.cases:
            pool = np.array(case.evidence.both)
            drawn = rng.choice(pool, rule.SCREEN_LAUNCHES + rule.CONFIRM_MOST)
            drawn *= rng.choice([-1, 1], len(drawn))
            split = rule.SCREEN_LAUNCHES
            cases.append(
                msgspec.structs.replace(case.evidence, screen=tuple(drawn[:split]), confirm=tuple(drawn[split:]))
            )
        margins = Margins(factor=one.factor, resolution_s=one.resolution_s)
        red += any(v.outcome is Outcome.REGRESSED for v in rule.verdicts(cases, margins))
    return red, runs


def _power(slower: Sequence[Gate], truth: dict[tuple[int, bool, int], float]) -> Iterator[str]:
    rows: dict[int, list[tuple[float, Verdict]]] = {more: [] for more in MORE}
    for one in slower:
        for case, verdict in zip(one.cases, one.verdicts(), strict=True):
            rows[case.more].append((_true(case, truth), verdict))
    yield "| more heads | slowdown, measured apart | cases | `regressed` | 95 % interval holds it | error, median |"
    yield "|---|---:|---:|---:|---:|---:|"
    for more, found in rows.items():
        if found:
            slow = 100 * math.expm1(float(np.median([true for true, _ in found])))
            hit = sum(v.outcome is Outcome.REGRESSED for _, v in found)
            held = [v.interval[0] <= math.expm1(true) <= v.interval[1] for true, v in found if v.interval]
            off = 100 * float(np.median([abs((v.change or 0.0) - math.expm1(true)) for true, v in found]))
            shares = f"{_share(hit, len(found))} | {_share(sum(held), len(held))}"
            yield f"| {more} of {HEADS} | {slow:+.1f} % | {len(found)} | {shares} | {off:.2f} % |"
    yield "\n| slowdown, in printed margins | cases | `regressed` | 95 % interval of that share |\n|---|---:|---:|---:|"
    every = [(math.expm1(true) / v.margin, v) for found in rows.values() for true, v in found if v.margin]
    for low, high in ((0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2), (2, 3), (3, math.inf)):
        own = [v.outcome is Outcome.REGRESSED for times, v in every if low <= times < high]
        name = f"{low} to {high}" if high < math.inf else f"{low} and more"
        yield f"| {name} | {len(own)} | {_share(sum(own), len(own))} | {wilson(sum(own), len(own))} |"


def _true(case: Case, truth: dict[tuple[int, bool, int], float]) -> float:
    if not case.more:
        return 0.0
    words = case.evidence.label.split()
    length = next(int(word[1:]) for word in words if word[0] == "q" and word[1:].isdigit())
    return truth[length, "causal" in words, case.more]


# -- other rules, on the first launch of each side, as they would see it -----------------------------------------------


def _others(equal: Sequence[Gate], slower: Sequence[Gate]) -> Iterator[str]:
    yield "| rule, on the same samples | A/A cases red | A/A runs with any | found of +2.5 % | of +5 % | of +10 % |"
    yield "|---|---:|---:|---:|---:|---:|"
    ours = {"attnbench gate": [[v.outcome is Outcome.REGRESSED for v in one.verdicts()] for one in (*equal, *slower)]}
    for name, red in RULES.items():
        ours[name] = [[red(case.base, case.head) for case in one.cases] for one in (*equal, *slower)]
    for name, hits in ours.items():
        alarms = hits[: len(equal)]
        by_level = {more: [0, 0] for more in MORE}
        for one, flags in zip(slower, hits[len(equal) :], strict=True):
            for case, hit in zip(one.cases, flags, strict=True):
                by_level[case.more][0] += hit
                by_level[case.more][1] += 1
        cases = [hit for each in alarms for hit in each]
        found = " | ".join(_share(*by_level[more]) for more in MORE[1:])
        runs = _share(sum(map(any, alarms)), len(alarms))
        yield f"| {name} | {_share(sum(cases), len(cases))} | {runs} | {found} |"


def _pytest_benchmark(base: Sequence[float], head: Sequence[float]) -> bool:
    """--benchmark-compare-fail=median:5%, by its own check."""
    from pytest_benchmark.utils import PercentageRegressionCheck

    sides = [{"median": float(np.median(one))} for one in (head, base)]
    return PercentageRegressionCheck("median", 5.0).fails(*sides) is not None


def _asv(base: Sequence[float], head: Sequence[float]) -> bool:
    """asv continuous: worse by its factor of 1.1, and different by its own test."""
    from asv._stats import is_different
    from asv_runner.statistics import compute_stats

    known = [compute_stats(list(one), 1)[1] for one in (base, head)]
    different = is_different(list(base), list(head), *known)
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


def wilson(hits: int, count: int) -> str:
    """The 95 % interval of a share (Wilson 1927)."""
    if not count:
        return "-"
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(method="wilson")
    return f"{100 * found.low:.1f} to {100 * found.high:.1f} %"


def truths(file: Path) -> Path:
    """Where the realised slowdowns lie: beside the gates."""
    return file.with_name("realised.json")


def known(file: Path) -> dict[tuple[int, bool, int], float]:
    """What `realised` wrote."""
    return {(length, causal, more): value for length, causal, more, value in json.loads(truths(file).read_text())}


def main(arguments: Sequence[str]) -> Iterable[str]:
    """One of four commands; gives the lines to print."""
    command, file = arguments[0], Path(arguments[1])
    if command == "spreads":
        return spreads(file)
    if command == "run":
        run(file, float(arguments[2]))
        return []
    if command == "realised":
        found = [[*key, _digits(value)] for key, value in sorted(realised().items())]
        truths(file).parent.mkdir(parents=True, exist_ok=True)
        truths(file).write_text(json.dumps(found).replace("], [", "],\n[") + "\n")
        return []
    return table(read(file), known(file))


if __name__ == "__main__":
    print("\n".join(main(sys.argv[1:])))
