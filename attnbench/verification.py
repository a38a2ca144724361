"""What `attnbench verify` does: every case is judged against float64, and none is timed.

A backend whose times mean nothing on a CPU runs in its interpreter there.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from attnbench import plan, suite, sweep
from attnbench.attention.problem import Mode, Problem
from attnbench.errors import UnknownNameError, UsageError
from attnbench.probes import PROBES
from attnbench.result import Result, Status
from attnbench.runner import Ending, Observer, Runner
from attnbench.sweep import Request

DEFAULT_SUITE = "verify"
LONGEST = {"cpu": 256, "cuda": 4096}  # of the lengths that are drawn; an interpreter takes seconds for more
FIRST_DRAWS = 16  # whose time says how many the next round takes
ROUND_S = 60.0  # after so long what was drawn is shown, and workers start anew


class Verified(msgspec.Struct, kw_only=True):
    """All Results, refusals first, and how it ended."""

    results: list[Result]
    impossible: list[tuple[str, str]]  # cells that are no problem, and why
    ending: Ending
    commands: dict[tuple[Problem, Mode], str] = {}  # that ask for a problem again, of those that were drawn
    seed: int = 0  # with which they were drawn, and their inputs


def ready(request: Request, probes: Sequence[str] = ()) -> sweep.Sweep:
    """The plan; without suite and lengths, of the suite `verify`, and without a budget unless one is asked for.

    Raises UnknownNameError for a probe that is none.
    """
    for name in probes:
        if name not in PROBES:
            raise UnknownNameError("probe", name, PROBES, where="--probe")
    request = msgspec.structs.replace(request, budget=request.budget or "0")
    ready = sweep.ready(request, interpreted=True, default_suite=DEFAULT_SUITE)
    ready.terms = msgspec.structs.replace(ready.terms, verify_only=True, launches=1, probes=tuple(probes))
    return ready


def run(
    planned: sweep.Sweep,
    observer: Observer,
    watch: Callable[[Runner], None] | None = None,
    distributions: Sequence[str] = ("normal",),
) -> Verified:
    """Verify a plan, with inputs of every distribution. `watch` is given each runner before it runs."""
    results = list(planned.plan.refusals)
    for refusal in results:
        observer.result(refusal, 0.0)
    ending = Ending()
    for distribution in distributions:
        procedures = {
            kind: msgspec.structs.replace(one, inputs=distribution) for kind, one in planned.terms.procedures.items()
        }
        terms = msgspec.structs.replace(planned.terms, procedures=procedures)
        runner = Runner(planned.plan, terms, results.extend, observer)
        if watch:
            watch(runner)
        ending = runner.run()
        if ending.interrupted or ending.stopped:
            break
    return Verified(results=results, impossible=planned.plan.impossible, ending=ending)


def soak(
    request: Request,
    seconds: float,
    observer: Observer,
    watch: Callable[[Runner], None] | None = None,
    probes: Sequence[str] = (),
    distributions: Sequence[str] = ("normal",),
) -> Verified:
    """Verify problems drawn at random for so long. What the request asks for is as it asks; the rest is drawn.

    The seed of the request decides what is drawn, and how many; UsageError if nothing of it can be a problem.
    """
    random, began = Random(request.seed), time.monotonic()
    total = Verified(results=[], impossible=[], ending=Ending(), seed=request.seed)
    draws, spent_s = FIRST_DRAWS, 0.0
    while (left_s := seconds - (time.monotonic() - began)) > 0:
        started = time.monotonic()
        planned, commands = _drawn(request, random, draws, probes, f"{left_s:.0f}s")
        found = run(planned, observer, watch, distributions)
        # What the time was too short for says nothing.
        total.results += [result for result in found.results if result.status is not Status.SKIPPED]
        total.ending, total.commands = found.ending, total.commands | commands
        if found.ending.interrupted:
            break
        spent_s = time.monotonic() - started
        draws = max(1, int(draws * min(ROUND_S, seconds - (time.monotonic() - began)) / spent_s))
    return total


def _drawn(
    request: Request, random: Random, draws: int, probes: Sequence[str], budget: str
) -> tuple[sweep.Sweep, dict[tuple[Problem, Mode], str]]:
    """A plan of as many problems, and the command for each. UsageError of the last draw if none is possible."""
    longest = max(LONGEST[device.kind] for device in sweep.devices_of(request.device))
    planned: sweep.Sweep | None = None
    commands: dict[tuple[Problem, Mode], str] = {}
    wrong: UsageError | None = None
    for _ in range(draws):
        axes = suite.draw(random, longest) | dict(request.axes)
        if "seq" in request.axes:
            axes = {key: value for key, value in axes.items() if key not in ("seq_q", "seq_kv")}
        try:
            one = ready(msgspec.structs.replace(request, suites=(), axes=axes, budget=budget), probes)
        except UsageError as error:
            wrong = error
            continue
        options = " ".join(f"--{key.replace('_', '-')} {shlex.quote(value)}" for key, value in axes.items())
        commands |= {(cell.problem, cell.mode): f"attnbench verify {options}" for cell, _ in one.asked}
        if planned is None:
            planned = one
        else:
            planned.asked += one.asked
    if planned is None:
        assert wrong is not None
        raise wrong
    planned.plan = plan.make(planned.asked, sweep.plan_terms(planned.terms))
    return planned, commands
