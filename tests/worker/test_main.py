"""The loop that answers requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from attnbench.attention.problem import Problem
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Status
from attnbench.worker import protocol

pytest.importorskip("torch")

from attnbench.worker.__main__ import serve

BACKEND = f"{Path(__file__).parents[1] / 'misbehaving.py'}:raises_base_exception"


class ScriptedChannel:
    """The requests of a main process, which closes its end after them, and the replies."""

    def __init__(self, requests: Sequence[protocol.AnyRequest]) -> None:
        self.replies: list[protocol.AnyReply] = []
        self._requests = list(requests)

    def receive(self) -> protocol.AnyRequest:
        if not self._requests:
            raise protocol.ChannelClosedError
        return self._requests.pop(0)

    def send(self, reply: protocol.AnyReply) -> None:
        self.replies.append(reply)


def test_a_request_whose_code_raises_anything_fails_and_the_next_one_is_answered() -> None:
    case = Case(problem=Problem(seq_q=16, heads=2, head_dim=16), backend=BACKEND)
    channel = ScriptedChannel([
        protocol.OpenWorker(backend=BACKEND, device="cpu:threads=1"),
        protocol.PrepareCase(case=case, procedure=Procedure()),
        protocol.ReleaseCase(),
    ])  # fmt: skip
    serve(cast("Any", channel))
    opened, failed, released = channel.replies
    assert isinstance(opened, protocol.WorkerOpened)
    assert isinstance(failed, protocol.RequestFailed)
    assert failed.status is Status.ERROR
    assert failed.reason.startswith("prepare: SystemExit: 3 (")
    assert failed.reason.endswith(" in raises_base_exception)")
    assert isinstance(released, protocol.CaseReleased)
