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
FIRST_DRAWS = 16  # whose time says how many the next round takes, at most so many times as many
GROWTH = 4
ROUND_S = 60.0  # after so long workers start anew
# What decides lengths or sequences by itself: what is drawn of them gives way.
GIVE_WAY = {"seq": ("seq_q", "seq_kv"), "lengths": ("seq_q", "seq_kv", "batch"), "tokens": ("batch",)}
GIVE_WAY |= {"heads": ("kv_heads",)}
FLAGS = frozenset(  # options of their own; others are --set KEY=VALUES
    {
        *("seq", "seq_q", "seq_kv", "batch", "tokens", "heads", "kv_heads", "head_dim", "head_dim_v"),
        *("dtype", "mask", "score", "bias", "mode"),
    }
)


class Verified(msgspec.Struct, kw_only=True):
    """All Results, refusals first, and how it ended."""

    results: list[Result]
    impossible: list[tuple[str, str]]  # cells that are no problem, and why
    ending: Ending
    drawn: bool = False
    options: dict[tuple[Problem, Mode], str] = {}  # that ask for a problem again, of those that were drawn
    seed: int = 0  # with which they were drawn, and their inputs

    def again(self, result: Result) -> str:
        """The command for one that was drawn; empty for others."""
        options = self.options.get((result.case.problem, result.case.mode))
        if options is None:
            return ""
        arm = f"-b {shlex.quote(result.arm.backend)} --device {shlex.quote(result.arm.device)}"
        inputs = result.procedure.inputs
        more = "" if inputs == "normal" else f" --inputs {shlex.quote(inputs)}"
        return f"attnbench verify {options} {arm} --seed {self.seed}{more}"


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

    The seed of the request decides what is drawn. UsageError if nothing of the first round can be a problem; a later
    round of that kind is left out, and what was found stays.
    """
    random, end = Random(request.seed), time.monotonic() + seconds
    total = Verified(results=[], impossible=[], ending=Ending(), drawn=True, seed=request.seed)
    draws = FIRST_DRAWS
    while (left_s := end - time.monotonic()) > 0:
        started = time.monotonic()
        try:
            planned, options = _drawn(request, random, draws, probes, left_s)
        except UsageError:
            if not total.results:
                raise
            continue
        found = run(planned, observer, watch, distributions)
        # What the time was too short for says nothing.
        total.results += [result for result in found.results if result.status is not Status.SKIPPED]
        total.ending, total.options = found.ending, total.options | options
        if found.ending.interrupted or not any(result.status is Status.OK for result in total.results):
            break  # by the user, or nothing is right so far: more of it would tell no more
        pace_s = (time.monotonic() - started) / draws
        draws = max(1, min(GROWTH * draws, int(min(ROUND_S, end - time.monotonic()) / pace_s)))
    return total


def _drawn(
    request: Request, random: Random, draws: int, probes: Sequence[str], left_s: float
) -> tuple[sweep.Sweep, dict[tuple[Problem, Mode], str]]:
    """A plan of as many problems, and the options for each. UsageError of the last draw if none is possible."""
    longest = max(LONGEST[device.kind] for device in sweep.devices_of(request.device))
    planned: sweep.Sweep | None = None
    options: dict[tuple[Problem, Mode], str] = {}
    wrong: UsageError | None = None
    for _ in range(draws):
        free = suite.draw(random, longest)
        for given in GIVE_WAY.keys() & request.axes.keys():
            free = {key: value for key, value in free.items() if key not in GIVE_WAY[given]}
        axes = free | dict(request.axes)
        try:
            # A budget of 0 would be none.
            one = ready(msgspec.structs.replace(request, suites=(), axes=axes, budget=f"{max(1.0, left_s)}s"), probes)
        except UsageError as error:
            wrong = error
            continue
        said = " ".join(_option(key, value) for key, value in axes.items())
        options |= {(cell.problem, cell.mode): said for cell, _ in one.asked}
        if planned is None:
            planned = one
        else:
            planned.asked += one.asked
    if planned is None:
        assert wrong is not None
        raise wrong
    planned.plan = plan.make(planned.asked, sweep.plan_terms(planned.terms))
    return planned, options


def _option(axis: str, value: str) -> str:
    if axis in FLAGS:
        return f"--{axis.replace('_', '-')} {shlex.quote(value)}"
    return f"--set {shlex.quote(f'{axis}={value}')}"
