"""What `attnbench verify` does: every case is judged against float64, and none is timed.

A backend whose times mean nothing on a CPU runs in its interpreter there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from attnbench import sweep
from attnbench.errors import UnknownNameError
from attnbench.probes import PROBES
from attnbench.result import Result
from attnbench.runner import Ending, Observer, Runner
from attnbench.sweep import Request

DEFAULT_SUITE = "verify"


class Verified(msgspec.Struct, kw_only=True):
    """All Results, refusals first, and how it ended."""

    results: list[Result]
    impossible: list[tuple[str, str]]  # cells that are no problem, and why
    ending: Ending


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
