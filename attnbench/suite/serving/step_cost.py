"""The predicted time of a step on a GPU: attention by its roofline, and the products of the weights.

The time orders and weighs steps, and moves the clock of a simulation. docs/serving.md states what it leaves out.
"""

from typing import NamedTuple

import msgspec
import numpy as np

from attnbench import units
from attnbench.errors import UsageError
from attnbench.suite.models.decoder import Decoder, DecoderLayer
from attnbench.suite.serving.scheduler import Batch, Tokens

MEMORY_SHARE = 0.9  # of a GPU, for weights and KV cache: vLLM's gpu_memory_utilization


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What a device does in a second."""

    flop_per_s: float
    bytes_per_s: float

    def seconds(self, flops: float, traffic: float) -> float:
        """The longer of the products and the traffic."""
        return max(flops / self.flop_per_s, traffic / self.bytes_per_s)


class AttentionTime(NamedTuple):
    """The predicted attention of all layers in one step, in seconds."""

    simulated: float  # on one GPU of the server
    measured: float  # on the device that measures; the same where there is none


class StepCost(msgspec.Struct, frozen=True, kw_only=True):
    """A model on `gpus` equal GPUs, which share the heads and the weights of every layer."""

    decoder: Decoder  # with the heads of one GPU
    gpus: int
    flop_per_s: float
    bytes_per_s: float
    memory_bytes: float
    measuring: Rates | None = None  # of the device that measures drawn steps
    prefix_once: bool = False  # a backend that is measured there reads the keys that requests share once

    def attention(self, batch: Batch) -> AttentionTime:
        """The attention of all layers: for each layer, the longer of its products and its traffic."""
        of_gpu, simulated, measured = Rates(flop_per_s=self.flop_per_s, bytes_per_s=self.bytes_per_s), 0.0, 0.0
        for layer in self.decoder.layers:
            flops, traffic = work(layer, batch, self.decoder.dtype.bytes)
            simulated += layer.count * of_gpu.seconds(flops, traffic)
            # Backends that read a prefix once refuse windows, and parts in chunks share little.
            if self.prefix_once and not (layer.window or layer.chunk):
                traffic -= self.decoder.dtype.bytes * layer.cached_numbers * batch.repeated
            measured += layer.count * (self.measuring or of_gpu).seconds(flops, traffic)
        return AttentionTime(simulated, measured)

    def rest_s(self, tokens: int) -> float:
        """The products of so many tokens with the weights: the longer of the products and of reading the weights."""
        weights = self.decoder.weights
        read, used = float(weights.dense), weights.dense + weights.experts_per_token * weights.expert
        if weights.experts:
            missed = 1 - weights.experts_per_token / weights.experts
            read += weights.experts * weights.expert * (1 - missed**tokens)  # experts that some token chose
        products_s = 2 * used * tokens / self.flop_per_s
        return max(products_s, read * weights.bytes_per_number / self.bytes_per_s) / self.gpus

    def kv_blocks(self, block_size: int) -> int:
        """Blocks that fit beside the weights. Raises UsageError if there is no room."""
        weights = self.decoder.weights
        numbers = weights.embedding + weights.dense + weights.experts * weights.expert
        of_weights = numbers * weights.bytes_per_number / self.gpus
        cached = sum(layer.count * layer.cached_numbers for layer in self.decoder.layers)
        room = MEMORY_SHARE * self.memory_bytes - of_weights
        blocks = int(room / (cached * self.decoder.dtype.bytes * block_size))
        if blocks < 1:
            raise UsageError(
                f"--tp {self.gpus}: {of_weights / 1e9:.0f} GB of weights on each GPU leave no room for "
                f"{block_size} tokens in {units.whole_percent(MEMORY_SHARE)} of {self.memory_bytes / 1e9:.0f} GB: "
                "use a larger --tp, or another --gpu"
            )
        return blocks


def step_cost(decoder: Decoder, gpus: int, *, flop_per_s: float, bytes_per_s: float, memory_bytes: float) -> StepCost:
    """The cost on GPUs with these rates and this memory each. Raises UsageError where the heads cannot be divided."""
    layers = []
    for layer in decoder.layers:
        if layer.heads % gpus or (layer.kv_heads % gpus and gpus % layer.kv_heads):
            raise UsageError(
                f"--tp {gpus}: does not divide {layer.heads} heads and {layer.kv_heads} key-value heads: use a "
                "divisor of the heads that divides the key-value heads or is a multiple of them"
            )
        heads, kv_heads = layer.heads // gpus, max(1, layer.kv_heads // gpus)
        layers.append(msgspec.structs.replace(layer, heads=heads, kv_heads=kv_heads))
    return StepCost(
        decoder=msgspec.structs.replace(decoder, layers=tuple(layers)),
        gpus=gpus,
        flop_per_s=flop_per_s,
        bytes_per_s=bytes_per_s,
        memory_bytes=memory_bytes,
    )


def work(layer: DecoderLayer, batch: Batch, number_bytes: int) -> tuple[float, float]:
    """FLOPs and compulsory bytes of the attention of one layer, causal, as a server executes them.

    Without a latent cache they are those of attention/cost.py. With one, attention is absorbed where a request has one
    query, and not absorbed elsewhere: of DeepSeek-V3, 2176 and 640 FLOPs for a pair and head. cost.py has 640 for both,
    the FLOPs of the problem, by which backends are compared; the time of a step follows from those that are executed.
    Products with the matrices of the latent space are among those of the weights.
    """
    q, (pairs, keys) = batch.q, _visible(layer, batch)
    wide = layer.head_dim + layer.head_dim_v
    flops = float(pairs.sum()) * wide
    tokens = float(q.sum()) * wide
    if layer.latent:
        single, shared = q == 1, sum(layer.latent)
        flops += float(pairs[single].sum()) * (shared - wide)
        tokens += float(np.count_nonzero(single)) * (shared - wide)
    traffic = layer.heads * tokens + layer.cached_numbers * float(keys.sum())
    return 2 * layer.heads * flops, number_bytes * traffic


def _visible(layer: DecoderLayer, batch: Batch) -> tuple[Tokens, Tokens]:
    """Of each request, the pairs of a query and a key that it sees, and the keys that some query sees."""
    q, kv = batch.q, batch.kv
    first = kv - q  # the position of the first query
    if layer.window:
        return _up_to(kv, layer.window) - _up_to(first, layer.window), np.minimum(kv, q + layer.window - 1)
    if layer.chunk:
        chunks, rest = np.divmod(np.stack([first, kv]), layer.chunk)
        seen = chunks * (layer.chunk * (layer.chunk + 1) // 2) + rest * (rest + 1) // 2
        return seen[1] - seen[0], kv - chunks[0] * layer.chunk
    return q * kv - q * (q - 1) // 2, kv


def _up_to(tokens: Tokens, window: int) -> Tokens:
    """Pairs of the first `tokens` queries, each of which sees up to `window` keys that end at its own."""
    ramp: Tokens = np.minimum(tokens, window)
    return ramp * (ramp + 1) // 2 + (tokens - ramp) * window
