"""Steps of made-up traffic with their seconds by a roofline, and made-up costs: fused, loop, padded and decode."""

from functools import cache

import numpy as np

from attnbench.analysis.traffic import TrafficSteps
from attnbench.suite.serving.simulation import KINDS, StepKind

LAYERS, HEADS, KV_HEADS, HEAD_DIM, BYTES = 32, 32, 8, 128, 2


@cache  # several tests need the same ones
def made_steps(count: int = 20_000, seed: int = 0, kinds: tuple[float, float, float] = (0.9, 0.02, 0.08)):
    """The steps, and seconds of every step by backend: `fused`, `loop` (overhead per request), `padded` (B max).

    `decode` is the fastest of all for decoding, and slow for long prefills.
    """
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(KINDS), size=count, p=kinds)
    requests = np.where(kind == KINDS.index(StepKind.PREFILL), 1, 1 + rng.poisson(12, count))
    owner = np.repeat(np.arange(count), requests)
    first = np.concatenate([[0], np.cumsum(requests)[:-1]])
    q = np.ones(len(owner))
    chunked = kind != KINDS.index(StepKind.DECODE)
    q[first[chunked]] = rng.lognormal(6.5, 1, chunked.sum()).round().clip(2, 2048)
    kv = q + rng.lognormal(6.8, 1, len(owner)).round().clip(0, 32_000)
    pairs = np.add.reduceat(q * kv - q * (q - 1) / 2, first)
    keys, max_q, max_kv = np.add.reduceat(kv, first), np.maximum.reduceat(q, first), np.maximum.reduceat(kv, first)

    def seconds(pairs, keys, flop_per_s, byte_per_s, overhead_s):
        flops, read = 4 * HEADS * HEAD_DIM * pairs, 2 * KV_HEADS * HEAD_DIM * BYTES * keys
        return LAYERS * (np.maximum(flops / flop_per_s, read / byte_per_s) + overhead_s)

    steps = TrafficSteps(
        kinds=kind, requests=requests, max_q=max_q.astype(int), context=keys / requests,
        predicted_s=seconds(pairs, keys, 400e12, 2e12, 2e-6),
    )  # fmt: skip
    costs = {
        "fused": seconds(pairs, keys, 250e12, 1.4e12, 4e-6 + 2e-8 * requests),
        "loop": seconds(pairs, keys, 250e12, 1.4e12, 8e-6 * requests),
        "padded": seconds(requests * max_q * max_kv, requests * max_kv, 250e12, 1.4e12, 6e-6),
        "decode": seconds(pairs, keys, 60e12, 1.6e12, 4e-6),
    }
    return steps, costs
