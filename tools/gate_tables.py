"""Error rates of the gate from stored gates, as the Markdown tables of docs/gate.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from attnbench.analysis import stats
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import Over
from attnbench.records.result import Outcome, Verdict
from tools import gate_simulation
from tools.gate_eval import HEADS, MORE, Case, Gate
from tools.rates import at_most, share, wilson

RESAMPLED = 2000  # runs
LOADED = 2.0  # on two cores
BINS = ((0, 0.5), (0.5, 1), (1, 1.25), (1.25, 1.75), (1.75, 2.25), (2.25, 3), (3, math.inf))  # printed margins


def table(gates: Sequence[Gate], truth: dict[tuple[int, bool, int], float]) -> Iterator[str]:
    """Error rates of the gate as Markdown, then those of other rules on the same samples."""
    equal, slower = ([gate for gate in gates if gate.kind == kind] for kind in ("aa", "power"))
    yield from _alarms(equal)
    yield ""
    yield from power(slower, truth)
    yield ""
    yield from resampled_power(gates, RESAMPLED)
    yield ""
    yield from _others(equal, slower)


def _alarms(equal: Sequence[Gate]) -> Iterator[str]:
    verdicts = [gate.verdicts for gate in equal]
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
    cut, loaded = sum(gate.unfinished for gate in equal), sum(gate.load > LOADED for gate in equal)
    seconds = [gate.seconds for gate in equal]
    yield "| A/A: `attnbench gate ci --noop` | |\n|---|---:|"
    yield f"| real gate runs | {len(equal)} |"
    yield f"| of them on a loaded machine (load average above {LOADED:g} when they began) | {loaded} |"
    yield f"| of them with forked workers, for decision 12 | {sum(gate.forks for gate in equal)} |"
    yield f"| with any `regressed` | {red} ({at_most(red, len(equal))}) |"
    yield f"| resampled from them, signs of restarts at random: with any `regressed` | {again} of {RESAMPLED} |"
    yield f"| 95 % interval holds the truth, 0 | {share(sum(held), len(held))} |"
    yield f"| 95 % t interval without regard to looks holds it | {share(sum(plain_held), len(plain_held))} |"
    yield f"| restarts of a case | {min(map(len, restarts))} to {max(map(len, restarts))} |"
    yield f"| inconclusive cases | {loose} of {len(every)} ({wilson(loose, len(every))}) |"
    yield f"| cases with fewer restarts than the rule asks for | {cut} |"
    yield f"| margins | {100 * margins[0]:.1f} to {widest:.1f} %, median {middle:.1f} % |"
    yield f"| wall time of a run | median {np.median(seconds):.0f} s, longest {max(seconds):.0f} s |"


def resampled(equal: Sequence[Gate], runs: int) -> int:
    """How many A/A runs have any `regressed`, of runs resampled from the restarts of real ones with random signs."""
    rng = np.random.default_rng(0)
    drawn = [_redrawn(rng, gate, count) for gate, count in zip(equal, _shares(runs, len(equal)), strict=True)]
    return sum(int(gate_simulation.judged(effects).red.any(axis=-1).sum()) for effects in drawn)


def resampled_power(gates: Sequence[Gate], runs: int) -> Iterator[str]:
    """The share found of slowdowns that are added to resampled restarts of real gates, by printed margins."""
    rng = np.random.default_rng(1)
    times, hits = [], []
    for gate, count in zip(gates, _shares(runs, len(gates)), strict=True):
        effects = _redrawn(rng, gate, count)
        truth, slower = gate_simulation.planted(rng, effects.std(axis=-1))
        tested = gate_simulation.judged(effects + truth[..., None])
        times.append((np.expm1(truth) / np.expm1(tested.margin))[slower])
        hits.append(tested.red[slower])
    yield "| slowdown, in printed margins | resampled cases | `regressed` |\n|---|---:|---:|"
    ratios, found = np.concatenate(times), np.concatenate(hits)
    for low, high in BINS:
        chosen = (low <= ratios) & (ratios < high)
        yield f"| {_bin(low, high)} | {chosen.sum()} | {share(int(found[chosen].sum()), int(chosen.sum()))} |"


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


def power(slower: Sequence[Gate], truth: dict[tuple[int, bool, int], float]) -> Iterator[str]:
    """The share found of true slowdowns, by their size and by printed margins."""
    rows: dict[int, list[tuple[float, Verdict]]] = {more: [] for more in MORE}
    for gate in slower:
        for case, verdict in zip(gate.cases, gate.verdicts, strict=True):
            rows[case.more].append((_true(case, truth), verdict))
    yield "| more heads | slowdown, measured apart | cases | `regressed` | 95 % interval holds it | error, median |"
    yield "|---|---:|---:|---:|---:|---:|"
    for more, measured in rows.items():
        if measured:
            slow = 100 * math.expm1(float(np.median([true for true, _ in measured])))
            hit = sum(v.outcome is Outcome.REGRESSED for _, v in measured)
            covered = [v.interval[0] <= math.expm1(true) <= v.interval[1] for true, v in measured if v.interval]
            off = 100 * float(np.median([abs((v.change or 0.0) - math.expm1(true)) for true, v in measured]))
            shares = f"{share(hit, len(measured))} | {share(sum(covered), len(covered))}"
            yield f"| {more} of {HEADS} | {slow:+.1f} % | {len(measured)} | {shares} | {off:.2f} % |"
    if errors := [_error(case.truth) for gate in slower for case in gate.cases if len(case.truth) > 1]:
        count = f"{len(errors)} of {sum(case.more > 0 for gate in slower for case in gate.cases)} slower cases"
        yield f"\nIn {count} the slowdown was measured in the run: median error {100 * np.median(errors):.2f} %."
    yield "\n| slowdown, in printed margins | cases | `regressed` | 95 % interval of that share |\n|---|---:|---:|---:|"
    every = [(math.expm1(true) / v.margin, v) for measured in rows.values() for true, v in measured if v.margin]
    for low, high in BINS:
        hits = [v.outcome is Outcome.REGRESSED for times, v in every if low <= times < high]
        yield f"| {_bin(low, high)} | {len(hits)} | {share(sum(hits), len(hits))} | {wilson(sum(hits), len(hits))} |"


def _error(truth: Sequence[float]) -> float:
    """The standard error of the median of normal values."""
    return float(1.25 * np.std(truth, ddof=1) / math.sqrt(len(truth)))


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
    by_rule = {"attnbench gate": [[v.outcome is Outcome.REGRESSED for v in gate.verdicts] for gate in gates]}
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
        shares = " | ".join(share(*by_level[more]) for more in MORE[1:])
        runs = share(sum(map(any, alarms)), len(alarms))
        yield f"| {name} | {share(sum(cases), len(cases))} | {runs} | {shares} |"


def _pytest_benchmark(base: Sequence[float], head: Sequence[float]) -> bool:
    """--benchmark-compare-fail=median:5%, by its own check."""
    from pytest_benchmark.utils import PercentageRegressionCheck

    sides = [{"median": float(np.median(times))} for times in (head, base)]
    return PercentageRegressionCheck("median", 5.0).fails(*sides) is not None


def _asv(base: Sequence[float], head: Sequence[float]) -> bool:
    """asv continuous: worse by its factor of 1.1, and different by its own test."""
    from asv._stats import is_different
    from asv_runner.statistics import compute_stats

    if np.median(head) <= 1.1 * np.median(base):
        return False
    statistics = [compute_stats(list(times), 1)[1] for times in (base, head)]
    return bool(is_different(list(base), list(head), *statistics))


def _mann_whitney(base: Sequence[float], head: Sequence[float]) -> bool:
    """At 0.05, one-sided (scipy)."""
    from scipy.stats import mannwhitneyu

    if np.sign(np.subtract.outer(head, base)).mean() <= 0:
        return False  # its statistic is at most what chance gives: p is at least a half
    return bool(mannwhitneyu(head, base, alternative="greater").pvalue < 0.05)


RULES = {
    "pytest-benchmark, median:5%": _pytest_benchmark,
    "asv continuous, factor 1.1": _asv,
    "Mann-Whitney, p < 0.05": _mann_whitney,
}
