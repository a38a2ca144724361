"""Which problems and backends `explain` tries, and in how many workers."""

from __future__ import annotations

from typing import ClassVar, cast

import pytest

from attnbench.attention.problem import Problem
from attnbench.engine import worker_process
from attnbench.engine.sweep import Request
from attnbench.engine.worker_process import Worker, Workers
from attnbench.records import facts
from attnbench.records.result import Procedure
from attnbench.studies import explain
from attnbench.worker import protocol
from tests.engine.test_plan import planned


def test_without_options_one_problem_is_explained_and_few_backends_are_tried() -> None:
    ready, tried = explain.prepare(Request(device="cpu:threads=1", budget="0"))
    problems = {cell.problem for cell, _ in ready.cells}
    assert problems == {Problem(seq_q=512, mask="causal")}
    assert "sdpa:flash" in tried
    runnable = {arm.backend for group in ready.plan.groups for arm in group.arms}
    assert {"ring:4", "gather"} <= runnable - {*tried}
    assert {"flash-attn:2", "triton"} <= {refusal.arm.backend for refusal in ready.plan.refusals}


@pytest.mark.parametrize(
    ("axes", "problems"),
    [
        ({"mask": "none"}, {Problem(seq_q=512, mask="none")}),
        ({"seq": "64,128", "mask": "none"}, {Problem(seq_q=64), Problem(seq_q=128)}),
        ({"seq_q": "1", "seq_kv": "64", "mask": "none"}, {Problem(seq_q=1, seq_kv=64)}),
    ],
)
def test_options_replace_the_problem(axes: dict[str, str], problems: set[Problem]) -> None:
    ready, tried = explain.prepare(Request(axes=axes, backend="naive", device="cpu:threads=1", budget="0"))
    assert {cell.problem for cell, _ in ready.cells} == problems
    assert not tried


def test_a_fact_outside_its_range_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "STRICT", False)
    (group,) = planned(Problem(seq_q=64), names=("naive",)).groups
    reply = protocol.CasePrepared(seconds={}, facts={"block_sparsity": -12700.0, "resolved": "flash"})
    workers = FakeWorkers(reply)
    outcome = explain._attempt(group, group.arms[0], cast("Workers", workers), Procedure())
    assert outcome == (
        "runs: resolved flash, block_sparsity is missing: -12700.0 was reported, and it is from 0 to 100"
    )


class FakeWorkers:
    """A worker for every arm, with this reply."""

    failures: ClassVar[dict[str, Exception]] = {}

    def __init__(self, reply: protocol.CasePrepared) -> None:
        self._reply = reply

    def __getitem__(self, _: object) -> FakeWorkers:
        return self

    def ask(self, *_: object) -> protocol.CasePrepared:
        return self._reply


@pytest.mark.workers
def test_a_backend_has_one_worker_for_all_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Counted(Worker):
        def __init__(self, *arguments: object) -> None:
            started.append(arguments[0])
            super().__init__(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(worker_process, "Worker", Counted)
    request = Request(
        axes={"seq": "32,48", "mask": "none"}, backend="naive,sdpa:cudnn", device="cpu:threads=1", budget="0"
    )
    refused = "  sdpa:cudnn: unavailable: runs on cuda, not on cpu"
    runs = "  naive: runs"
    assert list(explain.of_request(request)) == [
        "b1 h8 q32 kv32 d64 none fp32 fwd", refused, runs, "b1 h8 q48 kv48 d64 none fp32 fwd", refused, runs,
    ]  # fmt: skip
    assert len(started) == 1


def test_stored_facts_have_units_and_three_digits() -> None:
    facts = {
        "memory_workspace": 625152, "settle_s": 0.1586418679999042, "verified_share": 1 / 3, "block_sparsity": 43.75,
        "executed_flops": 134217728.0, "layers": 32, "settled": True, "resolved": "flash",
        "errors": {"out": {"max_abs": 3.831786726804509e-7, "nan": 0.0}, "lse": {"rms": None}},
        "log": "first\nsecond", "changed_state": ["a", "b"],
    }  # fmt: skip
    lines = [line for name, value in facts.items() for line in explain._lines(name, value)]
    assert lines == [
        "  memory_workspace: 610 KiB", "  settle_s: 159 ms", "  verified_share: 33.3 %", "  block_sparsity: 43.8 %",
        "  executed_flops: 134 MFLOP", "  layers: 32", "  settled: yes", "  resolved: flash",
        "  errors of out: max_abs 3.83e-7, nan 0", "  errors of lse: rms -",
        "  log: first", "    second", "  changed_state: a; b",
    ]  # fmt: skip
