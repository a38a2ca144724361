"""Prints the libraries of docs/backends.md from the code: `python -m tools.backends`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attnbench import backends
from attnbench.attention.choices import Dtype, Mode
from attnbench.backends import Backend, Limits

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def lines() -> Iterator[str]:
    """A section for each library that runs on a CPU beside torch, and for torch.compile: those with known traps."""
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().split() if "==" in line)
    libraries: dict[tuple[str, ...], list[Backend]] = {}
    for backend in map(backends.load, backends.BUILTIN):
        if backend.distributions:
            libraries.setdefault(backend.distributions, []).append(backend)
    for distributions, members in libraries.items():
        yield f"### {', '.join(distributions)} {', '.join(pins[name] for name in distributions)}"
        yield ""
        yield f"`{members[0].install}`"
        for backend in members:
            yield from _of_backend(backend)
        yield ""


def _of_backend(backend: Backend) -> Iterator[str]:
    limits = backend.limits["cpu"]
    yield ""
    yield f"**`{backend.name}`** {backend.summary}. {_support(limits)}"
    yield ""
    yield f"- features: {', '.join(f'`{word}`' for word in sorted(limits.features))}"
    yield from (f"- trap: {trap}" for trap in backend.traps)


def _support(limits: Limits) -> str:
    dtypes = ", ".join(dtype for dtype in Dtype if dtype in limits.dtypes)
    passes = "forward and backward" if Mode.BWD in limits.modes else "forward"
    multiple = f"; head_dim a multiple of {limits.head_dim_multiple}" if limits.head_dim_multiple > 1 else ""
    return f"{dtypes}; {passes}{multiple}."


if __name__ == "__main__":
    print("\n".join(lines()))
