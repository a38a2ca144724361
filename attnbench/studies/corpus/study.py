"""The corpus judged: which rule finds which kernel wrong, and the rates of detection and of false alarms."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from attnbench.errors import Exit
from attnbench.records.case import Case
from attnbench.studies.corpus.registry import CorpusKernel, kernels, listing

if TYPE_CHECKING:
    from attnbench.worker.in_process import Verifier

OURS = "attnbench"
WEAK_SPOT = "weak spot"
THEIRS = ("assert_close", "allclose-1e-2", "kernelbench", "flash-attention", "kernels")  # the names in rules.py
RULES = (OURS, *THEIRS)


class RuleVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rule says of one kernel."""

    kernel: str
    rule: str
    kind: str = ""  # of fault; empty: the kernel is right
    chosen: str = ""
    found_wrong: bool | None  # None: the rule cannot judge it
    reason: str = ""

    @property
    def good(self) -> bool:
        """Whether a wrong kernel is found, or a right one is not."""
        return bool(self.found_wrong) is bool(self.kind)


class RuleRates(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of one rule."""

    rule: str
    wrong: int  # wrong kernels
    detected: int
    found_any: int  # of those chosen without regard to attnbench's rule
    wrong_any: int
    right: int  # right kernels
    false_alarms: int
    unjudged: int  # kernels of either kind that the rule cannot judge: not found, and no false alarm


def sample(count: int | None) -> list[str]:
    """So many names at even distances in the listing; all of them without a count."""
    names = list(listing())
    if count is None or count >= len(names):
        return names
    return [names[number * len(names) // count] for number in range(count)]


def judge(names: Sequence[str], rules: Sequence[str]) -> Iterator[RuleVerdict]:
    """Judge these kernels by these rules, one after the other. Imports torch, and computes on one thread."""
    from attnbench.studies.corpus.kernels import formula
    from attnbench.studies.corpus.rules import RULES as OTHERS
    from attnbench.studies.corpus.rules import objection
    from attnbench.worker.in_process import Verifier

    with tempfile.TemporaryDirectory() as folder:
        verifier = Verifier(Path(folder))
        for kernel in (each for each in kernels() if each.name in set(names)):
            for rule in rules:
                formula.KEPT.clear()
                reason = _objection(verifier, kernel) if rule == OURS else objection(OTHERS[rule], kernel)
                yield RuleVerdict(
                    kernel=kernel.name,
                    rule=rule,
                    kind=kernel.kind,
                    chosen=kernel.chosen,
                    found_wrong=None if reason is None else bool(reason),
                    reason=reason or "",
                )


def _objection(verifier: Verifier, kernel: CorpusKernel) -> str:
    cases = [Case(problem=problem, backend=kernel.backend, mode=kernel.mode) for problem in kernel.problems]
    return next(filter(None, map(verifier.objection, cases)), "")


def rates(verdicts: Iterable[RuleVerdict]) -> list[RuleRates]:
    """The counts by rule, in the order of the verdicts."""
    by_rule: dict[str, list[RuleVerdict]] = {}
    for verdict in verdicts:
        by_rule.setdefault(verdict.rule, []).append(verdict)
    return [_rates(rule, group) for rule, group in by_rule.items()]


def _rates(rule: str, verdicts: Sequence[RuleVerdict]) -> RuleRates:
    wrong = [verdict for verdict in verdicts if verdict.kind]
    of_any = [verdict for verdict in wrong if verdict.chosen != WEAK_SPOT]
    right = [verdict for verdict in verdicts if not verdict.kind]
    return RuleRates(
        rule=rule,
        wrong=len(wrong),
        detected=sum(verdict.good for verdict in wrong),
        wrong_any=len(of_any),
        found_any=sum(verdict.good for verdict in of_any),
        right=len(right),
        false_alarms=sum(not verdict.good for verdict in right),
        unjudged=sum(verdict.found_wrong is None for verdict in verdicts),
    )


def exit_code(verdicts: Iterable[RuleVerdict]) -> Exit:
    """FAILED if attnbench's own rule errs; the others are reported alone."""
    return Exit.OK if all(verdict.good for verdict in verdicts if verdict.rule == OURS) else Exit.FAILED
