"""Dispatch tables made by hand, measured on this machine or on another."""

from collections.abc import Mapping

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.dispatch import Table, origin
from attnbench.machine import identity
from attnbench.records.case import problem_label
from attnbench.studies.dispatch_table import Choice, DeviceOrigin, Dispatch, Origin, Ranked


def choice(problem: Problem, times: Mapping[str, float], device: str = "cpu", mode: Mode = Mode.FWD) -> Choice:
    fastest = min(times.values())
    ranked = sorted(times, key=lambda name: times[name])
    return Choice(
        problem=problem_label(problem, mode), device=device, mode=mode, shape={}, backend=ranked[0], time_s=fastest,
        tied=(), second="", gain=None, axes=problem,
        ranking=tuple(Ranked(backend=name, over=times[name] / fastest) for name in ranked),
    )  # fmt: skip


def here() -> DeviceOrigin:
    return origin.current("cpu", 0)


def measured_on(device: DeviceOrigin, name: str = "cpu", expires: str = "2999-01-01T00:00:00+00:00") -> Origin:
    return Origin(
        attnbench="0.1.0", created_at="2026-01-02T03:04:05+00:00", expires=expires,
        fingerprint=identity.fingerprint()[0], devices={name: device},
    )  # fmt: skip


def table(*choices: Choice, source: Origin | None = None) -> Table:
    return Table(Dispatch(origin=source or measured_on(here()), choices=choices, regrets=()), "made.json")
