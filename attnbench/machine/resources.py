"""CPU cores and memory that this process may use, within the limits of its control groups."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from attnbench.records.arm import Device

ROOT = Path("/")
BUSY_SHARE = 0.5  # of all cores: the machine is busy if the load average is higher
_UNLIMITED = 1 << 60  # version 1 writes a number near 2**63 for "no limit"


def available_cores() -> tuple[int, ...]:
    """One CPU of every physical core that this process may run on, at most as many as a container's quota allows."""
    cores = whole_cores(_allowed_cpus())
    quota = cpu_quota()
    return cores if quota is None else cores[: max(1, int(quota))]


def whole_cores(cpus: tuple[int, ...], root: Path = ROOT) -> tuple[int, ...]:
    """The first CPU of every physical core among these; its other hyper-threads are left out."""
    first: dict[str, int] = {}
    for cpu in cpus:
        siblings = first_line(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        first.setdefault(siblings, cpu)
    return tuple(sorted(first.values()))


def _allowed_cpus() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    import psutil

    return tuple(range(psutil.cpu_count(logical=False) or 1))


def default_threads() -> int:
    """All physical cores but one, which the main process and the system need; at least one."""
    return max(1, len(available_cores()) - 1)


def cores_for(device: Device) -> tuple[int, ...]:
    """The cores to pin a worker to: those of the device, else the last ones, because the main process uses the first.

    Empty for a GPU: any.
    """
    if device.kind != "cpu":
        return ()
    return device.cores or available_cores()[-(device.threads or default_threads()) :]


def load() -> float | None:
    """Load average: runnable processes, averaged over a minute; None where the system has no such figure."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy() -> bool:
    """Whether processes use over half of the cores."""
    average = load()
    return average is not None and average > BUSY_SHARE * len(available_cores())


def memory_free_bytes() -> int:
    """Memory that is available to this process, within the limit of its container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    container = container_memory()
    return free if container is None else min(free, container[1])


def container_memory(root: Path = ROOT) -> tuple[int, int] | None:
    """Limit and free memory of the container that leaves least, in bytes; None without a limit."""
    files = ("memory.max", "memory.current", "inactive_file")
    files_v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limits = []
    for folder in cgroups("memory", root):
        for limit_file, used_file, inactive_file in (files, files_v1):
            limit, used = number(folder / limit_file), number(folder / used_file)
            if limit is not None and used is not None and limit < _UNLIMITED:
                # The page cache counts as used, and is dropped when memory is needed.
                free = limit - used + int(table(folder / "memory.stat").get(inactive_file, "0"))
                limits.append((max(free, 0), limit))
    free, limit = min(limits, default=(0, 0))
    return (limit, free) if limit else None


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores that the container may use on average; None without a limit."""
    quotas = []
    for folder in cgroups("cpu", root):
        quota, _, period = (first_line(folder / "cpu.max") or "").partition(" ")
        if not quota:
            quota = first_line(folder / "cpu.cfs_quota_us") or ""
            period = first_line(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cgroups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """The folders of this process's control group and of its ancestors, nearest first; version 1 or 2."""
    paths = dict(line.split(":", 2)[1:] for line in lines(root / "proc/self/cgroup") if line.count(":") > 1)
    for line in lines(root / "proc/self/mountinfo"):
        # proc_pid_mountinfo(5): id parent device root mount_point options ... - type source super_options
        before, _, after = line.partition(" - ")
        kind, options = after.partition(" ")[0], after.rpartition(" ")[2]
        if kind == "cgroup2":
            path = paths.get("", "/")
        elif kind == "cgroup" and controller in options.split(","):
            path = next((path for names, path in paths.items() if controller in names.split(",")), "/")
        else:
            continue
        top, mount = before.split()[3], root / before.split()[4].lstrip("/")
        # In a namespace of its own, a container's path may lie outside of what is mounted.
        inside = Path(path).relative_to(top) if Path(path).is_relative_to(top) and ".." not in path else Path()
        yield from (mount / folder for folder in (inside, *inside.parents))


def lines(path: Path) -> list[str]:
    """The lines of a file."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").splitlines()
    return []


def first_line(path: Path) -> str | None:
    """The first line of a file; None if it is empty."""
    return next(iter(lines(path)), "").strip() or None


def number(path: Path) -> int | None:
    """The one number in a file; None if it holds something else."""
    text = first_line(path) or ""
    return int(text) if text.isdigit() else None


def table(path: Path) -> dict[str, str]:
    """A file of lines `name value`."""
    return {name: value for name, _, value in (line.partition(" ") for line in lines(path))}
