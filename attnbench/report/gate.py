"""A gate as people and CI read it: a table, Markdown, JSON Lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from attnbench import units
from attnbench.errors import Exit
from attnbench.gate.judgement import Judged
from attnbench.metrics import METRICS
from attnbench.report import closer
from attnbench.report.markdown import escape
from attnbench.report.table import width_of, wrap
from attnbench.result import Outcome, Verdict
from attnbench.store import Run

HEADS = ("base", "head", "change", "95 %", "margin", "")
LOUD = (Outcome.BROKEN, Outcome.MISSING, Outcome.REGRESSED, Outcome.INCONCLUSIVE, Outcome.IMPROVED, Outcome.NEW)
RED = (Outcome.BROKEN, Outcome.MISSING, Outcome.REGRESSED)
SUMMARY_MOST = 1_000_000  # bytes of a step summary, below 1 MiB
COMMENT_MOST = 60_000  # bytes of a comment on GitHub, below its 65,536 characters


def exit_code(judged: Judged, inconclusive_ok: bool = False) -> Exit:
    """What a shell is told: the first that holds of 6, 5, 1, 3."""
    seen = {one.outcome for one in judged.verdicts}
    if not seen or seen <= {Outcome.NEW}:
        return Exit.OK if seen else Exit.NOTHING_MEASURED
    if seen & {Outcome.BROKEN, Outcome.MISSING}:
        return Exit.FAILED
    if Outcome.REGRESSED in seen:
        return Exit.REGRESSED
    if Outcome.INCONCLUSIVE in seen and not inconclusive_ok:
        return Exit.INCONCLUSIVE
    return Exit.OK


def sentence(judged: Judged) -> str:
    """`20 cases: 1 regressed, 19 same.`, by the worst verdict of each case."""
    worst: dict[tuple[str, str], Outcome] = {}
    for one in judged.verdicts:  # which begin with the worst
        worst.setdefault((one.case_id, one.device), one.outcome)
    counts = Counter(worst.values())
    said = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in (*LOUD, Outcome.SAME) if counts[outcome])
    refused = f"; {judged.refused} that neither side can run" if judged.refused else ""
    return f"{sum(counts.values())} cases: {said or 'nothing measured'}{refused}."


def text(run: Run, judged: Judged, width: int, everything: bool = False) -> Iterator[str]:
    """What changed, then what to do about it; with `everything` what did not change too."""
    yield from wrap(f"{judged.head} against {judged.base}", width, indent=2)
    times = [one for one in judged.verdicts if one.metric in ("time_s", "status") or one.outcome in LOUD]
    shown = [one for one in times if everything or one.outcome in LOUD] or times
    yield ""
    yield from _table(shown, width)
    yield ""
    for name, (ratio, low, high, count) in sorted(judged.geomeans.items()):
        ends = f", {low:.3f}..{high:.3f}" if count > 1 else ""
        yield f"{name}: {ratio:.3f}x over {count} cases, geometric mean{ends}"
    yield from wrap(f"margins: {judged.floor}", width, indent=2)
    for note in (*judged.notes, judged.doubt):
        yield from wrap(note, width, indent=2) if note else ()
    yield from closer.look(run, judged.verdicts)
    yield sentence(judged)


def _table(shown: Sequence[Verdict], width: int) -> Iterator[str]:
    rows = [(one, _cells(one)) for one in shown]
    wide = [max([width_of(head), *(width_of(cells[place]) for _, cells in rows)]) for place, head in enumerate(HEADS)]
    label = max(20, min(max((width_of(_name(one)) for one, _ in rows), default=4), width - sum(wide) - 2 * len(wide)))
    yield ("case".ljust(label) + "".join(f"  {h.rjust(size)}" for h, size in zip(HEADS, wide, strict=True))).rstrip()
    for one, cells in rows:
        first, *rest = wrap(_name(one), label)
        yield (
            first.ljust(label) + "".join(f"  {cell.rjust(size)}" for cell, size in zip(cells, wide, strict=True))
        ).rstrip()
        yield from (f"  {piece}" for piece in rest)
        yield from (f"    {line}" for line in (wrap(one.reason, width - 4) if one.reason else ()))


def said(one: Verdict) -> str:
    """A line: `time_s regressed: 1.20 ms, was 1.00 ms (+20.0 %, 95 % +18.1 % .. +22.0 %, margin 2.0 %)`."""
    base, head, change, ends, margin, outcome = _cells(one)
    figures = f": {head}, was {base} ({change}, 95 % {ends}, margin {margin})" if one.base is not None else ""
    return f"{one.metric} {outcome}{figures}{f': {one.reason}' if one.reason else ''}"


def _name(one: Verdict) -> str:
    metric = "" if one.metric in ("time_s", "status") else f" {one.metric}"
    return f"{one.label}@{one.device}{metric}"


def _cells(one: Verdict) -> tuple[str, ...]:
    show = METRICS[one.metric].show if one.metric in METRICS else lambda value: "-"
    ends = f"{units.change(one.interval[0])} .. {units.change(one.interval[1])}" if one.interval else "-"
    margin = f"{100 * one.margin:.1f} %" if one.margin is not None else "-"
    return show(one.base), show(one.head), units.change(one.change), ends, margin, one.outcome.value


def record(one: Verdict) -> dict[str, Any]:
    """One line of `gate --json`."""
    return {"type": "verdict", **msgspec.to_builtins(one), "outcome": one.outcome.value, "change": one.change}


def summary(run: Run, judged: Judged, code: Exit) -> dict[str, Any]:
    """The last line of `gate --json`."""
    counts = Counter(one.outcome.value for one in judged.verdicts)
    return {
        "type": "summary", "verdicts": dict(counts), "sentence": sentence(judged), "floor": judged.floor,
        "doubt": judged.doubt, "notes": list(judged.notes), "path": str(run.path), "exit_code": int(code),
        "geomeans": {
            name: dict(zip(("ratio", "low", "high", "cases"), values, strict=True))
            for name, values in judged.geomeans.items()
        },
    }  # fmt: skip


def markdown(run: Run, judged: Judged, most: int = COMMENT_MOST) -> str:
    """For a comment or a step summary: what changed, the rest folded; cut to `most` bytes, which is said."""
    red = {one.outcome for one in judged.verdicts} & set(RED)
    head = [
        f"### attnbench gate: {'**failed**' if red else 'passed'}",
        "",
        f"{escape(judged.head)} against {escape(judged.base)}. {escape(sentence(judged))}",
        "",
    ]
    columns = "| case | metric | base | head | change | 95 % | margin | |\n|---|---|---:|---:|---:|---:|---:|---|"
    loud = [one for one in judged.verdicts if one.outcome in LOUD]
    rest = [one for one in judged.verdicts if one.outcome not in LOUD]
    near = list(closer.look(run, judged.verdicts))
    fits = near and sum(len(line.encode()) + 1 for line in near) < most / 2
    tail = ["", "~~~~text", *near, "~~~~"] if fits else []
    tail += ["", f"Margins: {escape(judged.floor)}."]
    tail += [escape(note) for note in (*judged.notes, judged.doubt) if note]
    room = most - len("\n".join([*head, columns, *tail]).encode()) - 400
    lines: list[str] = []
    for one in (*loud, *rest):
        line = _line(one)
        room -= len(line.encode()) + 1
        if room < 0:
            tail.insert(0, f"\n{len(loud) + len(rest) - len(lines)} more rows: attnbench gate {run.path.name} --all")
            break
        lines.append(line)
    changed, same = lines[: len(loud)], lines[len(loud) :]
    body = [columns, *changed] if changed else []
    if same:
        body += ["", f"<details><summary>{len(rest)} unchanged</summary>", "", columns, *same, "", "</details>"]
    return "\n".join([*head, *body, *tail]) + "\n"


def _line(one: Verdict) -> str:
    cells = [f"{one.label}@{one.device}", one.metric, *_cells(one)]
    cells[-1] += f": {one.reason}" if one.reason else ""
    return f"| {' | '.join(map(escape, cells))} |"


def reach(judged: Judged) -> str:
    """Of a run against itself: how small a slowdown this machine can see."""
    margins = sorted(one.margin for one in judged.verdicts if one.metric == "time_s" and one.margin is not None)
    seen = [abs(one.change) for one in judged.verdicts if one.metric == "time_s" and one.change is not None]
    if not margins:
        return "nothing was measured: nothing can be said of this machine"
    middle = margins[len(margins) // 2]
    return (
        f"equal arms differed by up to {100 * max(seen):.1f} %; margins from {100 * margins[0]:.1f} to "
        f"{100 * margins[-1]:.1f} %, median {100 * middle:.1f} %. A slowdown of twice its margin is meant to be "
        f"found in at least 8 of 10 runs (docs/gate.md): here {200 * middle:.0f} % in the median case."
    )
