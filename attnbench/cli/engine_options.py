"""Where a command measures: on this machine, or on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from attnbench.cli import checks
from attnbench.cli.checks import one_of
from attnbench.cli.options import OptionGroup, option

if TYPE_CHECKING:
    from pathlib import Path

    from attnbench.engine.cluster.ray_cluster import RayCluster
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
def cluster(
    how: EngineOptions, request: Request, files: Callable[[Path], None] = lambda _: None
) -> Iterator[RayCluster]:
    """The cluster of an engine. The user's files travel to it, and what `files` puts into the folder that travels."""
    from attnbench.engine.cluster import job_files, ray_cluster
    from attnbench.machine.temporary_folders import owned_folder

    with owned_folder("attnbench-job-") as folder:
        job_files.collect(request, folder)
        files(folder)
        with ray_cluster.connected(how.address, folder) as connected:
            yield connected


def check_local(how: EngineOptions, request: Request) -> None:
    """Raise UsageError for options that name a cluster."""
    from attnbench.errors import UsageError

    for flag, value in (("--address", how.address), ("--hardware", request.hardware)):
        if value:
            raise UsageError(f"{flag} {value}: names a cluster; add --engine ray")


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

    suite = default_suite or sweep.DEFAULT_SUITE
    if how.engine == "local":
        check_local(how, request)
        yield sweep.prepare(request, interpreted=interpreted, default_suite=suite, step=step), local_runner
        return
    from attnbench.engine.cluster import cluster_sweep

    with cluster(how, request) as connected:
        step("planning on the cluster")
        planned, engine = cluster_sweep.prepare(connected, request, interpreted=interpreted, default_suite=suite)
        yield planned, engine.start


def refuse(how: EngineOptions, flag: str, reason: str) -> None:
    """Raise UsageError where an option needs this machine."""
    from attnbench.errors import UsageError

    if how.engine != "local":
        raise UsageError(f"{flag}: {reason}: leave --engine {how.engine} out")
