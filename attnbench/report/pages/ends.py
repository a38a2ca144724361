"""The first page and the last: summary and raw data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from attnbench import units
from attnbench.frame import Place, Row
from attnbench.report import charts, diagrams, pivot
from attnbench.report import summary as words_of
from attnbench.report.material import Material, Page, Table
from attnbench.report.pages.pieces import drawn
from attnbench.store import Run

HEADLINE_PANELS = 2


def summary(found: Material, missing: Sequence[Page]) -> Page:
    """The finding, what there is no data for, the best backends, the machine."""
    rows = found.rows
    impossible = sum(len(run.manifest.impossible) for run in found.runs)
    words = [words_of.sentence(rows), words_of.tally(rows, impossible)]
    words += [f"{page.title}: nothing yet; {page.fill}" for page in missing if page.fill]
    words += [
        f"{run.path.name}: {run.skipped_lines} lines could not be read" for run in found.runs if run.skipped_lines
    ]
    return Page(
        name="summary",
        title="Summary",
        words=tuple(words),
        charts=drawn(
            best=diagrams.grid(found.charted, found.caption),
            latency=charts.latency(found.charted, found.caption, most=HEADLINE_PANELS),
            speedup=charts.speedup(found.charted, found.caption, most=HEADLINE_PANELS),
        ),
        tables=(_best(rows), _machine(found.runs)),
    )


def _best(rows: Sequence[Row]) -> Table:
    """The fastest backend of each problem; all that cannot be told from it, where intervals overlap."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["place"]:
            where = ", ".join(filter(None, (row["device"], row.get("run"))))
            grouped.setdefault((row["problem"], where), []).append(row)
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


def raw(found: Material) -> Page:
    """Every case, and the command that measures it again."""
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


def repeat(row: Row, command: str = "run") -> str:
    """The command that measures one row again, or profiles it."""
    options = {
        "--batch": row["batch"], "--heads": row["heads"], "--kv-heads": row["kv_heads"], "--seq-q": row["seq_q"],
        "--seq-kv": row["seq_kv"], "--head-dim": row["head_dim"], "--head-dim-v": row["head_dim_v"],
        "--mask": row["mask"], "--dtype": row["dtype"], "--mode": row["mode"], "--device": row["device"],
        "-b": row["backend"],
    }  # fmt: skip
    return shlex.join(["attnbench", command, *(str(part) for pair in options.items() for part in pair)])
