"""The batches of a server that answers a trace, by simulation, and where its attention time goes by prediction."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from attnbench.analysis.traffic import TrafficSteps
from attnbench.analysis.traffic_mix import Mix, mix
from attnbench.errors import SuiteError, UnknownNameError, UsageError
from attnbench.machine import datasheet
from attnbench.machine.datasheet import Sheet
from attnbench.suite.models import read_config
from attnbench.suite.models.decoder import Decoder, decoder_of
from attnbench.suite.serving import sources
from attnbench.suite.serving.scheduler import SchedulerOptions, Totals
from attnbench.suite.serving.simulation import Serving, Simulation, StepTable
from attnbench.suite.serving.step_cost import step_cost
from attnbench.suite.serving.trace import Trace, TraceOptions

# vLLM's defaults for a server: tokens and requests of a step, by the memory of the GPU.
LARGE_GPU_BYTES = 70 * 2**30
LARGE_GPU, SMALL_GPU = (8192, 1024), (2048, 256)
DEFAULT_GPU = "H100 SXM"
SAME_VOCABULARY = 0.01  # up to which vocabularies are taken for padded ones of one tokenizer


class ReplaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is replayed on which server; None: the default of the server."""

    trace: str  # a file, a shipped trace, or generated:...
    model: Path  # config.json
    trace_format: str = ""
    speed: float = 1.0
    jitter_s: float = 0.0
    tokens_scale: float = 1.0
    trace_model: str = ""
    replicas: int = 1
    gpu: str = DEFAULT_GPU
    slowdown: float = 1.0
    tp: int = 1
    kv_blocks: int | None = None
    block_size: int = 16
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    prefix_cache: bool = True
    seed: int = 0


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A simulated replay: the server, what it did, and the mix of its steps."""

    decoder: Decoder  # with the heads of one GPU
    gpu: str
    slowdown: float  # of the server over its data sheet
    tp: int
    replicas: int
    options: SchedulerOptions
    totals: Totals
    skipped: int  # requests of the trace without a response
    steps: int
    simulated_s: float  # from the first arrival to the last token
    busy_s: float  # of all replicas
    attention_s: float  # of all replicas and layers, on each GPU
    mix: Mix


def serving_of(settings: ReplaySettings) -> Serving:
    """The servers, ready to simulate. Raises UsageError for settings that do not fit together."""
    sheet = _sheet(settings.gpu)
    decoder = read_model(settings.model)
    cost = step_cost(
        decoder,
        settings.tp,
        flop_per_s=sheet.flop_per_s[decoder.dtype] / settings.slowdown,
        bytes_per_s=sheet.bytes_per_s / settings.slowdown,
        memory_bytes=sheet.memory_bytes,
    )
    tokens, requests = LARGE_GPU if sheet.memory_bytes >= LARGE_GPU_BYTES else SMALL_GPU
    options = SchedulerOptions(
        kv_blocks=settings.kv_blocks or cost.kv_blocks(settings.block_size),
        block_size=settings.block_size,
        max_num_batched_tokens=settings.max_num_batched_tokens or tokens,
        max_num_seqs=settings.max_num_seqs or requests,
        prefix_cache=settings.prefix_cache,
    )
    changes = TraceOptions(
        speed=settings.speed,
        jitter_s=settings.jitter_s,
        seed=settings.seed,
        tokens_scale=settings.tokens_scale,
        model=settings.trace_model,
    )
    trace = sources.open_trace(settings.trace, settings.trace_format, changes)
    return Serving(trace=trace, options=options, cost=cost, replicas=settings.replicas, place=settings.trace)


def trace_notes(serving: Serving) -> Iterator[str]:
    """What the trace has of other models than the one that is served: its tokens, and its requests."""
    trace, decoder = serving.trace, serving.cost.decoder
    if not isinstance(trace, Trace):
        return
    columns, other = (
        trace.columns,
        abs(decoder.vocabulary / trace.columns.vocabulary - 1) if trace.columns.vocabulary else 0,
    )
    if decoder.vocabulary and other > SAME_VOCABULARY and trace.options.tokens_scale == 1:
        yield (
            f"lengths are in tokens of {columns.tokenizer} ({columns.vocabulary:,} tokens), and {decoder.name} has "
            f"another tokenizer ({decoder.vocabulary:,}): the same texts would have other lengths; multiply them with "
            "--tokens-scale, as 1.1 for 10 % more tokens"
        )
    if len(trace.models) > 1 and not trace.options.model:
        parts = ", ".join(f"{name} ({count:,})" for name, count in trace.models.most_common())
        yield f"requests to {parts} are sent to one server; select those of one model with --trace-model"


def summary(simulation: Simulation, serving: Serving, settings: ReplaySettings) -> Replay:
    """What was simulated, and the mix of its steps."""
    steps = traffic_steps(simulation.steps)
    return Replay(
        decoder=serving.cost.decoder,
        gpu=settings.gpu,
        slowdown=settings.slowdown,
        tp=settings.tp,
        replicas=settings.replicas,
        options=serving.options,
        totals=simulation.totals,
        skipped=serving.trace.skipped if isinstance(serving.trace, Trace) else 0,
        steps=len(steps.kinds),
        simulated_s=simulation.ended_s,
        busy_s=simulation.busy_s,
        attention_s=float(simulation.steps.attention_s.sum()),
        mix=mix(steps),
    )


def traffic_steps(steps: StepTable) -> TrafficSteps:
    """The steps as they are drawn, by the attention time that is predicted on the device that measures."""
    return TrafficSteps(
        kinds=steps.kinds,
        requests=steps.requests,
        max_q=steps.max_q,
        context=steps.kv_tokens / steps.requests,
        predicted_s=steps.measured_s,
    )


def read_model(path: Path) -> Decoder:
    """The layers of a config.json. Raises SuiteError, which names the file, if they cannot be read."""
    config = read_config(path)
    try:
        return decoder_of(config)
    except UsageError as error:
        raise SuiteError(f"{path}: {error}") from error


def _sheet(gpu: str) -> Sheet:
    sheet = next((sheet for sheet in datasheet.SHEETS if sheet.name == gpu), None)
    if sheet is None:
        raise UnknownNameError("GPU", gpu, gpus(), where="--gpu")
    return sheet


def gpus() -> tuple[str, ...]:
    """The GPUs that have a data sheet."""
    return tuple(sheet.name for sheet in datasheet.SHEETS)
