"""Do restarts of forked workers vary as those of new processes do? `python -m tools.forks [RESTARTS]`.

Pairs of equal arms are measured in restarts whose workers are, in turn, forks of one process and started with Python.
The table has the standard deviation of log(second / first) between restarts of each kind; the last line compares the
pooled variances. Run it alone on the machine.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np

import attnbench
from attnbench.analysis import readings, stats
from attnbench.engine import worker_start
from attnbench.records.result import Result

CASES = {"seq": "256,512", "mask": ["none", "causal"], "heads": "8"}
BACKENDS = "naive,naive,sdpa:flash,sdpa:flash"
KINDS = ("forks", "new processes")


def effects(folder: Path) -> dict[str, float]:
    """log(second copy / first) of each case, in one restart."""
    stored = attnbench.run(**CASES, backend=BACKENDS, device="cpu:threads=1", rounds="10", budget="0", out=str(folder))
    copies: dict[str, dict[int, Result]] = defaultdict(dict)
    for result in stored.results:
        copies[result.case.label][result.arm.copy] = result
    return {
        label: readings.LOCATIONS["median"](stats.log_ratios(of[2].samples["time"], of[1].samples["time"]))
        for label, of in copies.items()
    }


def measured(restarts: int) -> dict[str, dict[str, list[float]]]:
    """The effects by kind of process and by case; the kinds take turns."""
    start, found = worker_start.start, {kind: defaultdict[str, list[float]](list) for kind in KINDS}

    def started(options: worker_start.Start) -> worker_start.Process:
        return start(msgspec.structs.replace(options, forks=kind == KINDS[0]))

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(worker_start, "start", started):
        for number in range(2 * restarts):
            kind = KINDS[number % 2]
            for label, effect in effects(Path(folder) / str(number)).items():
                found[kind][label].append(effect)
            print(f"{number + 1} of {2 * restarts}", file=sys.stderr)
    return {kind: dict(cases) for kind, cases in found.items()}


def main(restarts: int = 16) -> None:
    """Measure, and print the table."""
    from scipy.stats import f

    found = measured(restarts)
    print("| case | sd between restarts, forks | new processes |\n|---|---:|---:|")
    variances = {kind: [float(np.var(effects, ddof=1)) for effects in found[kind].values()] for kind in KINDS}
    for label, of_forks, of_new in zip(found[KINDS[0]], *variances.values(), strict=True):
        print(f"| {label} | {100 * math.sqrt(of_forks):.2f} % | {100 * math.sqrt(of_new):.2f} % |")
    forked, new = (float(np.mean(of_kind)) for of_kind in variances.values())
    free = len(found[KINDS[0]]) * (restarts - 1)
    low, high = (math.sqrt(forked / new * f.ppf(q, free, free)) for q in (0.025, 0.975))
    print(
        f"\npooled: {100 * math.sqrt(forked):.2f} % and {100 * math.sqrt(new):.2f} %, quotient "
        f"{math.sqrt(forked / new):.2f} ({low:.2f} to {high:.2f} at 95 % for normal noise)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
