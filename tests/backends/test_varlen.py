"""torch's varlen_attn runs on no CPU: a stand-in with its documented meaning takes its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.attention.inputs import make
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import load, varlen
from attnbench.records.case import Case
from tests import reference

pytest.importorskip("torch.nn.attention.varlen")

PROBLEMS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"mask": "causal"},
    "causal, more keys": {"mask": "causal", "seq_kv": 50},
    "window": {"mask": "window:5:3"},
    "one-sided window": {"mask": "causal+window:7"},
    "documents": {"mask": "document:3"},
    "causal documents": {"mask": "causal+document:4"},
    "shared heads, scale, lse": {"kv_heads": 2, "score": {"scale": 0.3}, "returns": "lse"},
}


def stand_in(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, return_aux: Any = None,
    scale: Any = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """[tokens, heads, head_dim]; "(-1, 0) for causal attention, or (W, 0) for causal attention with a window of W"."""
    assert enable_gqa == (query.shape[1] > key.shape[1])
    assert max_q >= int(cu_seq_q.diff().max())
    assert max_k >= int(cu_seq_k.diff().max())
    outs, lses = [], []
    ends_q, ends_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
        q, k, v = (tensor.transpose(0, 1).double() for tensor in (query[a:b], key[c:d], value[c:d]))
        k, v = (tensor.repeat_interleave(q.shape[0] // k.shape[0], 0) for tensor in (k, v))
        far = torch.arange(d - c)[None] - (torch.arange(b - a)[:, None] + (d - c) - (b - a))
        left, right = window_size
        seen = ((far >= -left) | (left == -1)) & ((far <= right) | (right == -1))
        logits = (q @ k.mT * (scale or q.shape[-1] ** -0.5)).masked_fill(~seen, float("-inf"))
        outs.append((logits.softmax(-1) @ v).transpose(0, 1).to(query))
        lses.append(logits.logsumexp(-1).float())
    out = torch.cat(outs)
    return (out, torch.cat(lses, 1)) if return_aux is not None and return_aux.lse else out


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_is_translated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    fields = {**PROBLEMS[name]}
    problem = Problem(
        **{"batch": 2, "seq_q": 40, "heads": 4, "head_dim": 16, "dtype": "bf16", **fields,
           "score": Score(**fields.get("score", {}))}
    )  # fmt: skip
    case = Case(problem=problem, backend="varlen")
    assert not load("varlen").objections(case, "cuda", (9, 0))
    made = make(problem, 0)
    qkv = [tensor.float() for tensor in (made.q, made.k, made.v)]
    given = load("varlen").prepare(case, "cpu").call(*(tensor.transpose(1, 2) for tensor in qkv))
    out, lse = given if problem.returns == "lse" else (given, None)
    truth = reference.attend(problem, *qkv)
    torch.testing.assert_close(out.transpose(1, 2).double(), truth.out, rtol=0, atol=1e-5)
    if lse is not None:
        torch.testing.assert_close(lse.double(), truth.lse, rtol=0, atol=1e-5)


def test_older_torch_is_refused_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool
    ) -> None:
        pass

    assert varlen.arguments(Problem(seq_q=8, mask="causal"), frozenset({"is_causal"})) == {"is_causal": True}
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older)
    problem = Problem(seq_q=8, seq_kv=512, dtype="bf16", mask="causal+window:2", page_size=256, score=Score(scale=0.3))
    reasons = load("varlen").objections(Case(problem=problem, backend="varlen"), "cuda", (9, 0))
    for reason, hint in zip(reasons, ("pages", "windows", "scale"), strict=True):
        assert reason.startswith(f"this torch has no {hint} in varlen_attn: use ")


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"dtype": "fp32"}, "fp32 unsupported"),
        ({"head_dim": 20}, "multiple of 8"),
        ({"mask": "padding:0.3"}, "key padding unsupported"),
        ({"page_size": 16}, "page_size=16 is not a multiple of 256: use page_size=256"),
    ],
)
def test_what_it_cannot_do_is_refused(fields: dict[str, Any], hint: str) -> None:
    case = Case(problem=Problem(**{"seq_q": 32, "dtype": "bf16", **fields}), backend="varlen")
    assert any(hint in why for why in load("varlen").objections(case, "cuda", (9, 0)))
    assert load("varlen").objections(case, "cpu") == ["runs on cuda, not on cpu"]
