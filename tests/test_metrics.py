"""Derived figures, joined launches, and the frame."""

from __future__ import annotations

import msgspec
import pytest

from attnbench import frame
from attnbench.attention.problem import Problem
from attnbench.metrics import METRICS, Joined
from attnbench.result import Sample, Status
from tests.samples import result, timed


def test_a_rate_is_flops_over_time():
    row = Joined([result([2e-3] * 6)])
    assert METRICS["time_s"].compute(row) == 2e-3
    assert METRICS["flops"].compute(row) == 4 * 8 * 64 * 64 * 64
    assert METRICS["flop_per_s"].compute(row) == pytest.approx(4 * 8 * 64 * 64 * 64 / 2e-3)


def test_times_are_not_rounded_in_storage():
    value = 1.23456789012345e-05
    one = result([value] * 5)
    back = msgspec.json.decode(msgspec.json.encode(one), type=type(one))
    assert back.samples["time"].values[0] == value


def test_memory_is_bytes_and_a_peak():
    one = result([1e-3] * 3)
    one = msgspec.structs.replace(one, samples={**one.samples, "peak_memory": Sample(unit="B", values=(4096,))})
    assert METRICS["peak_bytes"].compute(Joined([one])) == 4096


def test_skipped_check_is_none_not_zero_error():
    assert METRICS["max_abs_err"].compute(Joined([result([1e-3] * 3)])) is None


def test_failed_baseline_leaves_other_backends_their_numbers():
    rows = frame.rows([result(backend="naive"), result([1e-3] * 6, backend="flex")])
    failed, other = rows
    assert (failed["status"], failed["time_s"], failed["speedup"]) == ("error", None, None)
    assert (other["time_s"], other["speedup"]) == (1e-3, None)


def with_reference(one):
    return msgspec.structs.replace(one, facts={"reference": "naive@cpu:threads=1"})


def test_speed_up_is_paired_by_round():
    slow = with_reference(result([4e-3, 40e-3, 4e-3, 40e-3]))
    fast = with_reference(result([2e-3, 20e-3, 2e-3, 20e-3], backend="flex"))
    row = frame.rows([slow, fast])[1]
    assert row["speedup"] == pytest.approx(2.0)


def test_a_late_pass_is_paired_with_the_reference_of_its_own_rounds():
    slow = with_reference(result([100e-3] * 4))
    late = with_reference(result([1e-3] * 4, backend="flex", group="late"))
    late = msgspec.structs.replace(late, samples={**late.samples, "reference_time": timed([3e-3] * 4)})
    assert frame.rows([slow, late])[1]["speedup"] == pytest.approx(3.0)


def test_a_case_is_ok_only_if_every_launch_is():
    lost = result(launch=1, status=Status.CRASHED, reason="died of SIGSEGV")
    (row,) = frame.rows([result([1e-3] * 3, launch=0), lost])
    assert (row["status"], row["reason"], row["time_s"]) == ("crashed", "died of SIGSEGV", None)


def test_the_last_line_of_a_key_counts():
    (row,) = frame.rows([result(), result([1e-3] * 3)])
    assert row["status"] == "ok"


def test_equal_times_are_a_tie_and_clear_ones_are_ranked():
    rows = frame.rows([result([1.00e-3, 1.01e-3] * 4), result([1.01e-3, 1.00e-3] * 4, backend="flex")])
    assert {row["place"] for row in rows} == {"tied"}
    rows = frame.rows([result([1e-3] * 8), result([2e-3] * 8, backend="flex")])
    assert [row["place"] for row in rows] == ["fastest", "behind"]


def test_the_frame_has_every_documented_column():
    table = frame.frame([result([1e-3] * 3), result(backend="flex", problem=Problem(seq_q=128))])
    assert list(table.columns) == list(frame.COLUMNS)
    assert len(table) == 2
