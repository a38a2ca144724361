"""The noise of a machine that is known before a gate, by kinds of kernels, and what a gate adds to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from attnbench.gate import judgement, known_noise, record
from attnbench.records.arm import Arm
from attnbench.records.result import Outcome
from tests.gate.test_verdicts import gated, lines
from tests.samples import timed

WIDE = {"factor": 0.0, "runs": 0, "resolution_s": 0.0, "user_backends": ["k.py:attend"]}
OWN = {"shortest_s": 1e-3, "factor": 200.0, "runs": 20}


def test_users_kernels_are_judged_by_the_noise_of_such_kernels_of_that_duration() -> None:
    slower, library = lines(head=1.08, backend="k.py:attend"), lines(head=1.08)
    run = gated(*slower, *library, floor={**WIDE, "user": [OWN]})
    judged = judgement.judge(run)
    times = {verdict.backend: verdict for verdict in judged.verdicts if verdict.metric == "time_s"}
    assert times["naive"].outcome is Outcome.REGRESSED
    assert times["k.py:attend"].outcome is not Outcome.REGRESSED
    noise = "49.6 times normal noise, the 99th percentile of 20 A/A runs of such kernels"
    assert judged.notes[0] == f"noise of users' kernels, calls under 10.0 ms: {noise}"
    assert "(0 A/A runs of the libraries' kernels on this machine, 20 are needed" in judged.margin_source
    assert "normal" not in judgement.judge(gated(*slower, floor={**WIDE, "user": [OWN]})).margin_source


@pytest.mark.parametrize(
    "user", [[], [{**OWN, "factor": 0.0, "runs": 1}], [{**OWN, "shortest_s": 0.1}]], ids=["none", "few", "longer calls"]
)
def test_without_enough_runs_users_kernels_are_judged_by_the_shared_noise(user: list[dict[str, Any]]) -> None:
    judged = judgement.judge(gated(*lines(head=1.08, backend="k.py:attend"), floor={**WIDE, "user": user}))
    assert [verdict.outcome for verdict in judged.verdicts if verdict.metric == "time_s"] == [Outcome.REGRESSED]
    few = r": (0 A/A runs|1 A/A run) of such kernels, 20 are needed; "
    assert re.search(f"{few}it is taken as normal$", judged.notes[0])  # that of the libraries' is not known either
    known = {**WIDE, "user": user, "factor": 8.07, "runs": 25}
    judged = judgement.judge(gated(*lines(head=1.08, backend="k.py:attend"), floor=known))
    assert re.search(f"{few}that of the libraries' kernels is used, 2.0 times normal$", judged.notes[0])
    assert "2.0 times normal noise" not in judged.margin_source


def test_classes_of_duration_without_enough_runs_share_a_note() -> None:
    cases = []
    for place, seconds in enumerate((1e-4, 2e-3, 2e-2, 0.5)):
        of_time = {"samples": {"time": timed([seconds] * 5)}}
        of_case = {"n": 64 + place, "backend": "k.py:attend", "base_fields": of_time, "head_fields": of_time}
        cases += lines(**of_case)
    user = [{**OWN, "factor": 0.0, "runs": 1}, {**OWN, "shortest_s": 1e-2}]
    notes = judgement.judge(gated(*cases, floor={**WIDE, "user": user})).notes
    assert [note for note in notes if note.startswith("noise")] == [
        "noise of users' kernels, calls under 100 ms: 49.6 times normal noise, the 99th percentile of 20 A/A runs of "
        "such kernels",
        "noise of users' kernels, calls under 1.00 ms, under 10.0 ms, over 100 ms: 0, 1, 0 A/A runs of such kernels, "
        "20 are needed; it is taken as normal",
    ]


def test_a_gate_adds_its_controls_to_the_noise_of_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = gated(*lines(backend="k.py:attend", twin=1.5), *lines(twin=1.01))
    known_noise.add(run, record.of(run))
    arms = [Arm(backend=name, device="cpu:threads=1") for name in ("k.py:attend", "naive")]
    noise = known_noise.machine_noise("f", arms)
    assert noise.runs == 1
    assert noise.user_backends == ("k.py:attend",)
    assert [(entry.shortest_s, entry.runs) for entry in noise.user] == [(1e-3, 1)]
    assert known_noise.machine_noise("f", arms[1:]).user == ()
