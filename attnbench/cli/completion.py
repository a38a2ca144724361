"""Values that the completion of a shell offers; packages are imported when it runs."""

from collections.abc import Callable, Iterable, Sequence

from attnbench.suite.keys import AXES


def of_list(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Complete the last item of a comma list."""

    def complete(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",")
        return [done + comma + name for name in names() if name.startswith(last)]

    return complete


def backend_names() -> Sequence[str]:
    """Backends and their groups."""
    from attnbench import backends

    return ("auto", "libraries", "all", *backends.names())


def device_names() -> Sequence[str]:
    """Devices of this machine, and settings of its CPU."""
    from attnbench.machine import hardware
    from attnbench.records.arm import CPU_ISAS

    return (*hardware.devices(), "cpu:threads=1", *(f"cpu:isa={isa}" for isa in CPU_ISAS))


def input_names() -> Sequence[str]:
    """Distributions of inputs."""
    from attnbench.attention.inputs import DISTRIBUTIONS, FILE

    return (*DISTRIBUTIONS, FILE)


def metric_names() -> Sequence[str]:
    """Metrics and their groups."""
    from attnbench.analysis.metrics import GROUPS, METRICS

    return (*GROUPS, *METRICS)


def filter_names() -> Sequence[str]:
    """Keys of a filter."""
    from attnbench.suite import filters

    return tuple(f"{key}=" for key in filters.filter_keys())


def set_names() -> Sequence[str]:
    """Axes without an option of their own."""
    return tuple(f"{axis.name}=" for axis in AXES.values() if not axis.option)
