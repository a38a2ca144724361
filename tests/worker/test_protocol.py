"""Messages on the wire, and the end of a pipe."""

from __future__ import annotations

import os
from typing import get_args

import msgspec
import pytest

from attnbench.worker import protocol

# A gate's base worker may be an older version of attnbench: a renamed class keeps its tag.
REQUEST_TAGS = {
    "Open", "Expect", "Prepare", "Verify", "Check", "CheckNew", "Settle", "Time", "Measure", "Probe", "Profile",
    "Energize", "Retime", "Calibrate", "Release",
}  # fmt: skip
REPLY_TAGS = {
    "Started", "Opened", "Expected", "Prepared", "Verified", "Settled", "Timed", "Measured", "Probed", "Profiled",
    "Energized", "Retimed", "Calibrated", "Done", "Failed",
}  # fmt: skip


def tags(union: object) -> set[object]:
    return {message.__struct_config__.tag for message in get_args(union)}


def test_tags_are_those_that_other_versions_read() -> None:
    assert (tags(protocol.AnyRequest), tags(protocol.AnyReply)) == (REQUEST_TAGS, REPLY_TAGS)


def test_the_phase_of_a_message_is_its_tag() -> None:
    assert protocol.SettleCase().phase == "settle"
    assert msgspec.to_builtins(protocol.SettleCase()) == {"type": "Settle", "call_s": 0.0}


def test_messages_arrive_as_they_were_sent_until_the_other_end_closes() -> None:
    (down_read, down_write), (up_read, up_write) = os.pipe(), os.pipe()
    main, worker = protocol.to_worker(up_read, down_write), protocol.to_main_process(down_read, up_write)
    main.send(protocol.ProbeCase(names=("noise",)))
    assert worker.receive() == protocol.ProbeCase(names=("noise",))
    worker.send(protocol.CaseReleased())
    assert main.receive(300.0) == protocol.CaseReleased()
    with pytest.raises(protocol.NoAnswerError):
        main.receive(0.01)
    worker.close()
    with pytest.raises(protocol.ChannelClosedError, match="end of file"):
        main.receive(300.0)
    main.close()
