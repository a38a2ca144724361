"""The verdicts of a gate as a table and as records, and its red cases in detail."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from attnbench import units
from attnbench.analysis import stats
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.rows import Row, rows_of
from attnbench.backends.installation import shell_word
from attnbench.engine.sweep import Request
from attnbench.errors import Exit
from attnbench.gate import evidence
from attnbench.gate import record as gate_record
from attnbench.gate.evidence import Pairing
from attnbench.gate.judgement import RED, GateVerdicts, cases_of
from attnbench.gate.rule import Evidence
from attnbench.records import results_file, run_directory
from attnbench.records.result import Outcome, Verdict
from attnbench.records.run_directory import Run
from attnbench.report.summary import broken_lines, repeat_command
from attnbench.report.terminal.text_layout import WIDTH, aligned, shared_words, wrap

HEADINGS = ("base", "head", "change", "95 %", "margin", "")
SHOWN = (*RED, Outcome.INCONCLUSIVE, Outcome.IMPROVED, Outcome.NEW)  # without --all
DETAILED = (Outcome.REGRESSED, Outcome.BROKEN)
NAMELESS = ("time_s", "status")  # metrics that a row of the table does not name
MAX_DETAILED = 3
STRIP = 49  # columns
WORDS = {
    Exit.OK: "passed", Exit.REGRESSED: "regressed", Exit.INCONCLUSIVE: "inconclusive", Exit.FAILED: "failed",
    Exit.NOTHING_MEASURED: "nothing measured",
}  # fmt: skip
MARK, NOISY = "^", "!"
NOISY_MARGIN = 0.10
NOISY_MEANING = f"noisy: slowdowns below its margin of over {100 * NOISY_MARGIN:.0f} % cannot be found"
MEANING = "head and base divide to another change: they are of all rounds, and the change is paired by round; it counts"


def exit_code(judged: GateVerdicts, inconclusive_ok: bool = False) -> Exit:
    """Return the exit code of a gate: the first that applies of 6, 5, 1 and 3, else 0."""
    outcomes = {verdict.outcome for verdict in judged.verdicts}
    if outcomes == {Outcome.INCONCLUSIVE} and {verdict.metric for verdict in judged.verdicts} == {"status"}:
        return Exit.NOTHING_MEASURED  # no case was reached
    if not outcomes or outcomes <= {Outcome.NEW}:
        return Exit.OK if outcomes or judged.unchanged else Exit.NOTHING_MEASURED
    if outcomes & {Outcome.BROKEN, Outcome.MISSING}:
        return Exit.FAILED
    if Outcome.REGRESSED in outcomes:
        return Exit.REGRESSED
    if Outcome.INCONCLUSIVE in outcomes and not inconclusive_ok:
        return Exit.INCONCLUSIVE
    return Exit.OK


def verdict_word(judged: GateVerdicts) -> str:
    """The verdict on the whole run: `passed`, or the word of its exit code where inconclusive cases count."""
    return WORDS[exit_code(judged)]


def sentence(judged: GateVerdicts) -> str:
    """`20 cases: 1 regressed, 19 same.`, by the worst verdict of each case."""
    worst: dict[tuple[str, str], Outcome] = {}
    for verdict in judged.verdicts:  # sorted, worst first
        worst.setdefault((verdict.case_id, verdict.device), verdict.outcome)
    counts = Counter(worst.values())
    parts = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in (*SHOWN, Outcome.SAME) if counts[outcome])
    refused = f"; {judged.refused} that neither side can run" if judged.refused else ""
    unchanged = f"; {judged.unchanged} skipped: unchanged" if judged.unchanged else ""
    nothing = "nothing to measure" if judged.unchanged else "nothing measured"
    return f"{units.counted(sum(counts.values()), 'case')}: {parts or nothing}{refused}{unchanged}."


def text(run: Run, judged: GateVerdicts, width: int, everything: bool = False, verbose: bool = False) -> Iterator[str]:
    """List what changed, then the commands that investigate the red cases.

    With `everything` list also the times that did not change, with `verbose` every figure.
    """
    yield from wrap(judged.sides, width, indent=2)
    yield from _failures(run, judged, width, verbose)
    shown = [
        verdict
        for verdict in judged.verdicts
        if verbose or verdict.outcome in SHOWN or (everything and verdict.metric in NAMELESS)
    ]
    yield from _table(shown, width) if shown else ()
    yield ""
    for name, (ratio, low, high, count) in sorted(judged.geomeans.items()):
        ends = (low - 1, high - 1) if count > 1 else (None, None)
        change, interval = units.change_and_interval(ratio - 1, *ends)
        mean = f"geometric mean ({interval})" if interval else "geometric mean"
        yield from wrap(f"{name}: {change} over {units.counted(count, 'case')}, {mean}", width, indent=2)
    for note in notes(judged, shown):
        yield from wrap(note, width, indent=2)
    yield from details(run, judged.verdicts, width)
    yield from wrap(sentence(judged), width, indent=2)


def _table(verdicts: Sequence[Verdict], width: int) -> Iterator[str]:
    common, labels = shared_words([f"{verdict.label} {verdict.device}" for verdict in verdicts])
    if len(set(labels)) == 1:  # one case: its rows show the backend alone
        common, labels = labels[0], [verdict.backend for verdict in verdicts]
        common = " ".join(word for word in common.split(" ") if word != labels[0])
    yield from wrap(common, width) if common else ()
    yield ""
    rows = [
        (f"{label}{_metric(verdict)}", marked_cells(verdict)) for label, verdict in zip(labels, verdicts, strict=True)
    ]
    heading, *lines = aligned("case", HEADINGS, rows, width)
    yield from heading
    for verdict, row in zip(verdicts, lines, strict=True):
        yield from row
        if verdict.reason and verdict.outcome is not Outcome.BROKEN:
            yield from (f"    {piece}" for piece in wrap(verdict.reason, width - 4))


def failures(judged: GateVerdicts, whole: bool = False) -> list[str]:
    """One phrase for each backend and kind of failure; with `whole` no reason is cut or left out."""
    broken = (verdict for verdict in judged.verdicts if verdict.outcome is Outcome.BROKEN)
    return broken_lines(((f"{verdict.backend}@{verdict.device}", verdict.reason) for verdict in broken), whole)


def _failures(run: Run, judged: GateVerdicts, width: int, whole: bool) -> Iterator[str]:
    """The failures, and the command that prints all of their reasons where some are cut or left out."""
    shown = failures(judged, whole)
    for failure in shown:
        yield from wrap(failure, width, indent=2)
    if run.manifest.gate and shown != failures(judged, whole=True):
        yield f"  reasons in full: attnbench gate -v {shlex.quote(str(run.path))}"


def notes(judged: GateVerdicts, shown: Sequence[Verdict]) -> list[str]:
    """What the marks of the verdicts that are shown mean, the margins if a time was judged, and what else to know."""
    margins = [f"margins: {judged.margin_source}"] if judged.geomeans else []
    return [*legend(shown), *margins, *judged.notes, *filter(None, [judged.doubt])]


def _metric(verdict: Verdict) -> str:
    return "" if verdict.metric in NAMELESS else f" {verdict.metric}"


def quotient_outside(verdict: Verdict) -> bool:
    """Whether the times of head and base divide to a value outside the interval of their paired ratio.

    Or whether, as printed, they differ in the other direction than the change, which a wide interval may include.
    """
    if verdict.metric != "time_s" or not verdict.base or verdict.head is None or verdict.interval is None:
        return False
    base, head = (float(f"{value:.3g}") for value in (verdict.base, verdict.head))
    low, high = (1 + end for end in verdict.interval)
    is_opposite = (head - base) * round(verdict.change or 0.0, 3) < 0
    return is_opposite or stats.quotient_outside(verdict.head, verdict.base, low, high, digits=3)


def legend(verdicts: Sequence[Verdict]) -> list[str]:
    """What the marks of these verdicts mean."""
    marks = [f"{MARK}  {MEANING}"] if any(map(quotient_outside, verdicts)) else []
    return marks + ([f"{NOISY}  {NOISY_MEANING}"] if any(map(_noisy, verdicts)) else [])


def _noisy(verdict: Verdict) -> bool:
    return verdict.metric == "time_s" and verdict.margin is not None and verdict.margin > NOISY_MARGIN


def marked_cells(verdict: Verdict) -> tuple[str, ...]:
    """`cells`, with MARK at a change that contradicts the two times, and NOISY at a wide margin."""
    base, head, change, interval, margin, outcome = cells(verdict)
    contradicts, noisy = MARK * quotient_outside(verdict), NOISY * _noisy(verdict)
    return base, head, change + contradicts, interval, margin + noisy, outcome


def cells(verdict: Verdict) -> tuple[str, ...]:
    """One cell for each of HEADINGS."""
    show = METRICS.get(verdict.metric, METRICS["time_s"]).show  # `status` has the time of base
    change, interval = _change(verdict)
    return show(verdict.base), show(verdict.head), change, interval or "-", _margin(verdict), verdict.outcome.value


def _change(verdict: Verdict) -> tuple[str, str]:
    """The change and its interval."""
    return units.change_and_interval(verdict.change, *(verdict.interval or (None, None)))


def _margin(verdict: Verdict) -> str:
    """The allowed change; of memory in bytes, since a fixed number of them is a large share of a small allocation."""
    if verdict.metric in evidence.MEMORY and verdict.margin is not None and verdict.base is not None:
        return units.size(verdict.margin * verdict.base)
    return units.margin(verdict.margin)


def describe(verdict: Verdict) -> str:
    """`time_s regressed: 1.20 ms, was 1.00 ms (+20.0 %, 95 % +18.1 % .. +22.0 %, margin 2.0 %)`."""
    base, head, change, interval, margin, outcome = cells(verdict)
    has_both = verdict.base is not None and verdict.head is not None
    figures = f": {head}, was {base} ({change}, 95 % {interval}, margin {margin})" if has_both else ""
    return f"{verdict.metric} {outcome}{figures}{f': {verdict.reason}' if verdict.reason else ''}"


def annotation(verdict: Verdict) -> str:
    """`b1 h8 ... naive@cpu: time_s +12.3 % (+11.0 % .. +13.6 %), margin 5.0 %: regressed`."""
    figures = ""
    if verdict.change is not None:
        change, interval = _change(verdict)
        figures = f" {change}{f' ({interval})' if interval else ''}, margin {_margin(verdict)}"
    reason = f": {verdict.reason}" if verdict.reason else ""
    return f"{verdict.label}@{verdict.device}: {verdict.metric}{figures}: {verdict.outcome.value}{reason}"


def record(verdict: Verdict) -> dict[str, object]:
    """One line of `gate --json`."""
    fields = msgspec.to_builtins(verdict)
    return {"type": "verdict", **fields, "outcome": verdict.outcome.value, "change": verdict.change}


def summary(run: Run, judged: GateVerdicts, code: Exit) -> dict[str, object]:
    """The last line of `gate --json`."""
    counts = Counter(verdict.outcome.value for verdict in judged.verdicts)
    return {
        "type": "summary", "verdict": verdict_word(judged), "verdicts": dict(counts),
        "skipped": {"unchanged": judged.unchanged}, "sentence": sentence(judged), "floor": judged.margin_source,
        "doubt": judged.doubt, "notes": list(judged.notes), "path": str(run.path), "exit_code": int(code),
        "geomeans": {
            name: dict(zip(("ratio", "low", "high", "cases"), values, strict=True))
            for name, values in judged.geomeans.items()
        },
    }  # fmt: skip


def reach(judged: GateVerdicts) -> str:
    """Say how small a slowdown this machine can detect, from a run gated against itself."""
    times = [verdict for verdict in judged.verdicts if verdict.metric == "time_s"]
    margins = sorted(verdict.margin for verdict in times if verdict.margin is not None)
    changes = [abs(verdict.change) for verdict in times if verdict.change is not None]
    if not margins:
        return "nothing was measured: the sensitivity of this machine is unknown"
    median = margins[len(margins) // 2]
    low, middle, high = (units.in_percent(value) for value in (margins[0], median, margins[-1]))
    spread, which = f"margins from {low} to {high}, median {middle}", " in the median case"
    if low == high:
        spread, which = f"margin {low}", ""
    return (
        f"equal arms differed by up to {units.in_percent(max(changes))}; {spread}. A slowdown of 1.5 times its margin "
        f"is meant to be found in at least 8 of 10 runs (docs/gate.md): here {units.in_percent(1.5 * median)}{which}."
    )


def details(run: Run, verdicts: Sequence[Verdict], width: int = WIDTH) -> Iterator[str]:
    """For each of the worst cases its restarts, and the commands that repeat it, profile both sides, and bisect.

    A broken case is verified and not profiled.
    A command is one line of any length, so that it can be copied.
    """
    red = dict.fromkeys((verdict.case_id, verdict.device) for verdict in verdicts if verdict.outcome in DETAILED)
    broken = {(verdict.case_id, verdict.device) for verdict in verdicts if verdict.outcome is Outcome.BROKEN}
    if not red:
        return
    keys = list(red)[:MAX_DETAILED]
    results = results_file.chosen(run.results, lambda result: (result.case.id, result.arm.device) in keys)
    evidences: dict[tuple[str, str], Evidence] = {}
    pairs: dict[tuple[str, str], Pairing] = {}
    has_base = False  # that can be measured again, and is not head itself
    if run.manifest.gate:
        gate = gate_record.of(run)
        has_base = gate.base != gate.head
        pairs = {pair.key: pair for pair in evidence.pairings(results)}
        cases = cases_of(list(pairs.values()), gate)
        evidences = {(case.case_id, case.device): case for case in cases}
    rows = {(row.case_id, row.device): row for row in rows_of(results)}
    margins = {(verdict.case_id, verdict.device): verdict.margin for verdict in verdicts if verdict.metric == "time_s"}
    for key in keys:
        row, margin = rows.get(key), margins.get(key)
        if row is None:
            continue
        yield from wrap(f"{row.label}@{row.device}", width, indent=2)
        if key in evidences and margin is not None:
            yield from (f"  {line}" for line in strip(evidences[key], margin, width - 2))
        name = "verify" if key in broken else "profile"
        command = repeat_command(row, run.manifest.request.get("backend_python", ()), name)
        yield f"  {name} head: {command}"
        if has_base:
            yield from (f"  {line}" for line in _with_base(run, row, "" if key in broken else command))
            yield from (f"  {line}" for line in _bisect(run, row, pairs[key], width - 2))


def strip(case: Evidence, margin: float, width: int = WIDTH) -> Iterator[str]:
    """Draw every restart between the fastest and the slowest.

    `o` is a restart, a digit is the number of restarts in one column, `#` ten or more; `|` marks no change, and `:` the
    margin.
    """
    edge = math.log1p(margin)
    low, high = min(0.0, *case.effects), max(edge, *case.effects)
    ends = units.changes([math.expm1(value) for value in (low, high)])
    columns = min(STRIP, width - len(f"restarts: {ends[0]} [] {ends[1]}"))

    def column(value: float) -> int:
        return round((value - low) / ((high - low) or 1.0) * (columns - 1))

    cells = [" "] * columns
    cells[column(0.0)], cells[column(edge)] = "|", ":"
    for place, count in Counter(map(column, case.effects)).items():
        cells[place] = "o" if count == 1 else str(count) if count < 10 else "#"
    yield f"restarts: {ends[0]} [{''.join(cells)}] {ends[1]}"
    meaning = f"| no change, : margin {units.margin(margin)}, o a restart, digits where several meet"
    yield from (f"{'':10}{line}" for line in wrap(meaning, width - 10))


# Unpacks a commit with all folders of its repository, and goes to the one where the shell is.
UNPACK = (
    'd=$(mktemp -d) && git -C "./$(git rev-parse --show-cdup)" archive {commit} | tar -x -C "$d" && '
    '(p=$d/$(git rev-parse --show-prefix) && mkdir -p "$p" && cd "$p" && PYTHONPATH=$p:$d {command})'
)


def _with_base(run: Run, row: Row, profile: str) -> Iterator[str]:
    """The commands that need base, which is known for a gate that measured both sides; `profile` may be empty."""
    base = gate_record.of(run).base
    if base.python:
        in_base, option = f"{shell_word(base.python)} -m {profile}", f"--base-python {shell_word(base.python)}"
    elif base.commit:
        in_base, option = UNPACK.format(commit=base.commit, command=profile), f"--base-ref {base.commit}"
    else:
        name = shell_word(base.name)
        in_base, option = f"(cd {name} && PYTHONPATH=$PWD {profile})", f"--base-path {name}"
    if profile:
        yield f"profile base: {in_base}"
    yield f"repeat: {_gate_of_case(run, row, option)}"


def _gate_of_case(run: Run, row: Row, option: str) -> str:
    """The command that gates one case; `option` names its base."""
    options = run_directory.problem_options(run.manifest)
    there = run_directory.cluster_options(run.manifest, row.device)
    words = [*_suites(run), *options, *there]
    return " ".join(["attnbench gate", *map(shlex.quote, words), option, "--case", shlex.quote(row.label)])


def _bisect(run: Run, row: Row, pair: Pairing, width: int) -> Iterator[str]:
    """The command that finds the commit, or why it would find none. A bisection runs on this machine."""
    base, head = gate_record.of(run).base, gate_record.of(run).head
    if not base.commit or not head.commit or base.python or run.manifest.nodes:
        return
    if pair.base and pair.base.status.failed:
        why = f"base fails in this case too ({pair.base.status.value}): the fault is older"
        yield from wrap(f"no bisect: {why}", width, indent=2)
    elif head.dirty and base.commit == head.commit:
        yield from wrap("no bisect: only the uncommitted changes of the working tree differ", width, indent=2)
    elif head.dirty:
        yield from wrap("no bisect: it compares commits, and the working tree has uncommitted changes", width, indent=2)
        yield f"uncommitted changes alone: {_gate_of_case(run, row, f'--base-ref {head.commit}')}"
    elif base.commit != head.commit:
        suites = [part for name in _suites(run) for part in ("--suite", name)]
        options = run_directory.problem_options(run.manifest)
        words = ["attnbench", "bisect", *suites, *options, "--case", row.label, base.commit, head.commit]
        yield f"bisect: {shlex.join(words)}"


def _suites(run: Run) -> Sequence[str]:
    return msgspec.convert(run.manifest.request, Request).suites
