"""`attnbench run`: measure, store, show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from attnbench.cli import options
from attnbench.cli.run_options import RunOptions

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request


@options.with_options(
    options.SUITES, options.SUITE, options.PROBLEM, options.ARMS, options.HARDWARE, options.REFERENCE,
    options.BUDGET, options.ROUNDS, options.RESTARTS, options.TIMEOUT, options.MEM_LIMIT, options.TIMING, options.CACHE,
    options.REL_CI, options.SEED, options.INPUTS, options.PROBE, options.PROFILE,
    options.ONLY, options.SKIP, options.SHRINK, options.SHARD, options.METRICS, options.TAG,
)  # fmt: skip
def run(context: typer.Context, request: Request, how: RunOptions) -> int:
    """Measure backends on a suite, or on shapes of your own.

    Every output is verified before it is timed. Options under Problem replace the values of the suite. Without options:
    the suite `quick`, a minute or two on two cores.
    """
    from attnbench.cli import config, running

    shared = options.global_options(context)
    origins = config.origins(context, shared.app) if shared.verbose else {}
    return running.main(request, how, shared, origins)
