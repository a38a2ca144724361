"""Predicted times of steps, and the simulation of servers that answer a trace."""

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from attnbench.attention import cost, latent
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import UsageError
from attnbench.machine.datasheet import sheet
from attnbench.suite.models.decoder import DecoderLayer, decoder_of
from attnbench.suite.models.layers import Layer
from attnbench.suite.serving.generate import Traffic, generate
from attnbench.suite.serving.scheduler import Batch, SchedulerOptions
from attnbench.suite.serving.simulation import KINDS, Serving, StepKind, requests_in, simulate
from attnbench.suite.serving.step_cost import Rates, StepCost, step_cost, work
from attnbench.suite.serving.trace import TracedRequest
from tests.suite.test_decoder_models import DEEPSEEK_V3, GPT_OSS_20B, LLAMA_8B

H100 = sheet("H100 SXM")
assert H100


def cost_of(config: dict[str, object], gpus: int = 1) -> StepCost:
    assert H100
    rates = {"flop_per_s": H100.flop_per_s["bf16"], "bytes_per_s": H100.bytes_per_s, "memory_bytes": H100.memory_bytes}
    return step_cost(decoder_of(config), gpus, **rates)


def batch(*requests: tuple[int, int]) -> Batch:
    q, kv = zip(*requests, strict=True)
    return Batch(np.array(q), np.array(kv))


LAYER = DecoderLayer(kind=Layer.FULL, count=1, heads=8, kv_heads=2, head_dim=64, head_dim_v=32)
REQUESTS = st.lists(
    st.tuples(st.integers(1, 90), st.integers(0, 200)).map(lambda pair: (pair[0], sum(pair))), min_size=1
)


@given(REQUESTS, st.sampled_from([(0, 0), (1, 0), (17, 0), (64, 0), (0, 1), (0, 16), (0, 100)]))
@settings(deadline=None)
def test_pairs_and_keys_are_those_of_brute_force(requests: list[tuple[int, int]], limits: tuple[int, int]) -> None:
    window, chunk = limits
    layer = DecoderLayer(
        kind=Layer.FULL, count=1, heads=1, kv_heads=1, head_dim=1, head_dim_v=0, window=window, chunk=chunk
    )
    pairs = keys = queries = 0
    for q, kv in requests:
        place, key = np.arange(kv - q, kv)[:, None], np.arange(kv)
        seen = key <= place
        if window:
            seen &= key > place - window
        if chunk:
            seen &= key // chunk == place // chunk
        pairs, keys, queries = pairs + int(seen.sum()), keys + int(seen.any(axis=0).sum()), queries + q
    assert work(layer, batch(*requests), 2) == (2 * pairs, 2 * (queries + keys))


@pytest.mark.parametrize(("q", "kv"), [(1, 1000), (300, 300), (128, 900)])
@pytest.mark.parametrize("window", [0, 100])
def test_work_of_one_request_is_that_of_its_problem(q: int, kv: int, window: int) -> None:
    import msgspec

    layer = msgspec.structs.replace(LAYER, window=window)
    mask = f"causal+window:{window - 1}" if window else "causal"
    problem = Problem(
        seq_q=q,
        seq_kv=kv,
        heads=8,
        kv_heads=2,
        head_dim=64,
        head_dim_v=32,
        mask=mask,
        dtype="bf16",  # type: ignore[arg-type]
    )
    assert work(layer, batch((q, kv)), 2) == (cost.flops(problem, Mode.FWD), cost.traffic_bytes(problem, Mode.FWD))


def test_latent_attention_is_absorbed_for_single_queries() -> None:
    """Numbers of docs/serving.md: 2176 FLOPs a pair and head absorbed, 640 otherwise; 1152 bytes a cached token."""
    (layer,) = decoder_of(DEEPSEEK_V3).layers
    flops, _ = work(layer, batch((1, 1000), (2, 500)), 2)
    assert flops == 128 * (1000 * 2176 + (499 + 500) * 640)
    _, traffic = work(layer, batch((1, 1000)), 2)
    assert traffic == 1000 * 1152 + 2 * 128 * (576 + 512)


def test_the_work_of_a_latent_layer_is_what_the_backends_of_its_problem_execute() -> None:
    (layer,) = decoder_of(DEEPSEEK_V3).layers
    for q, kv, inner in ((1, 1000, latent.absorbed), (300, 900, latent.expanded)):
        problem = Problem(
            seq_q=q, seq_kv=kv, heads=layer.heads, kv="latent:512+64", head_dim=layer.head_dim,
            head_dim_v=layer.head_dim_v, mask="causal",
        )  # fmt: skip
        assert work(layer, batch((q, kv)), 2)[0] == cost.flops(inner(problem), Mode.FWD)
        # What backends are compared by is the same for all of them, and no more than any executes.
        assert cost.flops(problem, Mode.FWD) == cost.flops(latent.expanded(problem), Mode.FWD)


def test_time_of_a_decoding_step_is_that_of_its_bytes() -> None:
    """Worked by hand: 7.5e9 weights of 2 bytes and 32 layers of 8 x 256 numbers a key, at 3.35 TB/s."""
    llama = cost_of(LLAMA_8B)
    assert llama.rest_s(1) == pytest.approx(7.505e9 * 2 / 3.35e12, rel=1e-3)
    one = llama.attention(batch((1, 100_000))).simulated
    assert one == pytest.approx(32 * 100_000 * 2048 * 2 / 3.35e12, rel=1e-3)
    assert llama.rest_s(8192) == pytest.approx(2 * 7.505e9 * 8192 / 989.4e12, rel=1e-3)


def test_one_token_reads_its_experts_and_many_tokens_read_all() -> None:
    cost = cost_of(GPT_OSS_20B)
    weights = cost.decoder.weights
    for tokens, experts in ((1, weights.experts_per_token), (64, weights.experts)):
        read = (weights.dense + experts * weights.expert) * weights.bytes_per_number
        assert cost.rest_s(tokens) == pytest.approx(read / 3.35e12, rel=1e-3)


def test_steps_are_weighed_by_the_device_that_measures_them() -> None:
    """By hand: a device with a tenth of the FLOP/s and the same bandwidth, where a prefill takes 10 times as long."""
    server = cost_of(LLAMA_8B)
    slow = Rates(flop_per_s=server.flop_per_s / 10, bytes_per_s=server.bytes_per_s)
    there = msgspec.structs.replace(server, measuring=slow)
    decode, prefill = (there.attention(batch(request)) for request in ((1, 5000), (5000, 5000)))
    assert decode.measured == pytest.approx(decode.simulated)
    assert prefill.measured == pytest.approx(10 * prefill.simulated)
    assert server.attention(batch((5000, 5000))) == (prefill.simulated, prefill.simulated)


def test_a_shared_prefix_counts_once_on_the_device_that_measures_where_a_backend_reads_it_once() -> None:
    """Eight decodes over 4096 keys, of which all share 2048: bytes of a full layer are those of its problem."""
    decodes = batch(*[(1, 4096)] * 8)._replace(repeated=7 * 2048)
    slow, server = Rates(flop_per_s=1e18, bytes_per_s=1e9), cost_of(LLAMA_8B)
    once = msgspec.structs.replace(server, measuring=slow, prefix_once=True)
    (layer,) = server.decoder.layers
    fields = {"batch": 8, "seq_q": 1, "seq_kv": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "mask": "causal"}
    problem = Problem(**fields, dtype="bf16", requests="8q1s4k", shared_prefix="2k:8")  # type: ignore[arg-type]
    expected = layer.count * cost.traffic_bytes(problem, Mode.FWD) / 1e9
    assert once.attention(decodes).measured == pytest.approx(expected)
    each = msgspec.structs.replace(once, prefix_once=False).attention(decodes)
    assert each.measured > 1.7 * expected
    assert once.attention(decodes).simulated == each.simulated
    # Layers with a window are not computed by backends that read a prefix once.
    layers = tuple(msgspec.structs.replace(layer, window=4096) for layer in server.decoder.layers)
    windows = msgspec.structs.replace(once, decoder=msgspec.structs.replace(server.decoder, layers=layers))
    assert windows.attention(decodes).measured == pytest.approx(each.measured)


def test_layers_of_several_kinds_count_by_their_number() -> None:
    both = cost_of(GPT_OSS_20B)
    alone = [
        StepCost(
            decoder=type(both.decoder)(
                name="", layers=(layer,), weights=both.decoder.weights, dtype=both.decoder.dtype
            ), gpus=1, flop_per_s=both.flop_per_s, bytes_per_s=both.bytes_per_s, memory_bytes=both.memory_bytes,
        ).attention(batch((1, 5000))).simulated
        for layer in both.decoder.layers
    ]  # fmt: skip
    assert both.attention(batch((1, 5000))).simulated == pytest.approx(sum(alone))
    assert max(alone) > 20 * min(alone)  # 5,000 keys against 128


def test_tensor_parallel_divides_heads_and_weights() -> None:
    one, two = cost_of(LLAMA_8B), cost_of(LLAMA_8B, 2)
    (layer,) = two.decoder.layers
    assert (layer.heads, layer.kv_heads) == (16, 4)
    assert two.rest_s(1) == pytest.approx(one.rest_s(1) / 2)
    assert two.kv_blocks(16) > 2 * one.kv_blocks(16)
    assert cost_of(LLAMA_8B, 16).decoder.layers[0].kv_heads == 1  # copies of a key-value head
    with pytest.raises(UsageError, match="--tp 3: does not divide 32 heads and 8 key-value heads: use"):
        cost_of(LLAMA_8B, 3)


def test_blocks_fill_what_the_weights_leave() -> None:
    """90 % of 80 GB, less 16.06 GB of weights, in blocks of 16 tokens of 131,072 bytes."""
    assert cost_of(LLAMA_8B).kv_blocks(16) == pytest.approx((72e9 - 16.06e9) / (16 * 131072), rel=1e-3)
    with pytest.raises(UsageError, match=r"--tp 1: 671 GB of weights .* no room for 16 tokens in .* use a larger --tp"):
        cost_of(DEEPSEEK_V3).kv_blocks(16)


def serving(requests: list[TracedRequest], replicas: int = 1, **options: int) -> Serving:
    values: dict[str, int] = {"kv_blocks": 2000, "max_num_seqs": 16, "max_num_batched_tokens": 512, **options}
    return Serving(
        trace=requests,
        options=SchedulerOptions(**values),
        cost=cost_of(LLAMA_8B),
        replicas=replicas,  # type: ignore[arg-type]
    )


REQUESTS_60 = list(generate(Traffic(requests=60, requests_per_s=30.0, output_tokens=20, prefixes=2), seed=0))


@pytest.mark.parametrize("replicas", [1, 2, 3, 100])
def test_chosen_steps_are_simulated_again_as_they_were(replicas: int) -> None:
    servers = serving(REQUESTS_60, replicas)
    steps = simulate(servers).steps
    count = len(steps.kinds)
    chosen = sorted({0, 1, count // 3, count // 2, count - 2, count - 1})
    batches = requests_in(servers, chosen)
    assert list(batches) == chosen
    for number, step in batches.items():
        requests = [request.size for request in step]
        q, kv = zip(*requests, strict=True)
        summary = (len(q), sum(q), sum(kv), max(q))
        stored = (steps.requests, steps.q_tokens, steps.kv_tokens, steps.max_q)
        assert summary == tuple(int(column[number]) for column in stored)
        assert servers.cost.attention(batch(*requests)).simulated == steps.attention_s[number]
        kind = StepKind.DECODE if max(q) == 1 else StepKind.MIXED if min(q) == 1 else StepKind.PREFILL
        assert KINDS[steps.kinds[number]] is kind
    assert requests_in(servers, []) == {}


def test_replicas_take_requests_in_turn_and_add_up() -> None:
    simulation = simulate(serving(REQUESTS_60, 2))
    halves = [simulate(serving(REQUESTS_60[first::2])) for first in range(2)]
    assert simulation.totals.finished == 60
    assert simulation.steps.attention_s.tolist() == [
        *halves[0].steps.attention_s.tolist(), *halves[1].steps.attention_s.tolist()
    ]  # fmt: skip
    assert simulation.busy_s == pytest.approx(sum(half.busy_s for half in halves))
    assert simulation.ended_s == max(half.ended_s for half in halves)


def test_clock_waits_for_the_next_arrival() -> None:
    requests = [TracedRequest(0.0, 10, 1), TracedRequest(100.0, 10, 1)]
    simulation = simulate(serving(requests))
    assert simulation.ended_s == pytest.approx(100 + simulation.busy_s / 2)
    assert len(simulation.steps.kinds) == 2


def test_common_prefixes_save_query_tokens() -> None:
    cached, computed = (simulate(serving(REQUESTS_60, prefix_cache=cache)) for cache in (True, False))
    assert cached.totals.cached_tokens > 0 == computed.totals.cached_tokens
    saved = computed.steps.q_tokens.sum() - cached.steps.q_tokens.sum()
    assert cached.totals.preemptions == computed.totals.preemptions == 0
    assert saved == cached.totals.cached_tokens
