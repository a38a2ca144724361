"""Derived figures, joined restarts, and the frame."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.analysis import roofline
from attnbench.analysis import rows as frame
from attnbench.analysis.metrics import METRICS, named, needs, timers_disagree
from attnbench.analysis.restarts import Restarts
from attnbench.analysis.rows import COLUMNS, Row
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import UnknownNameError
from attnbench.records.ceilings import Point, Rate
from attnbench.records.result import Sample, Status, Timing, sample
from attnbench.report.terminal import pivot_table
from tests.samples import ceilings, result, timed


def test_a_rate_is_flops_over_time():
    row = Restarts([result([2e-3] * 6)])
    assert METRICS["time_s"].compute(row) == 2e-3
    assert METRICS["flops"].compute(row) == 4 * 8 * 64 * 64 * 64
    assert METRICS["flop_per_s"].compute(row) == pytest.approx(4 * 8 * 64 * 64 * 64 / 2e-3)


def test_times_are_not_rounded_in_storage():
    value = 1.23456789012345e-05
    measured = result([value] * 5)
    back = msgspec.json.decode(msgspec.json.encode(measured), type=type(measured))
    assert back.samples["time"].values[0] == value


def test_memory_is_bytes_and_a_peak():
    measured = result([1e-3] * 3)
    measured = msgspec.structs.replace(
        measured, samples={**measured.samples, "peak_memory": Sample(unit="B", values=(4096,))}
    )
    assert METRICS["peak_bytes"].compute(Restarts([measured])) == 4096


def test_an_unverified_case_has_no_error_rather_than_zero():
    assert METRICS["max_abs_err"].compute(Restarts([result([1e-3] * 3)])) is None


def test_a_failed_reference_leaves_the_times_of_other_backends():
    rows = frame.rows_of([result(backend="naive"), result([1e-3] * 6, backend="flex")])
    failed, other = rows
    assert (failed.status, failed.time_s, failed.speedup) == ("error", None, None)
    assert (other.time_s, other.speedup) == (1e-3, None)


def with_reference(measured):
    return msgspec.structs.replace(measured, facts={"reference": "naive@cpu:threads=1"})


def test_speed_up_is_paired_by_round():
    slow = with_reference(result([4e-3, 40e-3, 4e-3, 40e-3]))
    fast = with_reference(result([2e-3, 20e-3, 2e-3, 20e-3], backend="flex"))
    row = frame.rows_of([slow, fast])[1]
    assert row.speedup == pytest.approx(2.0)


def test_a_late_pass_is_paired_with_the_reference_of_its_own_rounds():
    slow = with_reference(result([100e-3] * 4))
    late = with_reference(result([1e-3] * 4, backend="flex", group="late"))
    late = msgspec.structs.replace(late, samples={**late.samples, "reference_time": timed([3e-3] * 4)})
    assert frame.rows_of([slow, late])[1].speedup == pytest.approx(3.0)


def test_a_case_is_ok_only_if_every_restart_is():
    lost = result(restart=1, status=Status.CRASHED, reason="died of SIGSEGV")
    (row,) = frame.rows_of([result([1e-3] * 3, restart=0), lost])
    assert (row.status, row.reason, row.time_s) == ("crashed", "died of SIGSEGV", None)


def test_the_last_line_of_a_key_counts():
    (row,) = frame.rows_of([result(), result([1e-3] * 3)])
    assert row.status == "ok"


def test_equal_times_are_a_tie_and_clear_ones_are_ranked():
    rows = frame.rows_of([result([1.00e-3, 1.01e-3] * 4), result([1.01e-3, 1.00e-3] * 4, backend="flex")])
    assert {row.place for row in rows} == {"tied"}
    rows = frame.rows_of([result([1e-3] * 8), result([2e-3] * 8, backend="flex")])
    assert [row.place for row in rows] == ["fastest", "behind"]


def test_the_frame_has_every_documented_column():
    table = frame.frame([result([1e-3] * 3), result(backend="flex", problem=Problem(seq_q=128))])
    assert list(table.columns) == list(frame.COLUMNS)
    assert len(table) == 2


def test_the_fields_of_a_row_are_the_documented_columns_in_their_order():
    assert list(Row.__struct_fields__) == list(COLUMNS)
    (row,) = frame.rows_of([result([1e-3] * 3)])
    assert list(row.plain()) == list(COLUMNS)
    assert {name: row.value(name) for name in COLUMNS} == row.plain()


def test_every_value_of_a_row_has_the_type_of_its_field():
    rows = frame.rows_of([result([1e-3] * 3), result(backend="flex", problem=Problem(seq_q=128, lengths=(128,)))])
    assert msgspec.convert([row.plain() for row in rows], list[Row]) == rows


def test_rate_above_silicon_is_marked():
    fast, slow = result([1e-7] * 6), result([1e-3] * 6, backend="flex")
    known = ceilings(name="NVIDIA H200", matmul={"fp32": Rate(burst=5e13, sustained=5e13, size=4096)})
    rows = frame.rows_of([fast, slow], ceilings={"cpu:threads=1": known})
    assert "83.9 TFLOP/s is above the 77.0 TFLOP/s of the silicon" in rows[0].impossible
    assert [row.place for row in rows] == [None, "alone"]


def test_the_share_of_the_roof_is_its_time_over_the_time():
    measured = result([1e-3] * 6, problem=Problem(seq_q=256))  # 4 x 8 x 256 x 256 x 64 FLOP = 134 MFLOP
    known = ceilings(matmul={"fp32": Rate(burst=1e12, sustained=9e11, size=1024)})
    (row,) = frame.rows_of([measured], ceilings={"cpu:threads=1": known})
    assert row.roofline_s == pytest.approx(134217728e-12)
    assert row.roofline_share == pytest.approx(0.134217728)
    assert row.bound == "compute"
    assert frame.rows_of([measured])[0].roofline_share is None


def test_a_beaten_ceiling_is_never_bare():
    measured = result([1e-4] * 6, problem=Problem(seq_q=256))
    known = ceilings(matmul={"fp32": Rate(burst=1e12, sustained=9e11, size=1024)})
    (row,) = frame.rows_of([measured], ceilings={"cpu:threads=1": known})
    assert row.roofline_share > 1.05
    assert "1.34x the measured compute ceiling: a higher clock" in row.notes
    assert "[1]" in "\n".join(pivot_table.metric_lines([row], ("roofline_share",), 80))


def test_what_a_group_of_metrics_needs_is_measured_and_nothing_else():
    assert needs(named("memory,roofline")) == ()
    assert needs(named("energy,timers,peak_bytes")) == ("energy", "timers")
    with pytest.raises(UnknownNameError, match="no metric 'enrgy'; did you mean 'energy'"):
        named("enrgy")


@pytest.mark.parametrize(
    ("times", "cause"),
    [
        ({"wall": 50e-6, "events": 10e-6}, "launch-bound"),
        ({"wall": 51e-6, "events": 50e-6}, ""),
        ({"events": 1e-3, "graph": 5e-6}, "captured nothing"),
        ({"events": 100e-6, "graph": 80e-6}, "cache-resident"),
        ({"events": 100e-6, "cupti": 80e-6}, "gaps between kernels"),
        ({"events": 50e-6, "wall": 10e-6}, ": unknown"),
        ({"events": 3e-6, "graph": 2e-6}, ""),
    ],
    ids=str,
)
def test_timing_modes_that_disagree_are_noted_with_the_likely_cause(times, cause):
    measured = result([1.0] * 3)
    procedure = msgspec.structs.replace(measured.procedure, timing=Timing.EVENTS)
    samples = {f"time_{mode}": timed([value] * 3) for mode, value in times.items() if mode != "events"}
    measured = msgspec.structs.replace(
        measured, procedure=procedure, samples={"time": timed([times["events"]] * 3), **samples}
    )
    note = timers_disagree(Restarts([measured]))
    assert cause in note
    assert bool(note) is bool(cause)


def test_a_host_that_queues_too_slowly_explains_timers_that_disagree():
    times = {"time": [50e-6] * 3, "time_cupti": [10e-6] * 3}
    samples = {name: timed(values) for name, values in times.items()}
    slow = msgspec.structs.replace(samples["time"].blocks[0], tags=("host_bound",))
    samples["time"] = msgspec.structs.replace(samples["time"], blocks=(slow, *samples["time"].blocks[1:]))
    host_bound = msgspec.structs.replace(result([1.0]), samples=samples)
    assert timers_disagree(Restarts([host_bound])) == (
        "timers disagree: wall 50.0 us, cupti 10.0 us: host-bound: the host queues slower than the device works"
    )


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("time_s", None, "-"),
        ("time_s", 0.00421, "4.21 ms"),
        ("peak_bytes", 1024, "1.00 KiB"),
        ("flop_per_s", 2.5e12, "2.50 TFLOP/s"),
        ("speedup", 1.2345, "1.23"),
    ],
)
def test_a_figure_is_shown_in_its_unit(name, value, text):
    assert METRICS[name].show(value) == text


def test_why_a_figure_is_absent_is_told():
    measured = result([1e-3] * 3, facts={"absent": {"energy": "RAPL: no package"}})
    assert frame.rows_of([measured])[0].notes == "RAPL: no package"
    assert frame.rows_of([measured])[0].energy_j is None


def test_a_row_of_a_users_file_notes_what_its_code_changed_for_the_process() -> None:
    facts = {"changed_state": ["default dtype: float32 -> bfloat16"]}
    results = [result([1e-3] * 3, name, facts=facts) for name in ("mine.py:attend", "naive")]
    notes = [row.notes for row in frame.rows_of(results)]
    assert notes == ["its code changed settings of the process: default dtype: float32 -> bfloat16", None]


def test_energy_of_a_call_and_work_per_joule():
    measured = result([1e-3] * 3, problem=Problem(seq_q=256))
    measured = msgspec.structs.replace(measured, samples={**measured.samples, "energy": sample("J", [0.5])})
    assert METRICS["flop_per_j"].compute(measured) == pytest.approx(134217728 / 0.5)


def test_causal_decode_rates_count_every_key():
    decode = result([1e-3] * 6, problem=Problem(seq_q=1, seq_kv=4096, mask="causal"))
    assert METRICS["flop_per_s"].compute(decode) == pytest.approx(4 * 8 * 4096 * 64 / 1e-3)
    assert METRICS["tokens_per_s"].compute(decode) == pytest.approx(1000)


def test_errors_are_the_worst_of_all_outputs_and_none_where_one_is_not_finite():
    errors = {"out": {"max_abs": 1e-6, "rel": 1e-7}, "dq": {"max_abs": 3e-6, "rel": None}}
    measured = result([1e-3] * 3, facts={"errors": errors})
    assert (METRICS["max_abs_err"].compute(measured), METRICS["rel_err"].compute(measured)) == (3e-6, 1e-7)
    broken = result(facts={"errors": {**errors, "dv": {"max_abs": None, "rel": None}}}, status=Status.INCORRECT)
    assert METRICS["max_abs_err"].compute(broken) is None


def test_restarts_of_both_arms_are_paired_restart_by_restart():
    results = []
    for restart, level in enumerate((1e-3, 5e-3, 2e-3)):  # whole restarts differ; the ratio does not
        results.append(with_reference(result([3 * level] * 5, restart=restart)))
        results.append(with_reference(result([level] * 5, backend="flex", restart=restart)))
    row = frame.rows_of(results)[1]
    assert (row.speedup, row.speedup_low, row.speedup_high) == pytest.approx((3.0, 3.0, 3.0))
    assert (row.restarts, row.rounds, row.interval) == (3, 15, "over 3 restarts")
    assert row.place == "fastest"


def test_a_restart_that_the_budget_skipped_leaves_the_others_their_time():
    skipped = result(restart=1, status=Status.SKIPPED, reason="budget")
    (row,) = frame.rows_of([result([1e-3] * 5), skipped])
    assert (row.status, row.time_s, row.restarts) == ("ok", 1e-3, 1)


def test_arms_that_share_no_rounds_have_no_speedup_and_no_place():
    slow = with_reference(result([3.9e-3, 4e-3, 4.1e-3], group="one"))
    fast = with_reference(result([1.9e-3, 2e-3, 2.1e-3], backend="flex", group="two"))
    rows = frame.rows_of([slow, fast])
    assert [row.speedup for row in rows] == [pytest.approx(1.0), None]
    assert [row.place for row in rows] == ["alone", "alone"]
    assert frame.leaders(rows) == []
    assert frame.unranked(rows) == ["naive", "flex"]


def test_arms_are_ranked_where_each_shares_rounds_with_the_reference():
    naive = with_reference(result([4e-3] * 5, group="one"))
    flash = with_reference(result([2e-3] * 5, backend="sdpa:flash", group="one"))
    again = timed([4e-3] * 5)
    flex = with_reference(result([1e-3] * 5, backend="flex", group="two"))
    beside = msgspec.structs.replace(flex, samples={**flex.samples, "reference_time": again})
    assert [row.place for row in frame.rows_of([naive, flash, beside])] == ["behind", "behind", "fastest"]
    rows = frame.rows_of([naive, flash, flex])
    assert [row.place for row in rows] == ["behind", "fastest", "alone"]
    assert [[row.backend for row in group] for group in frame.leaders(rows)] == [["sdpa:flash"]]
    assert frame.unranked(rows) == ["flex"]


def test_the_reference_is_ranked_by_the_rounds_that_a_late_arm_shares_with_it():
    """By their times, which are of different minutes, the two would be tied."""
    naive = with_reference(result([3.9e-3, 4e-3, 4.5e-3, 3.9e-3, 4e-3, 4.5e-3]))
    late = with_reference(result([4.2e-3] * 6, backend="compile", group="late"))
    late = msgspec.structs.replace(late, samples={**late.samples, "reference_time": timed([3.8e-3] * 6)})
    assert [row.place for row in frame.rows_of([naive, late])] == ["fastest", "behind"]
    assert frame.rows_of([naive, late], reference="compile")[0].speedup == pytest.approx(4.2 / 3.8)


def test_a_late_arm_is_ranked_by_speed_ups_where_its_times_are_of_other_minutes():
    """The machine was slower while the first pass ran: by their times the two would be tied."""
    naive = with_reference(result([4e-3, 4.1e-3] * 4))
    flash = with_reference(result([4e-3, 4.1e-3] * 4, backend="sdpa:flash"))
    late = with_reference(result([4e-3, 4.1e-3] * 4, backend="flex", group="late"))
    late = msgspec.structs.replace(late, samples={**late.samples, "reference_time": timed([2.92e-3, 2.993e-3] * 4)})
    rows = frame.rows_of([naive, flash, late])
    assert [row.place for row in rows] == ["tied", "tied", "behind"]
    assert rows[2].speedup == pytest.approx(0.73)
    assert rows[2].quotient_outside


def test_another_reference_can_be_asked_for():
    results = [with_reference(result([4e-3] * 5)), with_reference(result([2e-3] * 5, backend="flex"))]
    assert [row.speedup for row in frame.rows_of(results, reference="flex")] == pytest.approx([0.5, 1.0])


def test_two_percent_apart_in_one_restart_is_a_tie():
    near = [result([1e-3] * 20), result([1.015e-3] * 20, backend="flex")]
    assert {row.place for row in frame.rows_of(near)} == {"tied"}
    again = [msgspec.structs.replace(measured, restart=1) for measured in near]
    assert [row.place for row in frame.rows_of([*near, *again])] == ["fastest", "behind"]


def test_once_paid_seconds_are_those_of_the_first_restart():
    cold, warm = (Sample(unit="s", values=(seconds,)) for seconds in (27.0, 0.5))
    results = [result([1e-3] * 3, restart=n) for n in (0, 1)]
    results = [
        msgspec.structs.replace(measured, samples={**measured.samples, "compile": sample})
        for measured, sample in zip(results, (cold, warm), strict=True)
    ]
    assert frame.rows_of(results)[0].compile_s == 27.0


def test_a_reference_that_is_not_among_the_results_still_gives_the_speedup():
    alone = with_reference(result([1e-3] * 4, backend="flex"))
    alone = msgspec.structs.replace(alone, samples={**alone.samples, "reference_time": timed([3e-3] * 4)})
    (row,) = frame.rows_of([alone])
    assert (row.reference, row.quotient_outside) == ("naive@cpu:threads=1", False)
    assert row.speedup == pytest.approx(3.0)


def test_a_reference_that_was_not_measured_is_refused_with_the_nearest_name():
    results = [result([4e-3] * 5), result([2e-3] * 5, backend="flex")]
    with pytest.raises(UnknownNameError, match="--reference: no arm 'flx'; did you mean 'flex'"):
        frame.rows_of(results, reference="flx")


def test_a_rate_above_a_ceiling_is_ranked_only_after_a_check_on_new_inputs():
    facts = {"right": {"new_inputs": "right"}, "skipped": {"new_inputs": "not checked on new inputs"}}
    rows = {name: frame.rows_of([result([1e-4] * 6, facts=each)])[0] for name, each in facts.items()}
    assert not rows["right"].impossible
    assert rows["skipped"].impossible == "above a measured ceiling, not checked on new inputs"


@pytest.mark.parametrize(("burst", "bandwidth", "above"), [(1e11, 1e12, True), (1e12, 1e9, True), (1e13, 1e12, False)])
def test_a_rate_above_a_ceiling_is_of_products_or_of_memory(burst, bandwidth, above):
    known = ceilings(
        matmul={"fp32": Rate(burst=burst, sustained=burst, size=1024)},
        bandwidth={"copy": (Point(bytes=1 << 30, rate=bandwidth),)},
    )
    # 4 x 8 x 256 x 256 x 64 FLOP = 134 MFLOP, and 4 tensors of 0.5 MiB
    assert roofline.above_ceiling(known, Problem(seq_q=256), Mode.FWD, 1e-4) is above


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ({"seq_q": 64}, "prefill"),
        ({"seq_q": 1, "seq_kv": 64}, "decode"),
        ({"seq_q": 2048, "seq_kv": 4096}, "2k queries"),
        ({"requests": "q32_2q1s64", "seq_q": 32, "seq_kv": 64, "batch": 3}, "requests"),
        ({"requests": "4q1s64", "seq_q": 1, "seq_kv": 64, "batch": 4}, "decode"),
    ],
)
def test_the_lengths_say_which_phase_of_a_model_it_is(lengths, words):
    (row,) = frame.rows_of([result(problem=Problem(**lengths))])
    assert frame.phase(row) == words
