"""Where a command measures: on this machine, or on the nodes of a Ray cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from attnbench.cli import checks
from attnbench.cli.checks import one_of
from attnbench.cli.options import OptionGroup, option

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request, StartRunner, Sweep


class EngineOptions(OptionGroup, frozen=True, kw_only=True):
    """The engine of a command, and the cluster that it uses."""

    engine: Annotated[
        str,
        option(
            "--engine",
            help="Where to measure: local, or ray for the nodes of a Ray cluster.",
            metavar="ENGINE",
            check=one_of("engine", lambda: ("local", "ray")),
            names=lambda: ("local", "ray"),
        ),
    ] = "local"
    address: Annotated[
        str,
        option(
            "--address", help="Ray cluster of --engine ray; by default a Ray of its own on this machine.",
            metavar="HOST:PORT", check=checks.address,
        ),
    ] = ""  # fmt: skip


@contextmanager
def prepared(
    how: EngineOptions,
    request: Request,
    default_suite: str = "",
    interpreted: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Sweep, StartRunner]]:
    """The sweep of a request on the engine, and what makes its runner. `step` is called with the state of a plan."""
    from attnbench.engine import sweep
    from attnbench.engine.side_by_side import local_runner
    from attnbench.errors import UsageError

    suite = default_suite or sweep.DEFAULT_SUITE
    if how.engine == "local":
        for flag, value in (("--address", how.address), ("--hardware", request.hardware)):
            if value:
                raise UsageError(f"{flag} {value}: names a cluster; add --engine ray")
        yield sweep.prepare(request, interpreted=interpreted, default_suite=suite, step=step), local_runner
        return
    from attnbench.engine.cluster import cluster_sweep, job_files, ray_cluster

    with tempfile.TemporaryDirectory(prefix="attnbench-") as folder:
        job_files.collect(request, Path(folder))
        with ray_cluster.connected(how.address, Path(folder)) as cluster:
            step("planning on the cluster")
            yield cluster_sweep.prepare(cluster, request, interpreted=interpreted, default_suite=suite)


def refuse(how: EngineOptions, flag: str, reason: str) -> None:
    """Raise UsageError where an option needs this machine."""
    from attnbench.errors import UsageError

    if how.engine != "local":
        raise UsageError(f"{flag}: {reason}: leave --engine {how.engine} out")
