"""A simulated replay of a trace: the server, what it did, and the mix of its steps."""

from collections.abc import Iterator

import msgspec

from attnbench import units
from attnbench.report.terminal import traffic
from attnbench.report.terminal.text_layout import wrap
from attnbench.studies.replay import Replay
from attnbench.suite.models.decoder import DecoderLayer


def lines(replay: Replay, width: int) -> Iterator[str]:
    """What was simulated, then the steps by kind and by context length."""
    for text in _facts(replay):
        yield from wrap(text, width, indent=2)
    yield ""
    yield from traffic.mix(replay.mix, width, "data sheet")
    yield from wrap(
        "of steps: share of all steps; data sheet: share of attention time, by its roofline", width, indent=2
    )
    yield from wrap(_clock(replay), width, indent=2)


def records(replay: Replay) -> Iterator[dict[str, object]]:
    """One object for each row of the tables, and one for the rest."""
    for part in (*replay.mix.by_kind, *replay.mix.by_context):
        yield {"type": "steps", **msgspec.to_builtins(part)}
    yield {"type": "replay", **{name: value for name, value in msgspec.to_builtins(replay).items() if name != "mix"}}


def _facts(replay: Replay) -> Iterator[str]:
    totals, options, decoder = replay.totals, replay.options, replay.decoder
    failed = f"; {units.counted(replay.skipped, 'request')} without a response left out" if replay.skipped else ""
    yield f"model: {decoder.name}, {'; '.join(map(_layer, decoder.layers))}"
    yield (
        f"{units.counted(replay.replicas, 'server')} of {replay.tp} x {replay.gpu}: {options.kv_blocks:,} blocks of "
        f"{options.block_size} tokens; at most {options.max_num_batched_tokens:,} tokens and "
        f"{options.max_num_seqs:,} requests a step"
    )
    yield (
        f"trace: {units.counted(totals.requests, 'request')}, {totals.input_tokens:,} tokens of prompts, "
        f"{totals.output_tokens:,} of answers{failed}"
    )
    yield (
        f"prefix cache: {units.percent(totals.cached_tokens / totals.input_tokens)} of prompts; "
        f"{units.counted(totals.preemptions, 'pre-emption')}"
    )
    yield (
        f"time: {units.seconds(replay.simulated_s)} simulated, {units.seconds(replay.busy_s)} busy, "
        f"{units.seconds(replay.attention_s)} in attention: "
        f"{units.seconds(3600 * replay.attention_s / replay.simulated_s)} an hour of traffic"
    )


def _clock(replay: Replay) -> str:
    if replay.slowdown != 1:
        return f"clock: steps take {replay.slowdown:g} times as long as by the data sheet of the {replay.gpu}"
    return (
        f"clock: the data sheet of the {replay.gpu}, which no server reaches: its steps are longer, and so its batches "
        "larger; --slowdown 2 doubles the time of a step"
    )


def _layer(layer: DecoderLayer) -> str:
    reach = f" of {layer.window or layer.chunk}" if layer.window or layer.chunk else ""
    widths = f"head_dim {layer.head_dim}" + (f" and {layer.head_dim_v}" if layer.head_dim_v != layer.head_dim else "")
    shape = "a latent cache" if layer.latent else units.counted(layer.kv_heads, "key-value head")
    heads = units.counted(layer.heads, "head")
    return f"{units.counted(layer.count, 'layer')} of {layer.kind}{reach} ({heads}, {shape}, {widths})"
