"""How often the gate errs on this machine: real A/A runs, and real slowdowns of known size. Resumable.

`python tools/gate_eval.py run OUT HOURS` runs gates until the time is over, each kept under OUT, and `python
tools/gate_eval.py table OUT` says what they show, and what other rules make of the same raw data. `make gate-eval` does
both.

A slowdown is real work: behind the same label head computes more heads than base (40 against 42, 44, 48).
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from attnbench import stats, store
from attnbench.gate import evidence, judgement
from attnbench.result import Outcome, Sample
from attnbench.store import Run

HEADS = 40
MORE = (0, 2, 4, 8, 16)  # heads: 0, 5, 10, 20, 40 % more work
LENGTHS = "192,256,384"
KERNEL = """
import torch
import torch.nn.functional as F

HEADS, MORE = {heads}, {more}

def attend(q, k, v, causal=False, scale=None):
    # More heads than asked for, behind the same label: views of the first ones, so that nothing is copied for them.
    q, k, v = (torch.cat([one, one[:, :MORE]], dim=1) if MORE else one.clone() for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)[:, :HEADS].contiguous()
"""


def run(out: Path, hours: float) -> None:
    """One gate after another, A/A and every level in turn, until the time is over."""
    until = time.monotonic() + 3600 * hours
    for level in MORE:
        folder = out / "kernels" / str(level)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernel.py").write_text(KERNEL.format(heads=HEADS, more=level))
    while time.monotonic() < until:
        done = [path.name for path in out.glob("*-*") if (path / store.MANIFEST).exists()]
        number = len(done)
        # Every other gate is an A/A run of the whole suite; between them the levels take turns.
        level = MORE[1:][number // 2 % (len(MORE) - 1)] if number % 2 else 0
        name = f"{number:04d}-{'aa' if not number % 2 else f'heads{level}'}"
        command = [sys.executable, "-m", "attnbench", "-q", "gate", "-o", str((out / name).absolute())]
        if number % 2:
            base = (out / "kernels" / "0").absolute()
            command += ["-b", "kernel.py:attend", "--seq", LENGTHS, "--heads", str(HEADS), "--mask", "none"]
            command += ["--base-path", str(base)]
        else:
            command += ["ci", "--noop"]
        where = out / "kernels" / str(level) if number % 2 else Path()
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=where)


def table(out: Path) -> Iterator[str]:
    """Markdown: errors of the gate, then those of other rules on the same samples."""
    runs = [store.read(path.parent) for path in sorted(out.glob(f"*-*/{store.MANIFEST}"))]
    equal = [one for one in runs if one.path.name.endswith("aa")]
    yield "| A/A | |\n|---|---:|"
    red = sum(_red(one) for one in equal)
    verdicts = [v for one in equal for v in judgement.judge(one).verdicts if v.metric == "time_s"]
    yield f"| real gate runs | {len(equal)} |"
    yield f"| with any `regressed` | {red}, {_wilson(red, len(equal))} |"
    loose = sum(v.outcome is Outcome.INCONCLUSIVE for v in verdicts)
    yield f"| inconclusive cases | {loose} of {len(verdicts)}, {_wilson(loose, len(verdicts))} |"
    margins = sorted(v.margin for v in verdicts if v.margin is not None)
    if margins:
        ends = f"{100 * margins[0]:.1f} to {100 * margins[-1]:.1f} %"
        yield f"| margins: median, range | {100 * margins[len(margins) // 2]:.1f} %, {ends} |"
    seconds = [one.manifest.seconds["total"] for one in equal if "total" in one.manifest.seconds]
    if seconds:
        yield f"| wall time of a run: median, longest | {np.median(seconds):.0f} s, {max(seconds):.0f} s |"
    yield ""
    yield "| more heads | cases | slowdown seen, median | `regressed` | in margins: 1 to 2 | 2 to 3 | above 3 |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for level in MORE[1:]:
        own = [one for one in runs if one.path.name.endswith(f"heads{level}")]
        found = [v for one in own for v in judgement.judge(one).verdicts if v.metric == "time_s"]
        if found:
            yield _level(level, found)
    yield ""
    yield "| rule, on the same samples | A/A cases red | A/A runs with any | slower cases found |\n|---|---:|---:|---:|"
    slower = [one for one in runs if "heads" in one.path.name]
    for name, rule in RULES.items():
        alarms = [[rule(base, head) for base, head in _pairs(one)] for one in equal]
        hits = [rule(base, head) for one in slower for base, head in _pairs(one)]
        cases = [hit for each in alarms for hit in each]
        yield f"| {name} | {_share(cases)} | {_share([any(each) for each in alarms])} | {_share(hits)} |"


def _level(level: int, found: Sequence) -> str:
    changes = sorted(v.change for v in found)
    hit = [v.outcome is Outcome.REGRESSED for v in found]
    true = changes[len(changes) // 2]  # the level's own median: every run sees the same work
    bins: list[list[bool]] = [[], [], []]
    for v, red in zip(found, hit, strict=True):
        times = true / v.margin
        if times >= 1:
            bins[0 if times < 2 else 1 if times < 3 else 2].append(red)
    cells = " | ".join(_share(one) for one in bins)
    return f"| {HEADS} against {HEADS + level} | {len(found)} | {100 * true:+.1f} % | {_share(hit)} | {cells} |"


# -- other rules, on the first launch of each side, as they would see it ----------------------------------------------


def _pairs(run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for pair in evidence.pairings(run.results):
        if pair.base and pair.head and pair.base.times and pair.head.times:
            yield _blocks(pair.base.times[0]), _blocks(pair.head.times[0])


def _blocks(sample: Sample) -> np.ndarray:
    return stats.finite(stats.block_medians(sample))


def _pytest_benchmark(base: np.ndarray, head: np.ndarray) -> bool:
    """--benchmark-compare-fail=median:5%."""
    return bool(np.median(head) > 1.05 * np.median(base))


def _asv(base: np.ndarray, head: np.ndarray) -> bool:
    """asv continuous: worse by its factor of 1.1, and different by its own test."""
    from asv._stats import is_different
    from asv_runner.statistics import compute_stats

    sides = [one.tolist() for one in (base, head)]
    known = [compute_stats(one, 1)[1] for one in sides]
    return bool(np.median(head) > 1.1 * np.median(base)) and bool(is_different(*sides, *known))


def _mann_whitney(base: np.ndarray, head: np.ndarray) -> bool:
    """At 0.05, one-sided."""
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(head, base, alternative="greater").pvalue < 0.05)


RULES = {
    "pytest-benchmark, median:5%": _pytest_benchmark,
    "asv continuous, factor 1.1": _asv,
    "Mann-Whitney, p < 0.05": _mann_whitney,
}


def _red(run: Run) -> bool:
    return any(v.outcome is Outcome.REGRESSED and v.metric == "time_s" for v in judgement.judge(run).verdicts)


def _share(hits: Sequence[bool]) -> str:
    return f"{sum(hits)} of {len(hits)}" if hits else "-"


def _wilson(hits: int, count: int, z: float = 1.96) -> str:
    """The 95 % interval of a share (Wilson 1927)."""
    if not count:
        return "-"
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return f"{100 * max(0.0, middle - half):.1f} to {100 * min(1.0, middle + half):.1f} %"


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), float(sys.argv[3]))
    print("\n".join(table(Path(sys.argv[2]))))
