"""The command of a row measures the same case: every axis of a problem is in it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from attnbench import cli, suite
from attnbench.analysis.rows import problem_of, rows_of
from attnbench.attention.choices import Autocast, Dtype, KvDtype, Mode, Positions, Returns
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score, Similarity
from attnbench.errors import ProblemError
from attnbench.records.case import Case
from attnbench.report.summary import repeat_command
from tests.samples import result

SCORE_FUNCTION = f"{Path(__file__).parents[1] / 'misbehaving.py'}:right"  # a plan does not run the file
NUMBERS = st.none() | st.floats(0.001, 100)
SCORES = st.builds(
    dict, similarity=st.sampled_from(list(Similarity)), scale=NUMBERS, softcap=NUMBERS, temperature=NUMBERS,
    bias=st.sampled_from(["none", "alibi", "t5", "alibi:dense", "shaw:16", "span:64:8", "edge:3"]),
)  # fmt: skip
# Mostly plain values: many combinations of unusual ones are no problem.
OTHERS = {
    "head_dim_v": [64, 32], "dtype": list(Dtype), "returns": list(Returns),
    "weighting": ["softmax", "hard:topk=4", "topp:0.9"], "sinks": [False, True], "dropout": [0.0, 1 / 3],
    "positions": list(Positions), "scope": ["core", "block", "layer:2"], "kv_dtype": list(KvDtype),
    "autocast": list(Autocast), "page_size": [0, 16], "kv": ["", "latent:32+8"],
    "mask": ["none", "causal+window:16", "padding:0.25"],
}  # fmt: skip


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    fields: dict[str, Any] = {"seq_q": 64, "seq_kv": draw(st.sampled_from([64, 100])), "heads": 4, "head_dim": 64}
    fields |= {"kv_heads": draw(st.sampled_from([4, 2])), "batch": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
        fields |= {"batch": len(lengths), "seq_q": max(lengths), "seq_kv": max(lengths)}
        fields["requests"] = "_".join(f"q{length}" for length in lengths)
    for name in draw(st.sets(st.sampled_from(sorted(OTHERS)), max_size=3)):
        fields[name] = draw(st.sampled_from(OTHERS[name]))
    score = draw(SCORES) if draw(st.booleans()) else {}
    if score.get("similarity") is Similarity.FILE:
        score["function"] = SCORE_FUNCTION
    try:
        return Problem(score=Score(**score), **fields)
    except ProblemError:
        assume(False)
        raise


@given(problem=problems(), mode=st.sampled_from(list(Mode)))
@settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
def test_the_options_of_a_problem_make_that_problem(problem: Problem, mode: Mode) -> None:
    words = iter(suite.options_of(problem, mode))
    texts = [value if flag == "--set" else f"{flag[2:]}={value}" for flag, value in zip(words, words, strict=True)]
    axes = {key.replace("-", "_"): value for key, _, value in (text.partition("=") for text in texts)}
    (cell,) = suite.expand(suite.from_flags(axes), kind="cpu", dtype=Dtype.FP32)
    assert (cell.problem, cell.mode) == (problem, mode)


@pytest.mark.parametrize(
    "problem",
    [
        Problem(seq_q=64, seq_kv=100, heads=4, kv_heads=2, head_dim_v=32, mask="padding:0.25", sinks=True),
        Problem(seq_q=70, batch=2, requests="q70_q12", score=Score(softcap=1 / 3, similarity=Similarity.COSINE)),
        Problem(seq_q=64, score=Score(similarity=Similarity.FILE, function=SCORE_FUNCTION, bias="shaw:16")),
        Problem(seq_q=64, heads=4, head_dim=24, head_dim_v=16, kv="latent:32+8", kv_dtype=KvDtype.NVFP4),
        Problem(seq_q=64, scope="layer:2", autocast=Autocast.BF16, positions=Positions.ROPE, kv_dtype=KvDtype.INT8),
    ],
)
def test_the_command_of_a_row_is_that_case(problem: Problem, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(problem=problem, backend="naive", mode=Mode.BWD)
    (row,) = rows_of([replace(result(), case=case, case_id=case.id)])
    assert problem_of(row) == problem
    words = shlex.split(repeat_command(row, ()))
    assert cli.invoke([*words[1:], "--dry-run", "--json"]) == 0, capsys.readouterr().err
    planned = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["case_id"] for each in planned if each["type"] == "case"] == [case.id]


def test_a_padded_batch_of_an_earlier_version_is_a_row_and_repeated_as_requests() -> None:
    problem = Problem(seq_q=70, batch=3, lengths=(70, 12, 12), mask="causal")
    case = Case(problem=problem, backend="naive")
    (row,) = rows_of([replace(result(), case=case, case_id=case.id)])
    assert problem_of(row) == problem
    assert "--requests q70_2q12 " in repeat_command(row, ())


def test_the_interpreter_of_the_backend_is_repeated() -> None:
    (row,) = rows_of([result([1.0], backend="ort:gqa")])
    command = repeat_command(row, ("jax=/a", "ort:*=/b"), "profile")
    assert command.startswith("attnbench profile --seq-q ")
    assert command.endswith("-b ort:gqa --device cpu:threads=1 --backend-python 'ort:*=/b'")
