"""FLOPs and bytes, counted from the mask, against brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score


def brute_pairs(problem: Problem) -> int:
    grid = problem.grid
    b, i, j = np.ogrid[: grid.batch, : grid.seq_q, : grid.seq_kv]
    seen = np.broadcast_to(problem.masking.visible(grid, b, i, j), (grid.batch, grid.seq_q, grid.seq_kv))
    return problem.heads * int(seen.sum())


SHAPES = ({"seq_q": 17}, {"seq_q": 5, "seq_kv": 13}, {"seq_q": 13, "seq_kv": 5}, {"seq_q": 1, "seq_kv": 9})
MASKS = ("none", "causal", "window:3", "causal+window:3", "prefix:4", "padding:0.4", "causal+padding:0.4")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_flops_follow_the_visible_pairs(shape, mask):
    problem = Problem(heads=6, kv_heads=2, head_dim=8, head_dim_v=16, mask=mask, **shape)
    pairs = brute_pairs(problem)
    assert cost.pairs(problem) == pairs
    assert cost.flops(problem, Mode.FWD) == 2 * pairs * (8 + 16)
    assert cost.flops(problem, Mode.BWD) == 2 * pairs * (3 * 8 + 2 * 16)
    assert cost.flops(problem, Mode.FWD_BWD) == cost.flops(problem, Mode.FWD) + cost.flops(problem, Mode.BWD)


def test_causal_decode_is_not_halved():
    problem = Problem(seq_q=1, seq_kv=1024, mask="causal")
    assert cost.flops(problem, Mode.FWD) == cost.flops_dense(problem, Mode.FWD)


def test_window_and_causal_count_their_intersection():
    problem = Problem(seq_q=100, heads=1, mask="causal+window:9")
    assert cost.pairs(problem) == 100 * 10 - 45


def test_rows_that_see_no_key_add_no_pairs():
    assert cost.pairs(Problem(seq_q=10, seq_kv=4, heads=1, mask="causal")) == 4 * 5 // 2


def test_seq_q_above_seq_kv_without_causal():
    assert cost.pairs(Problem(seq_q=10, seq_kv=4, heads=3)) == 120


def test_document_pairs_follow_the_lengths():
    assert cost.pairs(Problem(seq_q=10, heads=2, mask="document:7-2-1")) == 2 * (49 + 4 + 1)


def test_half_for_causal_is_half_of_dense():
    problem = Problem(seq_q=64, mask="causal")
    assert cost.flops_half_causal(problem, Mode.FWD) * 2 == cost.flops_dense(problem, Mode.FWD)
    assert cost.flops_half_causal(Problem(seq_q=64), Mode.FWD) == cost.flops_dense(Problem(seq_q=64), Mode.FWD)


def test_bytes_of_a_grouped_case_by_hand():
    problem = Problem(batch=2, heads=8, kv_heads=2, seq_q=3, seq_kv=5, head_dim=16, head_dim_v=32, dtype="bf16")
    q, k, v, out = 2 * 8 * 3 * 16, 2 * 2 * 5 * 16, 2 * 2 * 5 * 32, 2 * 8 * 3 * 32
    lse = 4 * 2 * 8 * 3
    assert cost.input_bytes(problem) == 2 * (q + k + v)
    assert cost.output_bytes(problem, Mode.FWD) == 2 * out
    assert cost.traffic_bytes(problem, Mode.FWD) == 2 * (q + k + v + out)
    assert cost.traffic_bytes(problem, Mode.BWD) == 2 * (q + k + v) + 4 * out + lse + 2 * (q + k + v)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_traffic_counts_the_keys_that_some_query_sees(shape, mask):
    problem = Problem(heads=6, kv_heads=2, head_dim=8, head_dim_v=16, mask=mask, **shape)
    grid = problem.grid
    b, i, j = np.ogrid[: grid.batch, : grid.seq_q, : grid.seq_kv]
    seen = np.broadcast_to(problem.masking.visible(grid, b, i, j), (grid.batch, grid.seq_q, grid.seq_kv))
    keys = int(seen.any(axis=1).sum())
    q_and_out = grid.batch * grid.seq_q * 6 * (8 + 16)
    assert cost.seen_keys(problem) == keys
    assert cost.traffic_bytes(problem, Mode.FWD) == 4 * (q_and_out + keys * 2 * (8 + 16))


def test_a_decoding_step_with_a_window_reads_the_window():
    problem = Problem(seq_q=1, seq_kv=8192, heads=8, kv_heads=8, head_dim=64, mask="causal+window:256")
    window = 257 * 8 * 2 * 64 * 4  # keys and values of 257 tokens in fp32
    assert cost.traffic_bytes(problem, Mode.FWD) == window + 2 * 8 * 64 * 4 == 1_056_768
    assert cost.input_bytes(problem) > 33e6  # the cache as it lies in memory


def test_keys_that_are_padding_are_not_read():
    whole, padded = (Problem(batch=4, seq_q=1, seq_kv=1000, mask=mask) for mask in ("none", "padding:0.3"))
    assert cost.seen_keys(padded) == 0.7 * cost.seen_keys(whole)


def test_pages_add_their_table_and_a_quantised_cache_its_scales_of_seen_keys():
    problem = Problem(seq_q=1, seq_kv=1000, batch=2, heads=4, head_dim=32, mask="causal+window:99", page_size=16)
    contiguous = Problem(seq_q=1, seq_kv=1000, batch=2, heads=4, head_dim=32, mask="causal+window:99")
    assert cost.traffic_bytes(problem, Mode.FWD) == cost.traffic_bytes(contiguous, Mode.FWD) + 4 * 2 * 63
    small = Problem(seq_q=1, seq_kv=1000, batch=2, heads=4, head_dim=32, mask="causal+window:99", kv_dtype="int8")
    q_and_out = 2 * 2 * 4 * 32 * 4
    assert cost.traffic_bytes(small, Mode.FWD) == q_and_out + 2 * 100 * 4 * (2 * 32 + 2 * 4)


def test_fp8_gives_a_16_bit_output():
    problem = Problem(seq_q=4, heads=1, head_dim=16, dtype="fp8_e4m3")
    assert (cost.input_bytes(problem), cost.output_bytes(problem, Mode.FWD)) == (3 * 64, 2 * 64)


def test_a_decoder_layer_has_the_flops_of_two_attentions_and_ten_matrices_by_hand():
    problem = Problem(seq_q=4, seq_kv=6, heads=2, head_dim=8, scope="layer:2")
    core, causal = 2 * 4 * 6, 2 * (4 * 5 // 2)  # pairs
    of_q, of_memory, feed_forward = 4 * 16 * 16, 6 * 16 * 16, 4 * 16 * 64  # multiplications of one matrix
    layer = 4 * 8 * (core + causal) + 2 * (4 * of_q + 2 * of_q + 2 * of_memory + 2 * feed_forward)
    assert cost.flops(problem, Mode.FWD) == 2 * layer


def test_a_relative_bias_holds_its_products_twice_and_gathers_them():
    problem = Problem(batch=2, heads=3, seq_q=4, seq_kv=5, dtype="fp16", score=Score(bias="shaw:7"))
    rows, of_table = 2 * 3 * 4, 2 * 7 + 1
    assert cost.relative_bias_bytes(problem, problem.bias) == 2 * rows * (2 * of_table + 5) + 8 * 4 * 5


def test_a_query_that_sees_no_key_reads_none():
    blind = Problem(seq_q=1, seq_kv=10, mask="window:3+padding:0.5")  # the window begins behind the last key
    assert (cost.pairs(blind), cost.seen_keys(blind)) == (0, 0)
