"""The Python side of the commands: `attnbench.run(...)` and `attnbench.load(...)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from attnbench import store, sweep
from attnbench.errors import UnknownNameError
from attnbench.result import Result
from attnbench.store import Run
from attnbench.suite import AXES
from attnbench.sweep import Request


class Quiet:
    """Watches a run and says nothing."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def result(self, result: Result, remaining_s: float) -> None:
        """Nothing."""


def run(
    *suites: str, out: str | Path | None = None, retry_failed: bool = False, force: bool = False, **options: Any
) -> Run:
    """Measure, store, and give the stored run; the options are those of `attnbench run`, with `_`.

    `attnbench.run(seq="512..4k", mask=["none", "causal"], backend="naive,sdpa:flash", budget="1m")`. Lists and numbers
    stand for their comma lists. Raises AttnbenchError for what the command answers with exit code 2 or 4.
    """
    fields = {field.name for field in msgspec.structs.fields(Request)} - {"suites", "axes"}
    axes: dict[str, str] = {}
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        if name in AXES:
            axes[name] = _text(value)
        elif name in fields:
            chosen[name] = value if name in ("launches", "seed", "tags", "only", "skip", "profile") else _text(value)
        else:
            raise UnknownNameError("option", name, sorted((*AXES, *fields)))
    for name in ("only", "skip"):
        if isinstance(chosen.get(name), str):
            chosen[name] = (chosen[name],)
    request = msgspec.convert({"suites": suites, "axes": axes, **chosen}, Request)
    outcome = sweep.run(request, Quiet(), directory=Path(out) if out else None, retry_failed=retry_failed, force=force)
    return outcome.run


def load(name: str | Path = "last") -> Run:
    """A stored run: `last`, a name under the results root, or a path."""
    return store.read(store.resolve(str(name), store.results_root()))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
