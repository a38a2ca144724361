"""The longest sequence, found over probes that are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.candidates import PlanLimits
from attnbench.engine.group_runner import RunSettings
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Status
from attnbench.report.terminal import scaling as report
from attnbench.studies import max_seq
from attnbench.studies.max_seq import Longest

TERMS = RunSettings(procedures={"cpu": Procedure()}, memory_bytes=4 * 2**30)
PLAN = PlanLimits(memory_bytes=4 * 2**30, procedures=TERMS.procedures)
ARM = Arm(backend="naive", device="cpu:threads=1")


def search(monkeypatch: pytest.MonkeyPatch, ends: Callable[[int], Status], arm: Arm = ARM) -> Longest:
    """With probes that end as told."""

    def probe(case: Case, arm: Arm, settings: RunSettings, measured: bool = False) -> tuple[Status, str, int | None]:
        status = ends(case.problem.seq_q)
        return status, "" if status is Status.OK else "so it ended", 4096 if measured else None

    monkeypatch.setattr(max_seq, "probe", probe)
    return max_seq.search(Problem(seq_q=64), Mode.FWD, arm, TERMS, PLAN, lambda _: None)


@pytest.mark.parametrize("longest", [1024, 1100, 4095, 5000, 100_000])
def test_bisection_comes_within_a_thirty_second(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    limit = search(monkeypatch, lambda seq: Status.OK if seq <= longest else Status.OOM)
    assert limit.seq <= longest < limit.stopped_at
    assert limit.stopped_at - limit.seq <= max(64, limit.seq / 32)
    assert limit.stopped_by == "memory"
    assert limit.peak_bytes == 4096
    assert limit.probes < 25


def test_search_starts_at_the_first_length_whatever_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is in bytes; it was once taken for a number of tokens."""
    monkeypatch.setattr(max_seq, "probe", lambda *_: (Status.OOM, "no memory", None))
    labels: list[str] = []
    settings = RunSettings(procedures=TERMS.procedures, memory_bytes=600)
    max_seq.search(Problem(seq_q=64), Mode.FWD, ARM, settings, PLAN, labels.append)
    assert [f" q{max_seq.FIRST} " in label for label in labels] == [True]


def test_time_is_distinguished_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = search(monkeypatch, lambda seq: Status.OK if seq <= 3000 else Status.TIMEOUT)
    assert limit.stopped_by == "time"
    (_, _, line, _) = report.longest([limit], "x", 80)
    assert "time at" in line


def test_where_not_even_the_shortest_fits_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = search(monkeypatch, lambda _: Status.OOM)
    assert (limit.seq, limit.stopped_at, limit.peak_bytes) == (0, 1024, None)
    assert report.longest_record(limit)["seq"] is None


def test_a_refusal_ends_the_search_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = search(monkeypatch, lambda _: Status.OK, Arm(backend="xformers", device="cpu:threads=1"))
    assert (limit.seq, limit.stopped_by, limit.probes) == (0, "unavailable", 1)
    assert "runs on cuda" in "\n".join(report.longest([limit], "x", 80))


def test_a_search_without_end_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_seq, "MAX", 2**14)
    limit = search(monkeypatch, lambda _: Status.OK)
    assert (limit.seq, limit.stopped_at) == (max_seq.MAX, 0)
    assert "nothing, up to the longest" in "\n".join(report.longest([limit], "x", 80))


def test_too_little_memory_for_a_worker_is_said() -> None:
    little = RunSettings(procedures={"cpu": Procedure()}, memory_bytes=100 * 2**20)
    assert "needs 800 MiB for a worker alone" in max_seq.objection(little)
    assert max_seq.objection(TERMS) == ""


@pytest.mark.slow
def test_a_real_probe_that_needs_too_much_ends_as_oom_and_harms_nobody() -> None:
    limit = RunSettings(procedures={"cpu": Procedure()}, memory_bytes=1200 * 2**20)
    arm = Arm(backend="naive", device="cpu:threads=1", env=max_seq.PLAIN_MALLOC)
    small = Case(problem=Problem(seq_q=256), backend="naive", mode=Mode.FWD)
    large = Case(problem=Problem(seq_q=8192), backend="naive", mode=Mode.FWD)
    assert max_seq.probe(small, arm, limit, measured=True)[::2] == (Status.OK, 4 * 2**20)
    assert max_seq.probe(large, arm, limit)[0] is Status.OOM
