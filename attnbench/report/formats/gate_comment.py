"""The verdicts of a gate as Markdown, for a comment on a pull request or for a step summary of GitHub."""

from attnbench import units
from attnbench.gate.judgement import RED, GateVerdicts
from attnbench.records.result import Outcome, Verdict
from attnbench.records.run_directory import Run
from attnbench.report.formats.markdown import escape
from attnbench.report.terminal.gate_verdicts import SHOWN, details, failures, legend, marked_cells, sentence

MAX_SUMMARY = 1_000_000  # bytes of a step summary; GitHub's limit is 1 MiB
MAX_COMMENT = 60_000  # bytes of a comment; GitHub's limit is 65,536 characters
COLUMNS = "| case | metric | base | head | change | 95 % | margin | |\n|---|---|---:|---:|---:|---:|---:|---|"


def markdown(run: Run, judged: GateVerdicts, max_bytes: int = MAX_COMMENT) -> str:
    """What changed as a table, what did not in a folded one; cut to `max_bytes`, with a line that says so."""
    failed = any(verdict.outcome in RED for verdict in judged.verdicts)
    head = [
        f"### attnbench gate: {'**failed**' if failed else 'passed'}",
        "",
        f"{escape(judged.head)} against {escape(judged.base)}. {escape(sentence(judged))}",
        "",
        *(f"- {escape(failure)}" for failure in failures(judged)),
        "",
    ]
    tail = _tail(run, judged, max_bytes)
    loud = [verdict for verdict in judged.verdicts if verdict.outcome in SHOWN]
    quiet = [verdict for verdict in judged.verdicts if verdict.outcome not in SHOWN]
    room = max_bytes - len("\n".join([*head, COLUMNS, *tail]).encode()) - 400
    lines: list[str] = []
    for verdict in (*loud, *quiet):
        line = _line(verdict)
        room -= len(line.encode()) + 1
        if room < 0:
            tail.insert(0, f"\n{len(loud) + len(quiet) - len(lines)} more rows: attnbench gate {run.path.name} --all")
            break
        lines.append(line)
    changed, same = lines[: len(loud)], lines[len(loud) :]
    body = [COLUMNS, *changed] if changed else []
    if same:
        cases = units.counted(len({(verdict.case_id, verdict.device) for verdict in quiet}), "case")
        title = f"{units.counted(len(quiet), 'unchanged figure')} of {cases}"
        body += ["", f"<details><summary>{title}</summary>", "", COLUMNS, *same, "", "</details>"]
    return "\n".join([*head, *body, *tail]) + "\n"


def _tail(run: Run, judged: GateVerdicts, max_bytes: int) -> list[str]:
    """The red cases in detail if they take less than half of the room, the margins and the notes."""
    red_cases = list(details(run, judged.verdicts))
    fits = red_cases and sum(len(line.encode()) + 1 for line in red_cases) < max_bytes / 2
    tail = ["", "~~~~text", *red_cases, "~~~~"] if fits else []
    tail += ["", *(f"{escape(line)}  " for line in legend(judged.verdicts))]
    tail += [f"Margins: {escape(judged.margin_source)}."]
    return tail + [escape(note) for note in (*judged.notes, judged.doubt) if note]


def _line(verdict: Verdict) -> str:
    row = [f"{verdict.label}@{verdict.device}", verdict.metric, *marked_cells(verdict)]
    row[-1] += f": {verdict.reason}" if verdict.reason and verdict.outcome is not Outcome.BROKEN else ""
    return f"| {' | '.join(map(escape, row))} |"
