"""Requests to a session in this process, without a device."""

from __future__ import annotations

import pytest

from attnbench.records.result import Status
from attnbench.worker import protocol
from attnbench.worker.session import WorkerSession, request_failed


def test_a_request_of_another_version_is_refused() -> None:
    reply = WorkerSession().answer(protocol.OpenWorker(version=1, device="cpu"))
    assert isinstance(reply, protocol.WorkerOpened)
    assert reply.unavailable == f"speaks protocol {protocol.VERSION}, not 1"


def test_a_device_that_is_not_available_has_a_reason() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    reply = WorkerSession().answer(protocol.OpenWorker(device="cuda:0"))
    assert isinstance(reply, protocol.WorkerOpened)
    assert reply.unavailable.startswith("torch ")


def test_a_request_about_a_case_needs_a_prepared_case() -> None:
    with pytest.raises(RuntimeError, match="no case is prepared"):
        WorkerSession().answer(protocol.SettleCase())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), Status.OOM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Status.OOM),
        (ValueError("the tile size 48 is not a power of two"), Status.ERROR),
    ],
)
def test_out_of_memory_is_distinguished_from_an_error(error: Exception, status: Status) -> None:
    reply = request_failed(error, "prepare")
    assert (reply.status, reply.reason.partition(":")[0]) == (status, "prepare")
