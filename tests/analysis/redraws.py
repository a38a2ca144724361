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


class Truth(msgspec.Struct, frozen=True):
    """Seconds of all steps."""

    best: float  # each step with its fastest backend
    total: dict[str, float]  # by backend
    by_scope: dict[tuple[str, str], float]  # by scope and backend
    by_kind: dict[tuple[StepKind, str], float]
    by_context: dict[tuple[tuple[int, int], str], float]


@cache
def truth_of(name: str) -> Truth:
    """The seconds of a cost function, which are the same for each redraw."""
    steps, functions = cost_functions()
    costs, decode = functions[name], steps.kinds == DECODE
    ranges = [(1 << octave, 2 << octave) for octave in range(20)]
    of_scope = {traffic_totals.ALL_STEPS: decode | True, traffic_totals.DECODE: decode, traffic_totals.PREFILL: ~decode}
    of_kind = {kind: steps.kinds == place for place, kind in enumerate(KINDS)}
    of_context = {each: (steps.context >= each[0]) & (steps.context < each[1]) for each in ranges}
    by_scope, by_kind, by_context = (
        {(key, backend): float(seconds[inside].sum()) for key, inside in masks.items()
         for backend, seconds in costs.items()}
        for masks in (of_scope, of_kind, of_context)
    )  # fmt: skip
    return Truth(
        best=float(np.min(list(costs.values()), axis=0).sum()),
        total={backend: float(seconds.sum()) for backend, seconds in costs.items()},
        by_scope=by_scope, by_kind=by_kind, by_context=by_context,
    )  # fmt: skip


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
    costs, truth = functions[name], truth_of(name)
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
        for quantity, estimate, right in (
            *of_totals(totals, truth), *of_policies(totals, truth), *of_mix(mix, truth, fastest)
        ):  # fmt: skip
            found.setdefault(quantity, Coverage()).add(estimate, right)
    return found


def of_totals(totals: TrafficTotals, truth: Truth) -> Iterator[tuple[str, Estimate, float]]:
    """Estimates of backends with the truth."""
    fastest = truth.total[totals.totals[0].backend]
    for total in totals.totals:
        yield f"seconds of {total.backend}", total.seconds, truth.total[total.backend]
        if total.over_fastest:
            yield "over fastest", total.over_fastest, truth.total[total.backend] / fastest


def of_policies(totals: TrafficTotals, truth: Truth) -> Iterator[tuple[str, Estimate, float]]:
    """Estimates of the choices that were made, with the truth."""
    true_s = {PolicyName.STEP: truth.best}
    for name in (PolicyName.SINGLE, PolicyName.PHASE):
        true_s[name] = sum(truth.by_scope[choice.scope, choice.backend] for choice in totals.policy(name).choices)
    for name, seconds in true_s.items():
        policy = totals.policy(name)
        yield f"seconds of {name}", policy.seconds, seconds
        if policy.regret:
            yield f"regret of {name}", policy.regret, seconds / truth.best - 1
        if policy.over_phase:
            yield "one backend over one per phase", policy.over_phase, seconds / true_s[PolicyName.PHASE] - 1


def of_mix(mix: traffic_mix.Mix, truth: Truth, backend: str) -> Iterator[tuple[str, Estimate, float]]:
    """Shares with the truth."""
    shares = [("share of a kind", part.share, truth.by_kind[part.kind, backend]) for part in mix.by_kind]
    shares += [
        ("share of a context length", part.share, truth.by_context[part.context, backend]) for part in mix.by_context
    ]
    yield from ((name, share, seconds / truth.total[backend]) for name, share, seconds in shares if share)


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
