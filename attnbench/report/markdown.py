"""Markdown: the machine, the finding, the tables, the refusals with their reasons, and how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from attnbench import units
from attnbench.frame import Row
from attnbench.report import pivot, summary
from attnbench.store import Manifest, Run

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")

CASES_MOST = 1000  # of one page

_METHOD = (
    "Every output was checked against a float64 reference before it was timed. Backends ran in processes of their own, "
    "in paired rounds of random balanced order; the time is the median of blocks, with its 95 % interval. "
    "FLOPs count the visible pairs of the mask exactly; the softmax is not counted."
)


def page(run: Run, rows: Sequence[Row], title: str = "") -> str:
    """The whole report."""
    manifest = run.manifest
    parts = [
        f"# {escape(title or f'attnbench: {manifest.suite}')}",
        f"Finding: {escape(summary.sentence(rows))} {escape(summary.tally(rows, len(manifest.impossible)))}",
        f"The first {CASES_MOST} of {len(rows)} cases; data.csv has all." if len(rows) > CASES_MOST else "",
        *_tables(rows[:CASES_MOST]),
        *_details(rows[:CASES_MOST]),
        *_refusals(rows, manifest),
        *_machine(manifest),
        f"## Method\n\n{_METHOD}",
        f"## Repeat\n\n```sh\n{_fence(manifest.command)}\n```" if manifest.command else "",
        f"{run.skipped_lines} lines of the results file could not be read." if run.skipped_lines else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A table of text, its numbers aligned to the right."""
    lines = [
        f"| {' | '.join(map(escape, head))} |",
        f"|{'|'.join('---:' if number else '---' for number in numbers)}|",
        *(f"| {' | '.join(map(escape, row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def tables(rows: Sequence[Row]) -> str:
    """The pivot tables alone."""
    return "\n\n".join(_tables(rows)) + "\n"


def escape(text: str) -> str:
    """Text that Markdown and HTML take as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    laid, notes = pivot.pivot(rows), pivot.Notes()
    if laid.constant:
        yield f"Common to all: {escape(laid.constant)}."
    for block in laid.blocks:
        lines = [
            [escape(laid.axis), *(escape(" ".join(column.heading)) for column in laid.columns)],
            ["---:"] * (len(laid.columns) + 1),
        ]
        for label, cells in block.lines:
            lines.append([escape(label), *(_cell(cells.get(column.arm), notes) for column in laid.columns)])
        heading = f"### {escape(block.heading)}\n\n" if block.heading else ""
        yield heading + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    yield "\n".join(f"- {letter}: {escape(reason)}" for letter, reason in notes.lines)
    yield "\n".join(f"- {escape(arm)}: {escape(reason)}" for arm, reason in laid.absent)


def _cell(row: Row | None, notes: pivot.Notes) -> str:
    if row is None:
        return ""
    if row["time_s"] is None:
        return f"- ({notes.letter(pivot.why(row))})"
    time = units.seconds(row["time_s"])
    marks = escape(pivot.mark(row))
    text = f"**{time}**" if row["place"] == "fastest" else time
    return " ".join(part for part in (text, pivot.factor(row["speedup"]), marks) if part)


def _details(rows: Sequence[Row]) -> Iterator[str]:
    measured = [row for row in rows if row["time_s"] is not None]
    if not measured:
        return
    head = ("case", "time", "95 %", "FLOP/s", "peak memory", "max error", "interval")
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---:|---:|---:|---:|---|"]
    for row in measured:
        low, high = row["time_low_s"], row["time_high_s"]
        error = "-" if row["max_abs_err"] is None else f"{row['max_abs_err']:.1e}"
        cells = (
            escape(row["label"]),
            units.seconds(row["time_s"]),
            f"{units.seconds(low)} .. {units.seconds(high)}",
            units.rate(row["flop_per_s"], "FLOP/s"),
            units.size(row["peak_bytes"]),
            error,
            str(row["interval"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    yield "## Every case\n\n" + "\n".join(lines)


def _refusals(rows: Sequence[Row], manifest: Manifest) -> Iterator[str]:
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row["time_s"] is None:
            refused.setdefault(pivot.why(row), []).append(row["label"])
    lines = [f"- {escape(reason)}: {len(labels)} ({escape(labels[0])}, ...)" for reason, labels in refused.items()]
    lines += [f"- impossible: {escape(text)}: {escape(reason)}" for text, reason in manifest.impossible]
    if lines:
        yield "## Not measured\n\n" + "\n".join(lines)


def _machine(manifest: Manifest) -> Iterator[str]:
    machine: dict[str, Any] = {
        name: value for name, value in manifest.machine.items() if value not in (None, [], "") and name != "gpu_details"
    }
    versions = next((env.packages for env in manifest.environments.values()), {})
    lines = [f"| {escape(name)} | {escape(str(value))} |" for name, value in {**machine, **versions}.items()]
    lines += [f"| tag {escape(name)} | {escape(value)} |" for name, value in manifest.tags.items()]
    yield "## Machine\n\n| | |\n|---|---|\n" + "\n".join(lines)


def _fence(text: str) -> str:
    return text.replace("```", "'''")
