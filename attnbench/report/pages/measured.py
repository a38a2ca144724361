"""Pages of what was measured: latency, throughput, speed-up, memory, roofline, accuracy, applications."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench import stats, units
from attnbench.frame import Place, Row
from attnbench.metrics import METRICS
from attnbench.report import charts, diagrams, pivot
from attnbench.report.material import Material, Page, Table
from attnbench.report.pages.pieces import drawn, metrics


def latency(found: Material) -> Page:
    """Times over the length."""
    columns = ("time_s", "time_low_s", "time_high_s", "p95_s", "rounds", "first_call_s", "compile_s")
    return Page(
        name="latency",
        title="Latency",
        words=("A band is the 95 % interval; a cross at the top edge is a case that was refused or failed.",),
        charts=drawn(latency=charts.latency(found.charted, found.caption)),
        tables=(metrics("Times", found.rows, columns),),
    )


def throughput(found: Material) -> Page:
    """Rates, beneath the peaks of the device."""
    columns = ("flop_per_s", "flop_per_s_half_causal", "bytes_per_s", "tokens_per_s", "sheet_share")
    return Page(
        name="throughput",
        title="Throughput",
        words=(
            "FLOPs count the visible pairs of the mask exactly; the column beside it halves causal masks.",
            "Peaks are what attnbench calibrate measured, and the dense one of the data sheet if the device has any.",
        ),
        charts=drawn(throughput=charts.throughput(found.charted, found.caption, found.roofs)),
        tables=(metrics("Rates", found.rows, columns),),
    )


def speedup(found: Material) -> Page:
    """Times faster than the reference, and geometric means."""
    by_arm: dict[str, list[float]] = {}
    for row in found.rows:
        if row["speedup"] is not None:
            by_arm.setdefault(row["arm_name"], []).append(row["speedup"])
    lines = []
    for arm, values in by_arm.items():
        if mean := stats.geometric_mean(values):
            ends = f"{mean.low:.2f} .. {mean.high:.2f}" if mean.low is not None and mean.high is not None else "-"
            lines.append((arm, f"{mean.value:.2f}x", ends, str(mean.count)))
    head = ("backend", "geometric mean", "95 %", "problems")
    means = Table(
        heading=f"Over {pivot.references(found.rows) or 'the reference'}",
        head=head,
        rows=lines,
        numbers=(False, True, True, True),
    )
    return Page(
        name="speedup",
        title="Speed-up",
        charts=drawn(speedup=charts.speedup(found.charted, found.caption)),
        tables=(means,),
    )


def memory(found: Material) -> Page:
    """Bytes of a call, by kind."""
    columns = (
        "input_bytes",
        "output_bytes",
        "saved_bytes",
        "workspace_bytes",
        "peak_bytes",
        "predicted_bytes",
        "total_bytes",
    )
    return Page(
        name="memory",
        title="Memory",
        words=("Peak is over inputs and outputs; the chart shows it with outputs, from what O(n) and O(n²) would be.",),
        charts=drawn(memory=charts.memory(found.charted, found.caption)),
        tables=(
            metrics("Bytes of a call", [row for row in found.rows if row["peak_bytes"] is not None], columns),
            _longest(found.rows),
        ),
    )


def _longest(rows: Sequence[Row]) -> Table:
    """The longest that was measured of each arm, dtype and mode, and what stopped the next one."""
    families: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row["arm_name"], row["device"], row["dtype"], row["mode"]), []).append(row)
    lines = []
    for family, own in families.items():
        longest = max((row["seq_kv"] for row in own if row["time_s"] is not None), default=None)
        beyond = [row for row in own if row["time_s"] is None and row["seq_kv"] > (longest or 0)]
        stop = min(beyond, key=lambda row: row["seq_kv"], default=None)
        why = f"{stop['seq_kv']}: {pivot.why(stop)}" if stop else ""
        if longest and why:
            lines.append((*family, str(longest), why))
    head = ("backend", "device", "dtype", "mode", "longest", "the next one")
    note = "attnbench scaling --find-max-seq looks for the longest that fits"
    numbers = (False, False, False, False, True, False)
    return Table(heading="Longest that was measured", head=head, rows=lines, numbers=numbers, note=note)


def roofline(found: Material) -> Page:
    """How near each case comes to its roof."""
    rows = [row for row in found.rows if row["roofline_share"] is not None]
    charted = [row for row in found.charted if row["roofline_share"] is not None]
    table = Table(
        heading="Share of the roof",
        head=("case", "intensity", "time", "least time", "share", "bound", "note"),
        rows=[
            (
                row["label"], METRICS["intensity"].show(row["intensity"]), units.seconds(row["time_s"]),
                units.seconds(row["roofline_s"]), f"{row['roofline_share']:.1%}", row["bound"], row["notes"] or "",
            )
            for row in rows
        ],
        numbers=(False, True, True, True, True, False, False),
    )  # fmt: skip
    return Page(
        name="roofline",
        title="Roofline",
        words=("Ceilings as attnbench calibrate measured them; a row that beats one says why.",),
        charts=drawn(roofline=diagrams.roofline(charted, found.roofs, found.caption)),
        tables=(table,),
        fill="attnbench calibrate measures the ceilings",
    )


def accuracy(found: Material) -> Page:
    """Errors against float64."""
    rows = [row for row in found.rows if row["max_abs_err"] is not None]
    columns = ("max_abs_err", "rms_err", "rel_err", "err_vs_plain", "not_finite")
    return Page(
        name="accuracy",
        title="Accuracy",
        words=("Errors of the worst output against float64; err_vs_plain is in units of the plain formula's error.",),
        charts=drawn(error=charts.error(found.charted, found.caption)),
        tables=(metrics("Errors", rows, columns),),
    )


def applications(found: Material) -> Page:
    """A card for each suite of a model; decoding in tokens and bytes a second."""
    cards = []
    for run, rows in zip(found.runs, found.by_run, strict=True):
        if run.manifest.suite in NO_MODEL:
            continue
        best = [row for row in rows if row["place"] and Place(row["place"]) is not Place.BEHIND]
        columns = ("tokens_per_s", "bytes_per_s", "flop_per_s", "time_s", "total_bytes")
        cards.append(metrics(f"{run.manifest.suite}: the fastest of each shape", best, columns))
    decode = [row for row in found.rows if row["seq_q"] == 1 and row["time_s"] is not None]
    return Page(
        name="applications",
        title="Applications",
        words=("Attention alone: tokens a second are of one layer's attention, not of a model.",),
        tables=(
            *cards,
            metrics("Decoding: one new token a sequence", decode, ("tokens_per_s", "bytes_per_s", "time_s")),
        ),
        fill="attnbench run llama3-8b measures a model's shapes",
    )


NO_MODEL = ("", "quick", "custom", "scaling", "ci")  # suites that are about no application
