"""How far choices of `attnbench.dispatch` for hidden shapes are from the best: `python -m tools.dispatch_check RUN`.

Each shape of a stored run is hidden in turn, and chosen from the others; with `2` after RUN, a random half at a time.
Exit code 1 if fewer than 95 % of the choices take at most 5 % longer than the best backend.
"""

import math
import random
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import attnbench
from attnbench.analysis.rows import rows_of
from attnbench.dispatch import calls, nearest
from attnbench.dispatch.nearest import MeasuredProblem
from attnbench.studies.dispatch_table import Choice
from attnbench.studies.recommend import dispatch

WITHIN, SHARE = 1.05, 0.95


class Hidden(NamedTuple):
    """The choice for a hidden shape."""

    group: str  # device, dtype, mask and mode
    problem: str
    backend: str  # empty: no measured shape was near
    best: str
    over: float  # its measured time over that of the best

    @property
    def near_best(self) -> bool:
        return self.over <= WITHIN


def hidden(choices: Sequence[Choice], folds: int = 0) -> Iterator[Hidden]:
    """The choice for every shape, from the shapes of the other folds; without folds from all others."""
    for kind, measured in nearest.index(choices).items():
        problems = {choice.problem: plain for choice in choices if (plain := nearest.plain(choice.axes))}
        order = random.Random(0).sample(range(len(measured)), len(measured))
        fold_of = {place: number % (folds or len(measured)) for number, place in enumerate(order)}
        for place, each in enumerate(measured):
            rest = [other for at, other in enumerate(measured) if fold_of[at] != fold_of[place]]
            times = {name: over for name, over in each.ranking.items() if name in calls.CALLABLE}
            if times:
                ranking = nearest.rank(rest, problems[each.problem])
                yield _judged(" ".join(kind), each, times, list(ranking.backends) if ranking else [])


def _judged(group: str, shape: MeasuredProblem, times: dict[str, float], ranked: list[str]) -> Hidden:
    """A backend that has no time was refused there: it is passed over, as in a call."""
    best = min(times, key=lambda name: times[name])
    backend = next((name for name in ranked if name in times), "")
    return Hidden(group, shape.problem, backend, best, times[backend] / times[best] if backend else math.inf)


def table(results: Sequence[Hidden]) -> Iterator[str]:
    """Markdown: a line for each group, and one for all."""
    yield "| measured on | shapes | within 5 % of the best | geometric mean | worst |"
    yield "|---|---:|---:|---:|---|"
    groups = {result.group: [other for other in results if other.group == result.group] for result in results}
    for group, members in {**groups, "all": list(results)}.items():
        chosen = [result.over for result in members if result.backend]
        mean = f"{math.exp(math.fsum(map(math.log, chosen)) / len(chosen)):.3f}x" if chosen else ""
        worst = max(members, key=lambda result: result.over)
        name = f"{worst.backend or 'no measured shape is near'} {worst.over:.2f}x {worst.best} at {worst.problem}"
        yield f"| {group} | {len(members)} | {100 * share(members):.1f} % | {mean} | {name} |"


def share(results: Sequence[Hidden]) -> float:
    """Of the shapes whose choice takes at most 5 % longer than the best."""
    return sum(result.near_best for result in results) / len(results)


def main(run: str, folds: str = "0") -> int:
    """Print the table; 1 if the share is too small."""
    stored = attnbench.load(run)
    choices = dispatch(rows_of(stored.results, arms=stored.manifest.arms)).choices
    results = list(hidden(choices, int(folds)))
    if not results:
        print(f"{run}: no dense or causal problem with a backend that can be called was measured")
        return 1
    print("\n".join(table(results)))
    return int(share(results) < SHARE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
