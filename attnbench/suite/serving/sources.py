"""A trace by its name: a file, a shipped trace, or a generated one."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from attnbench.errors import UnknownNameError, UsageError
from attnbench.suite.serving.generate import GENERATED, Traffic, generate, parse_traffic
from attnbench.suite.serving.trace import Trace, TracedRequest, TraceOptions

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


def open_trace(text: str, trace_format: str = "", options: TraceOptions | None = None) -> Trace | GeneratedTrace:
    """The trace of this name. Raises UsageError if there is none."""
    options = options or TraceOptions()
    if text.startswith(GENERATED):
        of_files = {
            "--trace-format": bool(trace_format), "--jitter": options.jitter_s > 0,
            "--tokens-scale": options.tokens_scale != 1, "--trace-model": bool(options.model),
        }  # fmt: skip
        if wrong := [option for option, is_given in of_files.items() if is_given]:
            raise UsageError(f"{wrong[0]}: only for a trace in a file, not for {text!r}: leave it out")
        return GeneratedTrace(parse_traffic(text.removeprefix(GENERATED)), options.speed, options.seed)
    path = Path(text).expanduser()
    if not path.exists() and path.name == text and not path.suffix:
        if text not in shipped():
            raise UnknownNameError("file or shipped trace", text, tuple(shipped()), where="TRACE")
        path = shipped()[text]
    if path.is_dir():
        names = ", ".join(shipped())
        raise UsageError(f"TRACE {text}: a directory; use the file of a trace, or a shipped one: {names}")
    return Trace(path, trace_format, options)
