"""What `attnbench verify` does: every case is judged against float64, and none is timed.

A backend whose times mean nothing on a CPU runs in its interpreter there.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from attnbench import sweep
from attnbench.result import Result
from attnbench.runner import Ending, Observer, Runner
from attnbench.sweep import Request

DEFAULT_SUITE = "verify"


class Verified(msgspec.Struct, kw_only=True):
    """All Results, refusals first, and how it ended."""

    results: list[Result]
    impossible: list[tuple[str, str]]  # cells that are no problem, and why
    ending: Ending


def ready(request: Request) -> sweep.Sweep:
    """The plan; without suite and lengths, of the suite `verify`, and without a budget unless one is asked for."""
    request = msgspec.structs.replace(request, budget=request.budget or "0")
    return sweep.ready(request, interpreted=True, default_suite=DEFAULT_SUITE)


def run(planned: sweep.Sweep, observer: Observer, watch: Callable[[Runner], None] | None = None) -> Verified:
    """Verify a plan. `watch` is given the runner before it runs."""
    results = list(planned.plan.refusals)
    for refusal in results:
        observer.result(refusal, 0.0)
    terms = msgspec.structs.replace(planned.terms, verify_only=True, launches=1)
    runner = Runner(planned.plan, terms, results.extend, observer)
    if watch:
        watch(runner)
    ending = runner.run()
    return Verified(results=results, impossible=planned.plan.impossible, ending=ending)
