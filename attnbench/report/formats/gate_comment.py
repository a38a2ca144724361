"""The verdicts of a gate as Markdown, for a comment on a pull request or for a step summary of GitHub."""

from attnbench.gate.judgement import GateVerdicts
from attnbench.records.result import Outcome, Verdict
from attnbench.records.run_directory import Run
from attnbench.report.formats.markdown import escape
from attnbench.report.terminal.gate_verdicts import (
    SHOWN,
    details,
    failures,
    marked_cells,
    notes,
    sentence,
    verdict_word,
)

MAX_SUMMARY = 1_000_000  # bytes of a step summary; GitHub's limit is 1 MiB
MAX_COMMENT = 60_000  # bytes of a comment; GitHub's limit is 65,536 characters
COLUMNS = "| case | metric | base | head | change | 95 % | margin | |\n|---|---|---:|---:|---:|---:|---:|---|"


def markdown(run: Run, judged: GateVerdicts, max_bytes: int = MAX_COMMENT) -> str:
    """The verdict, the counts, and what changed as a table; cut to `max_bytes`, with a line that says so."""
    head = [
        f"### attnbench gate: **{verdict_word(judged)}**",
        escape(sentence(judged)),
        f"{escape(judged.sides)}.",
        _list(failures(judged)),
    ]
    changed = [verdict for verdict in judged.verdicts if verdict.outcome in SHOWN]
    tail = _tail(run, judged, changed, max_bytes)
    room = max_bytes - len("\n\n".join([*head, COLUMNS, *tail]).encode()) - 400
    lines: list[str] = []
    for verdict in changed:
        line = _line(verdict)
        room -= len(line.encode()) + 1
        if room < 0:
            tail.insert(0, f"{len(changed) - len(lines)} more rows: attnbench gate {run.path.name}")
            break
        lines.append(line)
    parts = [*head, "\n".join([COLUMNS, *lines]) if lines else "", *tail]
    return "\n\n".join(filter(None, parts)) + "\n"


def _tail(run: Run, judged: GateVerdicts, changed: list[Verdict], max_bytes: int) -> list[str]:
    """The red cases in detail, folded, if they take less than half of the room; the margins and the notes."""
    red_cases = list(details(run, judged.verdicts))
    fits = red_cases and sum(len(line.encode()) + 1 for line in red_cases) < max_bytes / 2
    return [_folded(red_cases) if fits else "", _list(notes(judged, changed))]


def _folded(lines: list[str]) -> str:
    summary = "<summary>Restarts of the red cases, and commands that repeat, profile and bisect them</summary>"
    return "\n".join([f"<details>{summary}", "", "~~~~text", *lines, "~~~~", "", "</details>"])


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _line(verdict: Verdict) -> str:
    row = [f"{verdict.label}@{verdict.device}", verdict.metric, *marked_cells(verdict)]
    row[-1] += f": {verdict.reason}" if verdict.reason and verdict.outcome is not Outcome.BROKEN else ""
    return f"| {' | '.join(map(escape, row))} |"
