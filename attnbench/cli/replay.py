"""`attnbench replay`: the attention batches of a server that answers a trace of requests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from attnbench.cli import checks, options
from attnbench.cli.options import OptionGroup, option

MAX_BLOCKS = 1 << 24  # above any cache; a simulation holds about 30 bytes for each


def _formats() -> Sequence[str]:
    from attnbench.suite.serving.trace import TraceFormat

    return tuple(TraceFormat)


def _gpus() -> Sequence[str]:
    from attnbench.studies.replay import gpus

    return gpus()


def _positive(text: str, flag: str) -> None:
    import math

    from attnbench.errors import UsageError

    if not 0 < float(text) < math.inf:
        raise UsageError(f"{flag}: {text}: a number above 0 (try 0.5 or 2)")


class Arrivals(OptionGroup, frozen=True, kw_only=True):
    """How the requests of the trace arrive."""

    trace_format: Annotated[
        str,
        option(
            "--trace-format", help="Format: mooncake, azure, burstgpt or attnbench; detected by default.",
            metavar="FORMAT", names=_formats, check=checks.one_of("format", _formats),
        ),
    ] = ""  # fmt: skip
    speed: Annotated[float, option(help="Divide the times of arrival.", metavar="X", check=_positive)] = 1.0
    jitter: Annotated[
        str,
        option(
            help="Delay each arrival by a random time below this one: 3s spreads the batches of Mooncake.",
            metavar="TIME", check=checks.duration,
        ),
    ] = "0"  # fmt: skip
    replicas: Annotated[
        int, option(help="Servers, which take requests in turn.", metavar="N", check=checks.at_least(1))
    ] = 1


class Server(OptionGroup, frozen=True, kw_only=True):
    """The simulated server, in vLLM's words."""

    gpu: Annotated[
        str,
        option(
            help="GPU whose data sheet gives the times and the memory.", metavar="NAME", names=_gpus,
            check=checks.one_of("GPU", _gpus),
        ),
    ] = "H100 SXM"  # fmt: skip
    tp: Annotated[int, option(help="GPUs that share the heads.", metavar="N", check=checks.at_least(1))] = 1
    kv_blocks: Annotated[
        int | None,
        option(
            "--kv-blocks", help="Blocks of the KV cache; by default those beside the weights in 90 % of the memory.",
            metavar="N", check=checks.at_least(1, MAX_BLOCKS),
        ),
    ] = None  # fmt: skip
    block_size: Annotated[
        int, option("--block-size", help="Tokens of a block.", metavar="N", check=checks.at_least(1))
    ] = 16
    max_num_batched_tokens: Annotated[
        int | None,
        option(
            "--max-num-batched-tokens", help="Tokens of a step; by default 8192, or 2048 on a GPU below 70 GiB.",
            metavar="N", check=checks.at_least(1),
        ),
    ] = None  # fmt: skip
    max_num_seqs: Annotated[
        int | None,
        option(
            "--max-num-seqs", help="Requests of a step; by default 1024, or 256 on a GPU below 70 GiB.",
            metavar="N", check=checks.at_least(1),
        ),
    ] = None  # fmt: skip
    no_prefix_cache: Annotated[bool, option("--no-prefix-cache", help="Compute equal prefixes again.")] = False


@options.with_options()
def replay(
    trace: Annotated[
        str,
        typer.Argument(
            help="Trace: a file of Mooncake, Azure, BurstGPT or attnbench, a shipped trace, or generated:requests=5k.",
            metavar="TRACE",
        ),
    ],
    model: Annotated[Path, option("--model", help="config.json of the served model.", metavar="FILE")],
    arrivals: Arrivals,
    server: Server,
    simulate_only: Annotated[
        bool, option("--simulate-only", help="Print the mix of steps by predicted time; measure nothing.")
    ] = False,
    seed: Annotated[int, options.SEED.but(help="Random seed of arrivals.").info()] = 0,
    json: options.Json = False,
) -> int:
    """Simulate the server that answers a trace, and show its steps.

    Prints which kinds of steps it runs and where its attention time goes, by prediction.
    """
    from attnbench.cli import output
    from attnbench.errors import Exit, UsageError
    from attnbench.report.terminal import replay as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies import replay as study

    if not simulate_only:
        raise UsageError("replay: its steps cannot be measured yet: add --simulate-only")
    settings = study.ReplaySettings(trace=trace, model=model, seed=seed, **_values(arrivals, server))
    serving = study.serving_of(settings)
    for note in serving.cost.decoder.notes:
        print(f"attnbench: note: {note}", file=sys.stderr)
    result = study.simulated(serving, settings)
    output.lines(report.records(result), report.lines(result, terminal_width()), json)
    return Exit.OK


def _values(arrivals: Arrivals, server: Server) -> dict[str, Any]:
    """The fields of ReplaySettings that the options give."""
    import msgspec

    from attnbench.units import parse_seconds

    values = {**msgspec.structs.asdict(arrivals), **msgspec.structs.asdict(server)}
    values["jitter_s"] = parse_seconds(values.pop("jitter"), "--jitter")
    values["prefix_cache"] = not values.pop("no_prefix_cache")
    return values
