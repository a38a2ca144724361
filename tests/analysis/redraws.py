"""How often intervals hold the truth, over redraws of made-up steps: `python -m tests.analysis.redraws [REDRAWS]`."""

import sys
from collections.abc import Iterator
from functools import cache

import msgspec
import numpy as np

from attnbench.analysis import traffic, traffic_interval, traffic_mix, traffic_part, traffic_totals
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic_totals import Measured, PolicyName, TrafficTotals
from attnbench.suite.serving.simulation import KINDS, StepKind
from tests.analysis.made_steps import made_steps

ROUNDS, NOISE = 5, 0.03
DRAWS = (traffic_interval.MIN_STEPS, 64)  # the fewest that give intervals, and the default
REDRAWS = 1000
DECODE = KINDS.index(StepKind.DECODE)
NAMES = (
    "libraries", "one is always best", "best by phase", "best by context", "best by rare context",
    "rare expensive steps", "no difference",
)  # fmt: skip


@cache
def cost_functions():
    """The steps, and by name the seconds of every step with each backend."""
    steps, costs = made_steps()
    rng, fused, context = np.random.default_rng(5), costs["fused"], steps.context
    decode, rare = steps.kinds == DECODE, steps.predicted_s > np.quantile(steps.predicted_s, 0.995)

    def near(spread):
        return fused * rng.lognormal(0, spread, len(fused))

    functions = (
        costs,
        {"a": fused, "b": 1.5 * near(0.1), "c": 2 * fused},
        {"a": fused * np.where(decode, 1, 1.6), "b": fused * np.where(decode, 1.4, 1)},
        {"a": fused * np.where(context < 2048, 1, 1.5), "b": fused * np.where(context < 2048, 1.2, 1)},
        {"a": fused * np.where(context < 4096, 1, 1.5), "b": fused * np.where(context < 4096, 1.2, 1)},
        {"a": fused * np.where(rare, 3, 1), "b": 1.3 * fused},
        {name: near(0.02) for name in "abc"},
    )
    return steps, dict(zip(NAMES, functions, strict=True))


class Coverage(msgspec.Struct):
    """What one quantity was in all redraws."""

    errors: list[float] = []
    holds: list[bool] = []  # of redraws with an interval
    widths: list[float] = []

    def add(self, estimate: Estimate, truth: float) -> None:
        self.errors.append(estimate.value - truth)
        if estimate.low is not None and estimate.high is not None:
            self.holds.append(bool(estimate.low <= truth * (1 + 1e-9) and truth <= estimate.high + 1e-9))
            self.widths.append(estimate.high - estimate.low)

    @property
    def share(self) -> float:
        return float(np.mean(self.holds))


def coverage(name: str, draws: int, redraws: int, seed: int = 1, measured_steps: int = 0) -> dict[str, Coverage]:
    """By quantity: totals, ratios, seconds and regrets of policies, and shares of the mix.

    `measured_steps`: of the drawn ones; 0 for all.
    """
    steps, functions = cost_functions()
    costs = functions[name]
    every = np.stack(list(costs.values()), axis=1)
    frame, rng, found = traffic.frame(steps, draws), np.random.default_rng(seed), {}
    for _ in range(redraws):
        drawn = frame.draw(rng)
        if measured_steps:
            parts = traffic_part.nested(drawn, steps.at(drawn.steps), int(rng.integers(1 << 30))).parts
            drawn = next(part.drawn for part in parts if len(part.places) == measured_steps)
        noise = rng.lognormal(0, NOISE, (len(drawn.steps), every.shape[1], ROUNDS))
        measured = Measured(
            backends=tuple(costs), kinds=steps.kinds[drawn.steps], times_s=every[drawn.steps][:, :, None] * noise
        )
        totals = traffic_totals.estimate(drawn, measured, hours=1)
        fastest = totals.totals[0].backend
        mix = traffic_mix.mix(steps, drawn, measured.of(fastest))
        pairs = (*of_totals(totals, costs), *of_policies(totals, costs, steps), *of_mix(mix, costs[fastest], steps))
        for quantity, estimate, truth in pairs:
            found.setdefault(quantity, Coverage()).add(estimate, truth)
    return found


def of_totals(totals: TrafficTotals, costs) -> Iterator[tuple[str, Estimate, float]]:
    """Estimates of backends with the truth."""
    fastest = costs[totals.totals[0].backend].sum()
    for total in totals.totals:
        yield f"seconds of {total.backend}", total.seconds, costs[total.backend].sum()
        if total.over_fastest:
            yield "over fastest", total.over_fastest, costs[total.backend].sum() / fastest


def of_policies(totals: TrafficTotals, costs, steps) -> Iterator[tuple[str, Estimate, float]]:
    """Estimates of the choices that were made, with the truth."""
    decode = steps.kinds == DECODE
    inside = {traffic_totals.ALL_STEPS: decode | True, traffic_totals.DECODE: decode, traffic_totals.PREFILL: ~decode}
    best = np.min(list(costs.values()), axis=0).sum()
    true_s = {PolicyName.STEP: best}
    for name in (PolicyName.SINGLE, PolicyName.PHASE):
        choices = totals.policy(name).choices
        true_s[name] = sum(costs[choice.backend][inside[choice.scope]].sum() for choice in choices)
    for name, truth in true_s.items():
        policy = totals.policy(name)
        yield f"seconds of {name}", policy.seconds, truth
        if policy.regret:
            yield f"regret of {name}", policy.regret, truth / best - 1
        if policy.over_phase:
            yield "one backend over one per phase", policy.over_phase, truth / true_s[PolicyName.PHASE] - 1


def of_mix(mix: traffic_mix.Mix, costs, steps) -> Iterator[tuple[str, Estimate, float]]:
    """Shares with the truth."""
    for part in (*mix.by_kind, *mix.by_context):
        inside = steps.kinds == KINDS.index(part.kind) if part.kind else True
        if part.context:
            inside = (steps.context >= part.context[0]) & (steps.context < part.context[1])
        if part.share:
            yield (
                "share of a kind" if part.kind else "share of a context length",
                part.share,
                float(costs[inside].sum() / costs.sum()),
            )


def main(redraws: int) -> None:
    """Print the table of docs/serving.md."""
    policies = tuple(f"seconds of {name}" for name in PolicyName)
    print("| cost of a step | draws | totals | ratios | policies | regrets | width of a regret | shares |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in NAMES:
        for draws, measured_steps in (*((draws, 0) for draws in DRAWS), (max(DRAWS), min(DRAWS))):
            every = coverage(name, draws, redraws, measured_steps=measured_steps)
            found = {key: each for key, each in every.items() if each.holds}
            number = f"{measured_steps} of {draws}" if measured_steps else str(draws)
            groups = (
                [key for key in found if key.startswith("seconds of ") and key not in policies],
                [key for key in found if key.startswith(("over", "one backend"))], policies,
                [key for key in found if key.startswith("regret")], [key for key in found if key.startswith("share")],
            )  # fmt: skip
            lowest = [f"{100 * min(found[key].share for key in each):.1f} %" for each in groups]
            width = np.median(np.concatenate([found[key].widths for key in groups[3]]))
            print("|", " | ".join([name, number, *lowest[:4], f"{100 * width:.1f} points", lowest[4]]), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else REDRAWS)
