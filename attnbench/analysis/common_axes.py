"""What failed cases have in common: the simplest condition on an axis that no case fulfils that is ok."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

from attnbench.records.result import Result, Status
from attnbench.suite.filters import axis_keys
from attnbench.suite.keys import AXES
from attnbench.suite.readers import spell

MIN_FAILED = 2  # one case has everything in common with itself
MAX_SHOWN = 3  # conditions of a sentence

Values = Mapping[str, object]  # of a case, by axis


class Condition(NamedTuple):
    """`seq_kv > 128`, `mask = causal`; of a feature, `gqa in features`."""

    axis: str
    relation: str  # =, > or <; `has` for a feature
    value: object

    @property
    def text(self) -> str:
        """The condition after `all of them have`."""
        if self.relation == "has":
            return f"the feature {self.value}"
        return f"{self.axis} {self.relation} {spell(self.value)}"


def sentence(results: Sequence[Result]) -> str:
    """`all 6 failures have seq_kv > 128, and no right case of this backend has it`; empty if nothing separates them."""
    failed = [values(result) for result in results if result.status.failed]
    passed = [values(result) for result in results if result.status is Status.OK]
    conditions = separating(failed, passed) if len(failed) >= MIN_FAILED and passed else []
    if not conditions:
        return ""
    shown = conditions[:MAX_SHOWN]
    both = " and ".join(condition.text for condition in shown)
    it = "it" if len(shown) == 1 else "any of these"
    return f"all {len(failed)} failures have {both}, and no right case of this backend has {it}"


def values(result: Result) -> dict[str, object]:
    """The values of a case on every axis, and the features of its problem."""
    problem, rest = result.case.problem, {"mode": result.case.mode, "inputs": result.procedure.inputs}
    axes = {name: AXES[name].of(problem) for name in axis_keys() if name not in rest}
    return {**axes, **rest, "features": problem.features}


def separating(failed: Sequence[Values], passed: Sequence[Values]) -> list[Condition]:
    """The conditions of the simplest kind that hold for all failed cases and for no other.

    An equality is simpler than a threshold, and a threshold than a feature. An axis that has the same values as an
    earlier one in all cases is left out.
    """
    cases = (*failed, *passed)
    distinct = {tuple(case[axis] for case in cases): axis for axis in reversed(list(cases[0]))}
    axes = [axis for axis in cases[0] if axis in distinct.values()]
    for kind in (_equality, _threshold, _feature):
        conditions = [condition for axis in axes for condition in kind(axis, failed, passed)]
        if conditions:
            return conditions
    return []


def _equality(axis: str, failed: Sequence[Values], passed: Sequence[Values]) -> list[Condition]:
    value = failed[0][axis]
    if isinstance(value, frozenset) or any(case[axis] != value for case in failed):
        return []
    return [] if any(case[axis] == value for case in passed) else [Condition(axis, "=", value)]


def _threshold(axis: str, failed: Sequence[Values], passed: Sequence[Values]) -> list[Condition]:
    of_failed, of_passed = ([case[axis] for case in cases] for cases in (failed, passed))
    numbers = [value for value in (*of_failed, *of_passed) if _is_number(value)]
    if len(numbers) < len(failed) + len(passed):
        return []
    failing, passing = numbers[: len(failed)], numbers[len(failed) :]
    if min(failing) > max(passing):
        return [Condition(axis, ">", max(passing))]
    return [Condition(axis, "<", min(passing))] if max(failing) < min(passing) else []


def _feature(axis: str, failed: Sequence[Values], passed: Sequence[Values]) -> list[Condition]:
    sets = [case[axis] for case in (*failed, *passed)]
    words = [value for value in sets if isinstance(value, frozenset)]
    if len(words) < len(sets):
        return []
    common = frozenset.intersection(*words[: len(failed)]) - frozenset().union(*words[len(failed) :])
    return [Condition(axis, "has", word) for word in sorted(common)]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
