"""A closer look at what a gate calls red: its launches as a strip of text, and the commands that follow from it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

import msgspec

from attnbench import frame, units
from attnbench.gate import evidence, judgement
from attnbench.gate.rule import Evidence
from attnbench.gate.trees import Side
from attnbench.report.pages.ends import repeat
from attnbench.result import Outcome, Verdict
from attnbench.store import Run
from attnbench.sweep import Request

MOST = 3  # cases that are looked at
STRIP = 49  # columns
LOOKED_AT = (Outcome.REGRESSED, Outcome.BROKEN)


def look(run: Run, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """For each of the worst cases: its launches, then how to repeat, to profile both sides, and to bisect.

    The commands are whole lines, since they are there to be copied.
    """
    red = list(dict.fromkeys((one.case_id, one.device) for one in verdicts if one.outcome in LOOKED_AT))[:MOST]
    if not red:
        return
    measured = {}
    if run.manifest.gate:
        pairs = evidence.pairings(run.results)
        measured = {(one.case_id, one.device): one for one in judgement.cases_of(pairs, run.manifest.gate)}
    rows = {(row["case_id"], row["device"]): row for row in frame.rows(run.results)}
    margins = {(one.case_id, one.device): one.margin for one in verdicts if one.metric == "time_s"}
    for key in red:
        if key not in rows:
            continue
        row = rows[key]
        yield f"{row['label']}@{row['device']}"
        margin = margins.get(key)
        if key in measured and margin is not None:
            yield from (f"  {line}" for line in strip(measured[key], margin))
        yield f"  profile head: {repeat(row, 'profile')}"
        if run.manifest.gate:
            yield from (f"  {line}" for line in _with_base(run, row["label"], repeat(row, "profile")))


def strip(one: Evidence, margin: float) -> Iterator[str]:
    """Every launch at its place between the fastest and the slowest: `o` in the screen, `x` when confirmed, digits
    where several meet, `#` ten and more; `|` where nothing changed, `:` at the margin."""
    edge = math.log1p(margin)
    low, high = min(0.0, *one.both), max(edge, *one.both)
    width = (high - low) or 1.0

    def column(value: float) -> int:
        return round((value - low) / width * (STRIP - 1))

    cells = [" "] * STRIP
    cells[column(0.0)], cells[column(edge)] = "|", ":"
    counts: dict[int, list[str]] = {}
    for mark, values in (("o", one.screen), ("x", one.confirm)):
        for value in values:
            counts.setdefault(column(value), []).append(mark)
    for place, marks in counts.items():
        cells[place] = marks[0] if len(marks) == 1 else str(len(marks)) if len(marks) < 10 else "#"
    ends = [units.change(math.expm1(value)) for value in (low, high)]
    yield f"launches: {ends[0]} [{''.join(cells)}] {ends[1]}"
    yield f"          | no change, : margin {100 * margin:.1f} %, o screened, x confirmed, digits where several meet"


def _with_base(run: Run, label: str, profile: str) -> Iterator[str]:
    """What needs base too: only a gate that measured both sides knows where base came from."""
    assert run.manifest.gate
    base, head = (msgspec.convert(run.manifest.gate[name], Side) for name in ("base", "head"))
    request = msgspec.convert(run.manifest.request, Request)
    if base == head:  # of one side against itself there is nothing more to say
        return
    if base.python:
        yield f"profile base: {shlex.quote(base.python)} -m {profile}"
        option = ["--base-python", base.python]
    elif base.commit:
        unpack = f"d=$(mktemp -d) && git archive {base.commit} | tar -x -C $d"
        yield f"profile base: {unpack} && (cd $d && PYTHONPATH=$d {profile})"
        option = ["--base-ref", base.commit]
    else:
        yield f"profile base: (cd {shlex.quote(base.name)} && {profile})"
        option = ["--base-path", base.name]
    yield f"repeat: {shlex.join(['attnbench', 'gate', *request.suites, *_choice(request), *option, '--case', label])}"
    if base.commit and head.commit and base.commit != head.commit and not base.python:
        suites = [part for name in request.suites for part in ("--suite", name)]
        ends = ["--case", label, base.commit, head.commit]
        yield f"bisect: {shlex.join(['attnbench', 'bisect', *suites, *_choice(request), *ends])}"


def _choice(request: Request) -> list[str]:
    """Axes, backends and device as they were asked for."""
    options = [part for key, value in request.axes.items() for part in ("--set", f"{key}={value}")]
    options += ["-b", request.backend] if request.backend else []
    return [*options, "--device", request.device]
