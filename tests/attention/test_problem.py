"""What is no problem is refused with the fields that contradict each other; derived values are those of the formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnbench.attention import cost, scores
from attnbench.attention.choices import Autocast, KvDtype, Mode, Positions, Returns
from attnbench.attention.masks import Window
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score, Similarity
from attnbench.errors import ProblemError, UnknownNameError, UsageError

REFUSED = [
    ({"dtype": "fp64"}, "dtype='fp64': must be one of fp32"),
    ({"heads": 0}, "heads=0: must be at least 1"),
    ({"heads": 8, "kv_heads": 3}, r"heads=8 is not a multiple of kv_heads=3; kv_heads may be \[1, 2, 4, 8\]"),
    ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1"),
    ({"dropout": 0.1, "returns": "weights"}, "dropout=0.1 with returns=weights: dropped weights are random"),
    ({"weighting": "sigmoid", "sinks": True}, "sinks with weighting=sigmoid: only softmax has a denominator"),
    ({"weighting": "sigmoid", "returns": "lse"}, "returns=lse with weighting=sigmoid"),
    ({"positions": "rope", "head_dim": 33}, "positions=rope with head_dim=33: use an even head_dim"),
    ({"autocast": "bf16"}, "autocast=bf16 with scope=core and dtype=fp32: use a block or layers"),
    ({"autocast": "bf16", "scope": "block", "dtype": "fp16"}, "use a block or layers, and dtype=fp32"),
    ({"page_size": 24}, "page_size=24: must be a power of two"),
    ({"page_size": -2}, "page_size=-2: must be a power of two"),
    ({"page_size": 16, "positions": "rope"}, "a paged cache needs scope=core and positions=none"),
    ({"page_size": 16, "score": Score(similarity=Similarity.COSINE)}, "page_size=16 with score=cosine"),
    ({"scope": "block", "returns": "lse"}, "scope=block with returns=lse: the output is projected"),
    ({"scope": "block", "dropout": 0.5}, "scope=block with dropout=0.5: the output is projected"),
    ({"scope": "layer:2", "requests": "q8"}, "layers need equal lengths; use padding"),
    ({"scope": "layer:2", "head_dim_v": 32}, "head_dim=64 and head_dim_v=32: a residual needs equal widths"),
    ({"scope": "layer:0"}, "scope='layer:0': at least one layer"),
    ({"scope": "block:2"}, "scope='block:2': block takes no number"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_fields_that_contradict_each_other_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Problem(**{"seq_q": 8, **fields})


def test_an_unknown_scope_has_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="block"):
        Problem(seq_q=8, scope="blok")


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_soft_cap_is_a_positive_number_and_a_scale_a_finite_one(value: float) -> None:
    with pytest.raises(ProblemError, match="softcap="):
        Score(softcap=value)
    if not math.isfinite(value):
        with pytest.raises(ProblemError, match=r"scale=.*a finite number"):
            Score(scale=value)


def test_the_temperature_divides_scale_and_soft_cap() -> None:
    problem = Problem(seq_q=8, head_dim=64, score=Score(temperature=2.0, softcap=30.0))
    assert (problem.scale, problem.softcap, problem.temperature) == (1 / 16, 15.0, 2.0)
    assert Problem(seq_q=8, score=Score(temperature=2.0, scale=0.5)).scale == 0.25
    plain = Problem(seq_q=8, head_dim=64)
    assert (plain.scale, plain.softcap, plain.temperature) == (1 / 8, None, 1.0)


def test_the_core_of_a_problem_has_neither_scope_nor_positions() -> None:
    problem = Problem(seq_q=8, scope="block", positions=Positions.ROPE, autocast=Autocast.BF16)
    assert problem.core == Problem(seq_q=8, dtype="bf16")
    assert problem.core.core is problem.core
    assert Problem(seq_q=8, score=Score(similarity=Similarity.COSINE)).core.score.similarity is Similarity.DOT


def test_windows_are_those_of_the_mask() -> None:
    assert Problem(seq_q=8, mask="causal+window:3").window == (3, 0)
    assert Problem(seq_q=8, mask="window:3:1").window == (3, 1)
    assert Problem(seq_q=8).window is None
    assert Problem(seq_q=8, mask="causal").causal


def test_the_core_of_a_bilinear_score_is_a_dot_product() -> None:
    assert Problem(seq_q=8, score=Score(similarity=Similarity.BILINEAR)).core == Problem(seq_q=8)


@pytest.mark.parametrize(
    ("fields", "even"),
    [
        ({}, True),
        ({"score": Score(similarity=Similarity.COSINE)}, True),
        ({"score": Score(similarity=Similarity.ADDITIVE)}, False),
        ({"score": Score(bias="alibi")}, True),
        ({"score": Score(bias="xl")}, False),
        ({"positions": Positions.ROPE}, True),
        ({"positions": Positions.SINUSOIDAL}, False),
    ],
    ids=str,
)
def test_logits_are_even_where_each_is_linear_in_q_and_in_k(fields: dict[str, Any], even: bool) -> None:
    assert Problem(seq_q=8, **fields).is_even is even


def test_weighting_and_bias_are_features() -> None:
    problem = Problem(seq_q=8, weighting="sigmoid", score=Score(bias="alibi:dense"))
    assert problem.features == {"sigmoid", "alibi", "dense_bias"}
    assert problem.weighing.text == "sigmoid"


def test_a_mask_has_its_terms_by_class_and_its_visible_keys_as_booleans() -> None:
    problem = Problem(seq_q=3, seq_kv=4, mask="causal+window:1")
    assert problem.masking.term(Window).left == 1
    assert problem.visible().tolist() == [
        [[True, True, False, False], [False, True, True, False], [False, False, True, True]]
    ]
    low, high = problem.masking.interval(problem.grid, np.array(0), np.arange(3))
    assert (low.tolist(), high.tolist()) == ([0, 1, 2], [2, 3, 4])


def test_a_function_of_a_score_is_found_or_named(tmp_path: Path) -> None:
    file = tmp_path / "score.py"
    file.write_text("def mine(q, k):\n    return q @ k.mT\n")
    assert scores.load_function(f"{file}:mine").__name__ == "mine"
    with pytest.raises(UsageError, match=r"no callable 'yours'; there are mine"):
        scores.load_function(f"{file}:yours")
    (tmp_path / "broken.py").write_text("raise OSError('no disk')\n")
    with pytest.raises(ProblemError, match=r"broken.py fails: OSError: no disk"):
        scores.load_function(f"{tmp_path}/broken.py:mine")
    with pytest.raises(ProblemError, match="a function needs similarity=file"):
        Score(function="score.py:mine")
    with pytest.raises(ProblemError, match="a function needs similarity=file"):
        Score(similarity="file")
    assert Score(similarity="cosine") == Score(similarity=Similarity.COSINE)
    with pytest.raises(UsageError, match="score: no similarity 'cosin'; did you mean 'cosine'"):
        Score(similarity="cosin")


def test_bytes_follow_from_the_shapes() -> None:
    shape = {"seq_q": 4, "seq_kv": 6, "batch": 2, "heads": 3, "kv_heads": 1, "head_dim": 8, "head_dim_v": 5}
    plain = Problem(**shape, dtype="bf16")
    out, q, k, v = 2 * 3 * 4 * 5, 2 * 3 * 4 * 8, 2 * 6 * 8, 2 * 6 * 5
    assert cost.kv_bytes(plain) == 2 * (k + v)
    assert cost.kv_bytes(Problem(**shape, dtype="bf16", kv_dtype=KvDtype.INT8)) == k + v + 2 * 4 * 2 * 6
    assert cost.output_bytes(plain, Mode.FWD) == 2 * out
    assert cost.output_bytes(plain, Mode.BWD) == 2 * (q + k + v)
    assert cost.output_bytes(plain, Mode.FWD_BWD) == 2 * (out + q + k + v)
    assert cost.output_bytes(Problem(**shape, dtype="bf16", returns=Returns.LSE), Mode.FWD) == 2 * out + 4 * 2 * 3 * 4
    weights = Problem(**shape, dtype="bf16", returns=Returns.WEIGHTS)
    assert cost.output_bytes(weights, Mode.FWD) == 2 * (out + 2 * 3 * 4 * 6)
    forward, backward = cost.traffic_bytes(plain, Mode.FWD), cost.traffic_bytes(plain, Mode.BWD)
    assert forward == 2 * (q + k + v + out)
    assert backward == 2 * (q + k + v) + 2 * 2 * out + 4 * 2 * 3 * 4 + 2 * (q + k + v)
    assert cost.traffic_bytes(plain, Mode.FWD_BWD) == forward + backward


def test_layers_add_weights_and_wide_results() -> None:
    core, block, layers = (Problem(seq_q=16, scope=scope) for scope in ("core", "block", "layer:2"))
    added = [cost.scope_bytes(problem, Mode.FWD) for problem in (block, layers)]
    assert (
        cost.traffic_bytes(core, Mode.FWD) < cost.traffic_bytes(block, Mode.FWD) < cost.traffic_bytes(layers, Mode.FWD)
    )
    assert 0 < added[0] < added[1] < cost.scope_bytes(layers, Mode.FWD_BWD)
