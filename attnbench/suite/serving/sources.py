"""A trace by its name: a file, a shipped trace, or a generated one."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from attnbench.errors import UnknownNameError, UsageError
from attnbench.suite.serving.generate import GENERATED, Traffic, generate, parse_traffic
from attnbench.suite.serving.trace import Trace, TracedRequest

_SHIPPED = Path(__file__).parent / "traces"


class GeneratedTrace:
    """Traffic that is generated again at each iteration."""

    def __init__(self, traffic: Traffic, speed: float, seed: int) -> None:
        self._traffic = msgspec.structs.replace(traffic, requests_per_s=traffic.requests_per_s * speed)
        self._seed = seed

    def __iter__(self) -> Iterator[TracedRequest]:
        return generate(self._traffic, self._seed)


def shipped() -> dict[str, Path]:
    """The files of the shipped traces, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.iterdir()) if path.suffix in (".jsonl", ".csv")}


def open_trace(
    text: str, trace_format: str = "", *, speed: float = 1.0, jitter_s: float = 0.0, seed: int = 0
) -> Trace | GeneratedTrace:
    """The trace of this name. Raises UsageError if there is none."""
    if text.startswith(GENERATED):
        if trace_format or jitter_s:
            option = "--trace-format" if trace_format else "--jitter"
            raise UsageError(f"{option}: only for a trace in a file, not for {text!r}: leave it out")
        return GeneratedTrace(parse_traffic(text.removeprefix(GENERATED)), speed, seed)
    path = Path(text).expanduser()
    if not path.exists() and path.name == text and not path.suffix:
        if text not in shipped():
            raise UnknownNameError("file or shipped trace", text, tuple(shipped()), where="TRACE")
        path = shipped()[text]
    if path.is_dir():
        names = ", ".join(shipped())
        raise UsageError(f"TRACE {text}: a directory; use the file of a trace, or a shipped one: {names}")
    return Trace(path, trace_format, speed=speed, jitter_s=jitter_s, seed=seed)
