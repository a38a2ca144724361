"""Attention over processes: merged by lse, shared out without a gap, and right in a worker of the tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench import backends, cli
from attnbench.attention.problem import Problem
from attnbench.backends import distributed
from attnbench.records.case import Case
from tests import oracle, reference


@settings(max_examples=30, deadline=None)
@given(length=st.integers(2, 40), cuts=st.integers(1, 5), seed=st.integers(0, 99))
def test_parts_over_keys_merge_to_the_whole(length: int, cuts: int, seed: int) -> None:
    problem = Problem(seq_q=4, seq_kv=length, heads=2, head_dim=8)
    torch.manual_seed(seed)
    qkv = [torch.randn(1, 2, n, 8, dtype=torch.float64) for n in (4, length, length)]
    whole = reference.attend(problem, *qkv)
    parts = []
    for keys in distributed.shares(length, min(cuts, length)):
        part = Problem(seq_q=4, seq_kv=keys.stop - keys.start, heads=2, head_dim=8)
        parts.append(tuple(reference.attend(part, qkv[0], qkv[1][:, :, keys], qkv[2][:, :, keys])))
    out, lse = distributed.merge(parts)
    torch.testing.assert_close(out, whole.out, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, whole.lse, rtol=0, atol=1e-12)


@given(length=st.integers(1, 1000), world=st.integers(1, 9))
def test_shares_cover_every_token_once_and_differ_by_one(length: int, world: int) -> None:
    found = distributed.shares(length, world)
    assert [n for one in found for n in range(length)[one]] == list(range(length))
    sizes = [one.stop - one.start for one in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["ring:2", "ulysses:2"])
def test_two_ranks_give_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(batch=2, seq_q=37, heads=4, kv_heads=2, head_dim=16, mask="causal")
    qkv, _ = oracle.drawn(problem)
    prepared = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu")
    try:
        for _ in range(2):
            out = prepared.call(*qkv)
            torch.testing.assert_close(out.double(), reference.attend(problem, *qkv).out, rtol=0, atol=2e-5)
            qkv[2].neg_()  # in place, as the tool does between blocks
    finally:
        distributed._stop()
    assert prepared.facts["moved_bytes"] == distributed.moved_bytes(problem, name.partition(":")[0], 2)


def test_bytes_that_move() -> None:
    """b1 h8 n1024 d64 fp32: q, k, v and out are 2 MiB each; a ring of 4 sends k and v on three times."""
    problem = Problem(seq_q=1024)
    assert distributed.moved_bytes(problem, "ring", 4) == 3 * 2 * 2**21
    assert distributed.moved_bytes(problem, "ulysses", 4) == 4 * 2**21 * 3 // 4


@pytest.mark.parametrize(
    ("name", "fields", "hint"),
    [
        ("ulysses:4", {"kv_heads": 2}, "kv_heads 2 is not a multiple of 4 ranks"),
        ("ring:4", {"seq_q": 3}, "no token of 3"),
        ("ring:2", {"seq_kv": 128, "mask": "causal"}, "causal only where"),
        ("ring:2", {"mask": "window:5"}, "sliding window unsupported"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(name: str, fields: dict[str, Any], hint: str) -> None:
    problem = Problem(**{"seq_q": 64, "heads": 8, **fields})
    assert any(hint in why for why in backends.load(name).objections(Case(problem=problem, backend=name), "cpu"))


@pytest.mark.slow
@pytest.mark.workers
def test_ranks_are_judged_and_timed_by_the_tool(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--seq", "129", "--heads", "4", "--mask", "none,causal", "--budget", "0", "--rounds", "2..2"]
    assert cli.invoke(["run", *options, "-b", "sdpa:flash,ring:2,ulysses:2,ring:4", "--json", "--no-save"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines = [line for line in told if line["type"] == "case"]
    assert len(lines) == 8
    assert {line["status"] for line in lines} == {"ok"}
