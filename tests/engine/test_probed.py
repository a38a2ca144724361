"""Probes are asked one variant at a time, so that a crash is named and what was found before is kept."""

from typing import cast

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import plan
from attnbench.engine.arm_session import ArmSession
from attnbench.engine.group import Group
from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.records.arm import Device
from attnbench.records.result import Procedure, Status
from attnbench.worker import probes, protocol


class CrashesAt:
    """Answers every probe but one, at which it crashes."""

    import_s = 0.0

    def __init__(self, part: str) -> None:
        self.part = part

    def ask(self, request: protocol.ProbeCase, *_: object) -> protocol.CaseProbed:
        (name,) = request.names
        if name == self.part:
            raise WorkerFailedError(Status.CRASHED, "exited with code -11")
        probe, _, variant = name.partition(":")
        return protocol.CaseProbed(figures={probe: {variant: {"outcome": "takes", "reason": ""}}})


def session(part: str) -> ArmSession:
    (arm,) = plan.arms_of(("naive",), [Device(kind="cpu", threads=1)])
    group = Group(id="g", problem=Problem(seq_q=64), mode=Mode.FWD, arms=(arm,))
    return ArmSession(group, arm, cast("Worker", CrashesAt(part)), 0, Procedure())


def test_a_crash_names_its_variant_and_keeps_the_others() -> None:
    probed = session("layouts:sliced")
    with pytest.raises(WorkerFailedError) as caught:
        probed.probe(("layouts",))
    assert caught.value.reason == "layouts:sliced: exited with code -11"
    assert list(probed.facts["probes"]["layouts"]) == ["transposed"]


def test_all_variants_are_joined() -> None:
    probed = session("")
    probed.probe(("layouts", "state"))
    assert set(probed.facts["probes"]) == {"layouts", "state"}
    assert set(probed.facts["probes"]["layouts"]) == set(probes.VARIANTS["layouts"])
