"""Markdown: the finding, the tables, the refused cases with their reasons, the machine, and how to repeat the run."""

import re
from collections.abc import Iterable, Iterator, Sequence

from attnbench import units
from attnbench.analysis.roofline import ceilings_by_device
from attnbench.analysis.rows import Place, Row
from attnbench.records.run_directory import Manifest, Run
from attnbench.report import pivot, summary

MAX_CASES = 1000  # of one page
METHOD = (
    "Every output was checked against a float64 reference before it was timed. Each backend ran in a process of its "
    "own, in paired rounds of random balanced order; the time is the median of blocks, with its 95 % interval. "
    "FLOPs count the visible pairs of the mask exactly; the softmax is not counted."
)
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def page(run: Run, rows: Sequence[Row], title: str = "") -> str:
    """The whole report."""
    manifest = run.manifest
    parts = [
        f"# {escape(title or f'attnbench: {manifest.suite}')}",
        f"Finding: {escape(summary.sentence(rows))} {escape(summary.tally(rows, len(manifest.impossible)))}",
        "\n".join(f"- {escape(note)}" for note in summary.notes(rows, ceilings_by_device(manifest))),
        f"The first {MAX_CASES} of {len(rows)} cases; data.csv has all." if len(rows) > MAX_CASES else "",
        *_pivot_tables(rows[:MAX_CASES]),
        _every_case(rows[:MAX_CASES]),
        _not_measured(rows, manifest),
        _machine(manifest),
        f"## Method\n\n{METHOD}",
        # The text of a command cannot end its code block.
        "## Repeat\n\n```sh\n{}\n```".format(manifest.command.replace("```", "'''")) if manifest.command else "",
        f"{run.skipped_lines} lines of the results file could not be read." if run.skipped_lines else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A table of text, with columns of numbers aligned to the right."""
    align = f"|{'|'.join('---:' if number else '---' for number in numbers)}|"
    return "\n".join([_line(map(escape, head)), align, *(_line(map(escape, row)) for row in rows)]) + "\n"


def tables(rows: Sequence[Row]) -> str:
    """The pivot tables alone, with what their cells and marks mean."""
    legend = "\n".join(f"- {escape(symbol)} {escape(meaning)}" for symbol, meaning in pivot.legend(rows))
    parts = [*_pivot_tables(rows), escape(pivot.caption(rows)), legend]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text without line breaks and without characters that are special in Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pivot_tables(rows: Sequence[Row]) -> Iterator[str]:
    layout, notes = pivot.pivot(rows), pivot.Footnotes()
    if layout.constant:
        yield f"Common to all: {escape(layout.constant)}."
    head = [escape(layout.axis), *(escape(" ".join(column.heading)) for column in layout.columns)]
    for section in layout.sections:
        lines = [_line(head), _line(["---:"] * len(head))]
        for label, cells in section.lines:
            lines.append(_line([escape(label), *(_cell(cells.get(column.arm), notes) for column in layout.columns)]))
        heading = f"### {escape(section.heading)}\n\n" if section.heading else ""
        yield heading + "\n".join(lines)
    yield "\n".join(f"- {letter}: {escape(reason)}" for letter, reason in notes.lines)
    yield "\n".join(f"- {escape(arm)}: {escape(reason)}" for arm, reason in layout.absent)


def _cell(row: Row | None, notes: pivot.Footnotes) -> str:
    if row is None:
        return ""
    if row.time_s is None:
        return f"- ({notes.letter(pivot.why(row))})"
    time = units.seconds(row.time_s)
    parts = (f"**{time}**" if row.place is Place.FASTEST else time, pivot.factor(row.speedup), escape(pivot.mark(row)))
    return " ".join(filter(None, parts))


def _every_case(rows: Sequence[Row]) -> str:
    head = ("case", "time", "95 %", "FLOP/s", "peak memory", "max error", "interval")
    lines = [
        (
            row.name, units.seconds(row.time_s),
            f"{units.seconds(row.time_low_s)} .. {units.seconds(row.time_high_s)}",
            units.rate(row.flop_per_s, "FLOP/s"), units.size(row.peak_bytes),
            "-" if row.max_abs_err is None else f"{row.max_abs_err:.1e}", str(row.interval),
        )
        for row in rows
        if row.time_s is not None
    ]  # fmt: skip
    numbers = (False, True, True, True, True, True, False)
    return f"## Every case\n\n{table(head, lines, numbers)}".rstrip() if lines else ""


def _not_measured(rows: Sequence[Row], manifest: Manifest) -> str:
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.time_s is None:
            labels.setdefault(pivot.why(row), []).append(row.name)
    lines = [f"- {escape(reason)}: {len(cases)} ({escape(cases[0])}, ...)" for reason, cases in labels.items()]
    lines += [f"- impossible: {escape(text)}: {escape(reason)}" for text, reason in manifest.impossible]
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""


def _machine(manifest: Manifest) -> str:
    versions = next((env.packages for env in manifest.environments.values()), {})
    facts = {name: value for name, value in manifest.machine.items() if name != "gpu_details"}
    lines = [(name, str(value)) for name, value in facts.items() if value not in (None, [], "")]
    lines += [*versions.items(), *((f"tag {name}", value) for name, value in manifest.tags.items())]
    return "## Machine\n\n| | |\n|---|---|\n" + "\n".join(_line(map(escape, line)) for line in lines)
