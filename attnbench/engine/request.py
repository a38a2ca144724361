"""The options of a sweep as typed, and the settings of the run that follow from them."""

from collections.abc import Sequence

import msgspec

from attnbench.analysis import metrics
from attnbench.attention import inputs
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.procedures import ALL_TIMINGS, cache, timing
from attnbench.errors import UsageError
from attnbench.machine import identity, resources
from attnbench.records import speeds
from attnbench.records.result import Procedure, Record
from attnbench.suite import Suite
from attnbench.units import parse_bytes, parse_limit, parse_rounds, parse_seconds, parse_share
from attnbench.worker import probes

DEFAULT_BUDGET = "5m"


class Request(Record, frozen=True, kw_only=True):
    """The options of a sweep as typed, stored in the manifest so that a resume can repeat them."""

    suites: tuple[str, ...] = ()
    axes: dict[str, str] = {}
    backend: str = ""  # comma list; empty: the backends of the suite, else auto
    device: str = ""  # comma list; empty: cuda:0 where there is a GPU, else cpu
    backend_python: tuple[str, ...] = ()  # NAME=PYTHON: the interpreters of backends
    hardware: str = ""  # comma list of classes of a cluster; empty: the machine, or the only class
    reference: str = ""  # backend; empty: naive, else the first that can serve as one
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    shard: str = ""
    shrink: str = ""  # multiplies lengths and batches
    budget: str = ""
    rounds: str = "5..30"
    restarts: int = msgspec.field(default=1, name="launches")  # stored under its first name
    timeout: str = "60s"
    mem_limit: str = "80%"
    timing: str = ""
    cache: str = ""
    rel_ci: str = "2%"
    seed: int = 0
    tags: dict[str, str] = {}
    metrics: str = ""  # comma list, shown after the table; what they need is measured too
    inputs: str = "normal"
    profile: bool = False  # profile each case after its rounds
    probe: str = ""  # comma list: more checks of each case


def settings_of(request: Request, suites: Sequence[Suite], kinds: Sequence[str]) -> RunSettings:
    """The settings of the run, for these kinds of device. Raises UsageError."""
    min_rounds, max_rounds = parse_rounds(request.rounds, "--rounds")
    if request.restarts < 1:
        raise UsageError(f"--restarts: {request.restarts}: at least 1")
    inputs.check(request.inputs, "--inputs")
    limit = parse_bytes(request.mem_limit, "--mem-limit")
    budget = parse_seconds(request.budget or suites[0].budget or DEFAULT_BUDGET, "--budget")
    timeout_s = parse_limit(request.timeout, "--timeout")
    procedures = {
        kind: Procedure(
            timing=timing(request.timing, kind),
            cache=cache(request.cache, kind),
            seed=request.seed,
            inputs=request.inputs,
            restarts=request.restarts,
            min_rounds=min_rounds,
            max_rounds=max_rounds,
            rel_ci=parse_share(request.rel_ci, "--rel-ci"),
            timeout_s=timeout_s,
            allocator=identity.allocator(),
        )
        for kind in kinds
    }
    return RunSettings(
        procedures=procedures,
        restarts=request.restarts,
        seed=request.seed,
        timeout_s=timeout_s,
        budget_s=budget or None,
        memory_bytes=limit if isinstance(limit, int) else int(limit * resources.memory_free_bytes()),
        reference=request.reference,
        speeds=speeds.load(identity.fingerprint()[0]),
        extras=metrics.needs(shown_metrics(request)),
        probes=probes.named(request.probe, "--probe"),
    )


def shown_metrics(request: Request) -> tuple[str, ...]:
    """The metrics shown after the table: the named ones and, where all timing modes run, their times."""
    names = metrics.named(request.metrics)
    return names if request.timing != ALL_TIMINGS else tuple(dict.fromkeys((*names, *metrics.GROUPS["timers"])))
