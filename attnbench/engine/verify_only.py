"""Verification without timing, as `attnbench verify` does it: outputs and gradients against float64.

On a CPU, a backend that cannot be timed there runs in its interpreter.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from attnbench import suite
from attnbench.attention import inputs
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import sweep
from attnbench.engine.case_command import case_command
from attnbench.engine.runner import Ending, Observer, PlanRunner, Runner
from attnbench.engine.sweep import Request, StartRunner, Sweep
from attnbench.errors import UsageError
from attnbench.records.result import Result, Status

DEFAULT_SUITE = "verify"
LONGEST = {"cpu": 256, "cuda": 4096}  # drawn length; an interpreter takes seconds for more
FIRST_ROUND_S = 10.0  # at least, for a busy machine takes seconds to start the processes
FIRST_DRAWS = 16  # problems of the first round, whose pace decides on the size of the next
GROWTH = 4  # a round is at most so many times as large as the one before
ROUND_S = 60.0  # target of a round; then new workers start
# Drawn axes that are dropped where the request fixes an axis that decides them.
AXES_OVERRIDDEN_BY = {
    "seq": ("seq_q", "seq_kv"),
    "lengths": ("seq_q", "seq_kv", "batch"),
    "requests": ("seq_q", "seq_kv", "batch"),
    "tokens": ("batch",),
    "heads": ("kv_heads",),
}
FLAGS = frozenset(  # axes with an option; the others are --set KEY=VALUES
    {
        *("seq", "seq_q", "seq_kv", "batch", "tokens", "heads", "kv_heads", "head_dim", "head_dim_v"),
        *("dtype", "mask", "score", "bias", "requests", "mode"),
    }
)


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """All results of a verification, refusals first, and how it ended."""

    results: list[Result]
    impossible: tuple[tuple[str, str], ...]  # combinations that are no problem, and why
    ending: Ending
    planned: int = 0  # number of results without an interruption; 0 for problems drawn at random
    drawn: bool = False  # the problems were drawn at random
    options: dict[tuple[Problem, Mode], str] = {}  # of each drawn problem: the options that repeat it
    seed: int = 0  # of the drawn problems, and of their inputs

    def again(self, result: Result) -> str:
        """The command that repeats a drawn problem; empty for others."""
        options = self.options.get((result.case.problem, result.case.mode))
        if options is None:
            return ""
        backend, python, of_case = result.arm.backend, result.arm.python, result.procedure.inputs
        pythons = [f"{backend}={python}"] if python else []
        command = case_command("verify", shlex.split(options), [backend], result.arm.device, pythons)
        more = "" if of_case == "normal" else f" --inputs {shlex.quote(of_case)}"
        return f"{command} --seed {self.seed}{more}"


def prepare(request: Request) -> Sweep:
    """Plan a verification: of the suite `verify` without suite and lengths; no budget unless one is given."""
    return untimed(sweep.prepare(without_budget(request), interpreted=True, default_suite=DEFAULT_SUITE))


def without_budget(request: Request) -> Request:
    """The request without the budget of a suite."""
    return msgspec.structs.replace(request, budget=request.budget or "0")


def untimed(planned: Sweep) -> Sweep:
    """The sweep, of which nothing is timed."""
    settings = msgspec.structs.replace(planned.settings, verify_only=True, restarts=1)
    return msgspec.structs.replace(planned, settings=settings)


def count(planned: Sweep, distributions: Sequence[str]) -> int:
    """The number of results of a verification: a refusal has one for all distributions."""
    cases = sum(len(group.arms) for group in planned.plan.groups)
    return len(planned.plan.refusals) + cases * len(distributions)


def run(
    planned: Sweep,
    observer: Observer,
    watch: Callable[[PlanRunner], None] | None = None,
    distributions: Sequence[str] = ("normal",),
    start: StartRunner = Runner,
) -> Verification:
    """Verify a sweep with inputs of every distribution. `start` makes the runners, which `watch` is called with."""
    for distribution in distributions:
        inputs.check_fits(distribution, [cell.problem for cell, _ in planned.cells], "--inputs")
    results = list(planned.plan.refusals)
    for refusal in results:
        observer.result(refusal, 0.0)
    ending = Ending()
    for distribution in distributions:
        procedures = {
            kind: msgspec.structs.replace(procedure, inputs=distribution)
            for kind, procedure in planned.settings.procedures.items()
        }
        settings = msgspec.structs.replace(planned.settings, procedures=procedures)
        runner = start(planned.plan, settings, results.extend, observer, frozenset(), None)
        if watch:
            watch(runner)
        ending = runner.run()
        if ending.interrupted or ending.stopped:
            break
    number = count(planned, distributions)
    return Verification(results=results, impossible=planned.plan.impossible, ending=ending, planned=number)


class _Drawn:
    """The progress of drawn problems, without those that the time was too short for or that a backend refused.

    The tally of each backend counts them.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.phase, self.more, self.note = observer.phase, observer.more, observer.note

    def result(self, result: Result, remaining_s: float) -> None:
        if result.status in (Status.SKIPPED, Status.UNSUPPORTED, Status.UNAVAILABLE):
            self.more(-1)
        else:
            self._observer.result(result, remaining_s)


def soak(
    request: Request,
    seconds: float,
    observer: Observer,
    watch: Callable[[PlanRunner], None] | None = None,
    distributions: Sequence[str] = ("normal",),
) -> Verification:
    """Verify problems drawn at random for so many seconds. The axes of the request are fixed, the others are drawn.

    The seed of the request decides what is drawn. Raises UsageError if the first round draws no possible problem; a
    later round of that kind is left out, and earlier results are kept.
    """
    random, end = Random(request.seed), time.monotonic() + seconds
    results: list[Result] = []
    options: dict[tuple[Problem, Mode], str] = {}
    ending = Ending()
    draws = FIRST_DRAWS
    while (left_s := end - time.monotonic()) > 0:
        started = time.monotonic()
        try:
            limit_s = left_s if results else max(left_s, FIRST_ROUND_S)
            planned, options_of_round = _draw(request, random, draws, limit_s)
        except UsageError:
            if not results:
                raise
            continue
        observer.more(count(planned, distributions))
        verified = run(planned, _Drawn(observer), watch, distributions)
        # A case that the time was too short for says nothing.
        results += [result for result in verified.results if result.status is not Status.SKIPPED]
        ending = verified.ending
        options |= options_of_round
        if ending.interrupted or not any(result.status is Status.OK for result in results):
            break  # no case is right so far: more rounds would show the same
        pace_s = (time.monotonic() - started) / draws
        draws = max(1, min(GROWTH * draws, int(min(ROUND_S, end - time.monotonic()) / pace_s)))
    return Verification(results=results, impossible=(), ending=ending, drawn=True, options=options, seed=request.seed)


def _draw(request: Request, random: Random, draws: int, left_s: float) -> tuple[Sweep, dict[tuple[Problem, Mode], str]]:
    """Plan so many drawn problems; and the options for each. Raises the last UsageError if none is possible."""
    longest = max(LONGEST[device.kind] for device in sweep.devices_of(request.device))
    overridden = {axis for fixed in request.axes for axis in AXES_OVERRIDDEN_BY.get(fixed, ())}
    drawn: list[Sweep] = []
    options: dict[tuple[Problem, Mode], str] = {}
    wrong: UsageError | None = None
    for _ in range(draws):
        free = {axis: value for axis, value in suite.draw(random, longest).items() if axis not in overridden}
        axes = free | dict(request.axes)
        one_draw = msgspec.structs.replace(request, suites=(), axes=axes, budget=f"{max(left_s, 0.1):.3f}s")
        try:
            planned = prepare(one_draw)
        except UsageError as error:
            wrong = error
            continue
        text = " ".join(_option(axis, value) for axis, value in axes.items())
        options |= {(cell.problem, cell.mode): text for cell, _ in planned.cells}
        drawn.append(planned)
    if not drawn:
        assert wrong is not None
        raise wrong
    return sweep.replan(drawn[0], [cell for planned in drawn for cell in planned.cells]), options


def _option(axis: str, value: str) -> str:
    if axis in FLAGS:
        return f"--{axis.replace('_', '-')} {shlex.quote(value)}"
    return f"--set {shlex.quote(f'{axis}={value}')}"
