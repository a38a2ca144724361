"""What stands on each page of a report: words, charts and tables, from the rows of runs. Nothing is drawn here.

A page without data is left out, and the summary says which command would fill it.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attnbench import comparison, frame, stats, units
from attnbench.errors import NotComparableError
from attnbench.frame import Place, Row
from attnbench.metrics import METRICS
from attnbench.report import charts, pivot, summary
from attnbench.report.material import Material, Page, Table
from attnbench.result import Status
from attnbench.store import Run
from attnbench.studies import scaling

NAMES = (
    "summary", "latency", "throughput", "speedup", "memory", "roofline", "scaling", "accuracy", "support", "profile",
    "applications", "quality", "history", "raw",
)  # fmt: skip


def pages(found: Material) -> list[Page]:
    """All that have something to show, the summary first."""
    every = [make(found) for make in PAGES]
    kept = [page for page in every if not page.empty]
    return [_summary(found, [page for page in every if page.empty]), *kept]


# -- the pages ---------------------------------------------------------------------------------------------------------


def _summary(found: Material, missing: Sequence[Page]) -> Page:
    rows = found.rows
    impossible = sum(len(run.manifest.impossible) for run in found.runs)
    words = [summary.sentence(rows), summary.tally(rows, impossible)]
    words += [f"{page.title}: nothing yet; {page.fill}" for page in missing if page.fill]
    words += [
        f"{run.path.name}: {run.skipped_lines} lines could not be read" for run in found.runs if run.skipped_lines
    ]
    return Page(
        name="summary",
        title="Summary",
        words=tuple(words),
        charts=_chart("speedup", found, rows),
        tables=(_best(rows), _machine(found.runs)),
    )


def _best(rows: Sequence[Row]) -> Table:
    """The fastest backend of each problem; all that cannot be told from it, where intervals overlap."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["place"]:
            grouped.setdefault((row["problem"], row["device"]), []).append(row)
    lines = []
    for (problem, device), own in grouped.items():
        first = [row for row in own if Place(row["place"]) in (Place.FASTEST, Place.TIED, Place.ALONE)]
        best = min(first, key=lambda row: row["time_s"])
        names = ", ".join(row["arm_name"] for row in sorted(first, key=lambda row: row["time_s"]))
        verdict = {Place.FASTEST: "fastest", Place.TIED: "tied", Place.ALONE: "alone"}[Place(best["place"])]
        lines.append((problem, device, names, verdict, units.seconds(best["time_s"]), pivot.factor(best["speedup"])))
    head = ("problem", "device", "best", "place", "time", "speed-up")
    return Table(
        heading="Best backend", head=head, rows=lines, numbers=(False, False, False, False, True, True),
        note="tied: closer than their intervals tell apart",
    )  # fmt: skip


def _machine(runs: Sequence[Run]) -> Table:
    lines = []
    for run in runs:
        manifest = run.manifest
        card = manifest.machine
        packages = next((env.packages for env in manifest.environments.values()), {})
        facts = {
            "run": run.path.name, "measured": manifest.created_at, "attnbench": manifest.attnbench,
            "device": ", ".join(card.get("gpus") or [str(card.get("cpu"))]), "cores": card.get("cores"),
            "memory": f"{card.get('memory_gib')} GiB", "system": f"{card.get('system')} {card.get('kernel')}",
            "torch": packages.get("torch"), "triton": packages.get("triton"), "commit": _commit(manifest.commit),
            **{f"tag {name}": value for name, value in manifest.tags.items()},
        }  # fmt: skip
        lines += [(name, str(value)) for name, value in facts.items() if value not in (None, "", "None")]
    return Table(heading="Machine", head=("", ""), rows=lines)


def _commit(commit: dict[str, Any] | None) -> str:
    return f"{commit['commit'][:12]}{' with changes' if commit.get('dirty') else ''}" if commit else ""


def _latency(found: Material) -> Page:
    columns = ("time_s", "time_low_s", "time_high_s", "p95_s", "rounds", "first_call_s", "compile_s")
    return Page(
        name="latency",
        title="Latency",
        words=("A band is the 95 % interval; a cross at the top edge is a case that was refused or failed.",),
        charts=_chart("latency", found, found.rows),
        tables=(_metrics("Times", found.rows, columns),),
    )


def _throughput(found: Material) -> Page:
    columns = ("flop_per_s", "flop_per_s_half_causal", "bytes_per_s", "tokens_per_s", "sheet_share")
    return Page(
        name="throughput",
        title="Throughput",
        words=("FLOPs count the visible pairs of the mask exactly; the column beside it halves causal masks.",),
        charts=_chart("throughput", found, found.rows),
        tables=(_metrics("Rates", found.rows, columns),),
    )


def _speedup(found: Material) -> Page:
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
    return Page(name="speedup", title="Speed-up", charts=_chart("speedup", found, found.rows), tables=(means,))


def _memory(found: Material) -> Page:
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
        words=("Peak is over inputs and outputs; the chart shows it with outputs.",),
        charts=_chart("memory", found, found.rows),
        tables=(_metrics("Bytes of a call", [row for row in found.rows if row["peak_bytes"] is not None], columns),),
    )


def _roofline(found: Material) -> Page:
    rows = [row for row in found.rows if row["roofline_share"] is not None]
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
    roofs = {device: one for run in found.runs for device, one in frame.roofs_of(run.manifest).items()}
    chart = charts.roofline(rows, roofs, found.caption)
    return Page(
        name="roofline",
        title="Roofline",
        words=("Ceilings as attnbench calibrate measured them; a row that beats one says why.",),
        charts=(("roofline", chart),) if chart is not None else (),
        tables=(table,),
        fill="attnbench calibrate measures the ceilings",
    )


def _scaling(found: Material) -> Page:
    laws = list(scaling.laws(found.rows))
    lines = [
        (
            law.quantity, law.arm, law.axis, f"{law.predicted:g}", scaling.interval(law.measured),
            " ".join(f"{slope:.2f}" for slope in law.slopes), law.verdict.value + (f": {law.why}" if law.why else ""),
        )
        for law in laws
    ]  # fmt: skip
    claims = (
        [(one.id, one.says, one.predicts, one.measured, one.verdict.value) for one in scaling.claims(laws)]
        if laws
        else []
    )
    return Page(
        name="scaling",
        title="Scaling",
        tables=(
            Table(
                heading="Exponents",
                head=("quantity", "backend", "axis", "predicted", "measured (95 %)", "local slopes", "verdict"),
                rows=lines,
                numbers=(False, False, False, True, True, False, False),
            ),
            Table(heading="Claims", head=("id", "claim", "predicts", "measured", "verdict"), rows=claims),
        ),
        fill="attnbench scaling measures exponents",
    )


def _accuracy(found: Material) -> Page:
    rows = [row for row in found.rows if row["max_abs_err"] is not None]
    columns = ("max_abs_err", "rms_err", "rel_err", "err_vs_plain", "not_finite")
    return Page(
        name="accuracy",
        title="Accuracy",
        words=("Errors of the worst output against float64; err_vs_plain is in units of the plain formula's error.",),
        charts=_chart("error", found, rows),
        tables=(_metrics("Errors", rows, columns),),
    )


def _support(found: Material) -> Page:
    seen: dict[str, dict[str, Counter[str]]] = {}
    reasons: dict[tuple[str, str], int] = {}
    for row in found.rows:
        about = f"{row['dtype']} {row['mode']}"
        seen.setdefault(row["arm_name"], {}).setdefault(about, Counter())[row["status"]] += 1
        if row["status"] != Status.OK:
            key = (row["arm_name"], pivot.why(row))
            reasons[key] = reasons.get(key, 0) + 1
    columns = list(dict.fromkeys(about for by in seen.values() for about in by))
    grid = [(arm, *(_statuses(by.get(about)) for about in columns)) for arm, by in seen.items()]
    lines = [(arm, str(count), reason) for (arm, reason), count in reasons.items()]
    return Page(
        name="support",
        title="Support",
        tables=(
            Table(heading="Cases by outcome", head=("backend", *columns), rows=grid),
            Table(heading="Reasons", head=("backend", "cases", "reason"), rows=lines, numbers=(False, True, False)),
        ),
    )


def _statuses(counts: Counter[str] | None) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.most_common()) if counts else ""


def _profile(found: Material) -> Page:
    lines = []
    for one in found.joined:
        for result in one.results:
            seen = result.facts.get("profile") or {}
            for row in (seen.get("kernels") or seen.get("operators") or [])[:5]:
                lines.append(
                    (
                        one.case.label,
                        row["name"],
                        str(row["calls"]),
                        units.seconds(row["self_s"]),
                        f"{row['share']:.1%}",
                    )
                )
    head = ("case", "kernel or operator", "calls", "time", "share")
    table = Table(heading="Where the time goes", head=head, rows=lines, numbers=(False, False, True, True, True))
    return Page(name="profile", title="Profile", tables=(table,), fill="attnbench run --profile looks at each case")


def _applications(found: Material) -> Page:
    decode = [row for row in found.rows if row["seq_q"] == 1 and row["time_s"] is not None]
    columns = ("tokens_per_s", "bytes_per_s", "time_s")
    return Page(
        name="applications",
        title="Applications",
        words=("Decoding: one new token a sequence.",),
        tables=(_metrics("Decoding", decode, columns),),
        fill="attnbench run llama3-8b measures a model's shapes",
    )


def _quality(found: Material) -> Page:
    lines = []
    for one in found.joined:
        if not one.times or not one.time:
            continue
        noise = stats.noise(one.times[0])
        width = one.time.relative_half_width
        lines.append(
            (
                one.case.label, str(METRICS["rounds"].compute(one) or ""), str(one.launches),
                units.percent(width), units.percent(noise.relative_iqr),
                "-" if noise.trend is None else f"{noise.trend:+.2f}", "noisy" if one.noisy else "",
                ", ".join(f"{tag} {units.percent(share)}" for tag, share in noise.tagged.items()),
            )
        )  # fmt: skip
    head = ("case", "rounds", "launches", "half-width", "IQR", "drift", "noisy", "tags")
    numbers = (False, True, True, True, True, True, False, False)
    note = "half-width of the 95 % interval; IQR of block medians; drift: Spearman's rho over rounds; tags: of blocks"
    return Page(
        name="quality",
        title="Data quality",
        tables=(Table(heading="Noise", head=head, rows=lines, numbers=numbers, note=note),),
    )


def _history(found: Material) -> Page:
    """The first run against each later one, across machines too, which the words then say."""
    tables, words = [], []
    for later in found.runs[1:]:
        try:
            one = comparison.compare(found.runs[0], later, cross_machine=True)
        except NotComparableError as why:
            words.append(str(why))
            continue
        words += [f"{later.path.name}: two machines, nothing here is a regression"] if one.cross_machine else []
        lines = [
            (
                pair.label, units.seconds(pair.old_s), units.seconds(pair.new_s),
                f"{pair.ratio.value:.3f}" if pair.ratio else "-", _ends(pair.ratio), pair.change.value, pair.reason,
            )
            for pair in one.pairs
        ]  # fmt: skip
        tables.append(
            Table(
                heading=f"{later.path.name} against {found.runs[0].path.name}",
                head=("case", "old", "new", "new / old", "95 %", "change", "reason"),
                rows=lines,
                numbers=(False, True, True, True, True, False, False),
            )
        )
    return Page(name="history", title="Comparison", words=tuple(words), tables=tuple(tables))


def _ends(ratio: stats.Estimate | None) -> str:
    return f"{ratio.low:.3f} .. {ratio.high:.3f}" if ratio and ratio.low is not None and ratio.high is not None else "-"


def _raw(found: Material) -> Page:
    lines = []
    for row in found.rows:
        time = units.seconds(row["time_s"]) if row["time_s"] is not None else pivot.why(row)
        lines.append(
            (
                row["case_id"],
                row["label"],
                row["device"],
                row["status"],
                time,
                pivot.factor(row["speedup"]),
                repeat(row),
            )
        )
    head = ("id", "case", "device", "status", "time or reason", "speed-up", "repeat it")
    commands = [(run.path.name, run.manifest.command) for run in found.runs]
    return Page(
        name="raw",
        title="Raw data",
        tables=(
            Table(heading="Every case", head=head, rows=lines, numbers=(False, False, False, False, True, True, False)),
            Table(heading="Commands", head=("run", "command"), rows=commands),
        ),
    )


def repeat(row: Row) -> str:
    """The command that measures one row again."""
    options = {
        "--batch": row["batch"], "--heads": row["heads"], "--kv-heads": row["kv_heads"], "--seq-q": row["seq_q"],
        "--seq-kv": row["seq_kv"], "--head-dim": row["head_dim"], "--head-dim-v": row["head_dim_v"],
        "--mask": row["mask"], "--dtype": row["dtype"], "--mode": row["mode"], "--device": row["device"],
        "-b": row["backend"],
    }  # fmt: skip
    return shlex.join(["attnbench", "run", *(str(part) for pair in options.items() for part in pair)])


PAGES: tuple[Callable[[Material], Page], ...] = (
    _latency, _throughput, _speedup, _memory, _roofline, _scaling, _accuracy, _support, _profile, _applications,
    _quality, _history, _raw,
)  # fmt: skip


# -- pieces ------------------------------------------------------------------------------------------------------------


def _chart(name: str, found: Material, rows: Sequence[Row]) -> tuple[tuple[str, Any], ...]:
    chart = charts.CHARTS[name](rows, found.caption) if rows else None
    return ((name, chart),) if chart is not None else ()


def _metrics(heading: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
    """One line a case with these metrics; a column that nothing was measured of is left out."""
    kept = [name for name in names if any(row[name] is not None for row in rows)]
    lines = [
        (row["label"], *(METRICS[name].show(row[name]) for name in kept))
        for row in rows
        if any(row[name] is not None for name in kept)
    ]
    return Table(heading=heading, head=("case", *kept), rows=lines, numbers=(False, *([True] * len(kept))))
