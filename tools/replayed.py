"""Answers of `attnbench replay` from drawn steps against every step: `python tools/replayed.py [DIR]`.

A short trace and a small model: all of its steps are measured once, which gives the true totals and the true best
backends. Then steps are drawn many times, and each draw is answered from the same results. Run alone on the machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from attnbench.analysis import traffic_totals
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic import Draw, TrafficSteps, draw
from attnbench.analysis.traffic_totals import PolicyName, TrafficTotals
from attnbench.engine import sweep
from attnbench.engine.runner import SilentObserver
from attnbench.engine.sweep import Request
from attnbench.records.result import Result
from attnbench.studies import replay, replayed_steps
from attnbench.studies.replayed_steps import StepProblems
from attnbench.suite.serving.simulation import simulate

TRACE = (
    "generated:requests=40:requests_per_s=20000:input_tokens=300:output_tokens=8:output_variation=0.5:max_tokens=900"
)
MODEL = {"model_type": "gpt2", "n_embd": 512, "n_head": 8, "n_layer": 6, "n_positions": 2048, "vocab_size": 1000}
DRAWS = (16, 40)
SEEDS = 500


def main(directory: Path) -> None:
    """Measure every step, then print errors and coverage of the draws."""
    (directory / "config.json").write_text(json.dumps(MODEL))
    settings = replay.ReplaySettings(trace=TRACE, model=directory / "config.json", max_num_batched_tokens=512)
    serving = replay.serving_of(settings)
    table = replay.traffic_steps(simulate(serving).steps)
    request = Request(device="cpu:threads=1", rounds="10", budget="0")
    every = replayed_steps.plan_replay(serving, table, request, count=len(table.kinds), settings=settings)
    print(f"{len(every.drawn.steps)} steps, {every.sweep.plan.cases} cases", flush=True)
    results = sweep.run(every.sweep, SilentObserver(), directory=directory / "run").run.results
    steps = dict(zip(every.drawn.steps.tolist(), every.steps, strict=True))
    truth = totals(every.drawn, steps, results, table)
    print(
        "| steps drawn | quantity | true | mean error of a draw | intervals that hold it |\n|---:|---|---:|---:|---:|"
    )
    for count in DRAWS:
        answers = [totals(draw(table, count, seed), steps, results, table) for seed in range(SEEDS)]
        for name, of in quantities(truth).items():
            print(row(count, name, of(truth), [of(each) for each in answers]))


def totals(
    drawn: Draw, steps: dict[int, StepProblems], results: Sequence[Result], table: TrafficSteps
) -> TrafficTotals:
    """The answer of one draw."""
    chosen = [steps[step] for step in drawn.steps.tolist()]
    return traffic_totals.estimate(drawn, replayed_steps.times_of(chosen, results, drawn, table), hours=1.0)


def quantities(truth: TrafficTotals) -> dict[str, Callable[[TrafficTotals], Estimate | None]]:
    """What an answer says: the seconds of each backend, and the regret of the policies."""
    named = {
        f"seconds of {each.backend}": lambda answer, name=each.backend: next(
            (other.seconds for other in answer.totals if other.backend == name), None
        )
        for each in truth.totals
    }
    regrets = {
        f"regret of {name.value}": lambda answer, name=name: answer.policy(name).regret
        for name in (PolicyName.SINGLE, PolicyName.PHASE)
    }
    return named | regrets


def row(count: int, name: str, truth: Estimate | None, answers: Sequence[Estimate | None]) -> str:
    """One line of the table: seconds with relative errors, regrets with errors in points."""
    assert truth is not None, name
    known = [each for each in answers if each is not None]
    scale = truth.value if name.startswith("seconds") else 1.0
    error = float(np.mean([abs(each.value - truth.value) for each in known])) / scale
    near = float(np.mean([abs(each.value - truth.value) <= 0.02 for each in known]))
    ends = [(each.low, each.high) for each in known if each.low is not None and each.high is not None]
    share = np.mean([low <= truth.value <= high for low, high in ends]) if ends else 0.0
    held = f"{100 * share:.1f} % of {len(ends)}" if ends else "none"
    value, unit = (
        (f"{truth.value:.3g} s", "%") if name.startswith("seconds") else (f"{100 * truth.value + 0.0:.2g} %", "points")
    )
    within = "" if name.startswith("seconds") else f"; {100 * near:.0f} % within 2 points"
    return f"| {count} | {name} | {value} | {100 * error:.2g} {unit} | {held}{within} |"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
