"""The finding of a run in one sentence, the counts of its cases, and the command that measures one again."""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence

from attnbench import suite, units
from attnbench.analysis import stats
from attnbench.analysis.preferences import preferences
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice
from attnbench.analysis.rows import Place, Row, failing, leaders, phase, problem_of
from attnbench.engine.case_command import case_command
from attnbench.records.result import Status
from attnbench.report.pivot import factor, references
from attnbench.report.reasons import shortened
from attnbench.report.reasons import without_numbers as without_numbers

MAX_REASONS = 3
_IN_PARENTHESES = re.compile(r" \([^()]*\)")
PACKED_SHARE = 0.05  # of the time of a call
MAX_OTHERS = 2  # backends that are fastest less often, in one finding
FAILED = {
    Status.INCORRECT: "is wrong",
    Status.CRASHED: "crashed",
    Status.ERROR: "failed with an error",
    Status.TIMEOUT: "did not answer in time",
}


def sentence(rows: Sequence[Row], left: str = "") -> str:
    """`sdpa:flash is fastest in 8 of 8 problems, 5.9x naive by geomean.`; a tie is not a win.

    Phases, devices, and runs are apart where there are several: no mean is over all of them. `left`: `Run.left`.
    """
    text = _sentence(rows)
    return f"{text.removesuffix('.')}; {left}." if left else text


def _sentence(rows: Sequence[Row]) -> str:
    ranked = [row for row in rows if row.place]
    if not ranked:
        return "nothing was measured."
    if all(row.place is Place.ALONE for row in ranked):
        part = _of_all(_problems(ranked), rows)
        return f"one backend was measured for each problem{part}: nothing to compare."
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((phase(row), row.device, row.run), []).append(row)
    phases, devices, runs = (len(set(values)) > 1 for values in zip(*groups, strict=True))
    findings = (
        _finding(group, failing(rows), kind if phases else "", f" on {device}" * devices + f" in {run}" * runs)
        for (kind, device, run), group in groups.items()
    )
    return f"{'; '.join(findings)}."


def _problems(rows: Iterable[Row]) -> int:
    return len({(row.problem, row.device, row.run) for row in rows})


def _of_all(compared: int, rows: Sequence[Row]) -> str:
    """` measured (of 9)`, which follows the number of problems that were compared, where others have no time."""
    every, timed = _problems(rows), _problems(row for row in rows if row.place)
    if timed == every:
        return ""
    return f" {'compared' if compared < timed else 'measured'} (of {every:,})"


def _finding(rows: Sequence[Row], failed: Container[str], kind: str, where: str) -> str:
    """The backend that is fastest most often in one group, those that are tied in all of it, or neither.

    `kind` and `where` distinguish the problems of the group from those of others.
    """
    contested = _problems(row for row in rows if row.place and row.place is not Place.ALONE)
    noun = "problem" if contested == 1 else "problems"
    problems = f"{noun} of {kind}{where}" if " " in kind else f"{kind} {noun}{where}".lstrip()
    if not contested:
        if any(row.place for row in rows):
            return f"nothing to compare among {problems}"
        return f"no {problems} measured (of {_problems(rows):,})"
    compared = f"{contested} {problems}{_of_all(contested, rows)}"
    wins = Counter(row.arm_name for row in rows if row.place is Place.FASTEST).most_common()
    if not wins:
        tied = {frozenset(row.arm_name for row in leading) for leading in leaders(rows)}
        if len(tied) > 1:
            return f"no backend is significantly fastest in any of {compared}"
        tied_rows = (row.arm_name for row in rows if row.place is Place.TIED)
        names = sorted(dict.fromkeys(tied_rows), key=lambda name: name in failed)
        return f"{' or '.join(names)}: no difference found in {compared}"
    (name, count), *others = wins
    reference = references(rows)
    mean = stats.geometric_mean([row.speedup for row in rows if row.arm_name == name and row.speedup is not None])
    speedup = f", {factor(mean.value)} {reference} by geomean" if mean and reference and reference != name else ""
    rest = "".join(f"; {other} in {number}" for other, number in others[:MAX_OTHERS])
    return f"{name} is fastest in {count} of {compared}{speedup}{rest}"


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """The number of cases by status, in the order of Status, without zeros."""
    by_status = Counter(row.status for row in rows)
    return {status.value: by_status[status] for status in Status if by_status[status]}


def tally(rows: Sequence[Row], impossible: int = 0) -> str:
    """`40 cases: 36 ok (2 noisy), 4 skipped (budget).`; `failure_lines` has the reasons of failures."""
    parts = []
    for status, count in counts(rows).items():
        if status == Status.OK:
            noisy = sum(bool(row.noisy) for row in rows)
            detail = f" ({noisy} noisy)" if noisy else ""
        else:  # the reasons of failures are in their own lines
            detail = "" if status in FAILED else _reasons([row.reason for row in rows if row.status == status])
        parts.append(f"{count} {status}{detail}")
    if impossible:
        parts.append(f"{impossible} impossible")
    return f"{units.counted(len(rows) + impossible, 'case')}: {', '.join(parts)}."


def failure_lines(rows: Sequence[Row]) -> list[str]:
    """One phrase for each backend and kind of failure: `my.py:f is wrong in 10 cases (error 5.2, allowed 1.5e-5)`.

    Wrong outputs come first. Wrong outputs of a backend are one kind; other failures are by their reason.
    """
    several = len({row.device for row in rows}) > 1
    kinds: dict[tuple[Status, str], dict[str, list[Row]]] = {}
    for row in rows:
        if row.status in FAILED:
            place = (f"@{row.device}" if several else "") + (f" ({row.run})" if row.run else "")
            kind = "" if row.status is Status.INCORRECT else without_numbers(row.reason)
            kinds.setdefault((row.status, f"{row.arm_name}{place}"), {}).setdefault(kind, []).append(row)
    return [
        line
        for status in FAILED
        for (failed, name), by_reason in kinds.items()
        if failed is status
        for line in _failures(name, status, sorted(by_reason.values(), key=len, reverse=True))
    ]


def _failures(name: str, status: Status, kinds: Sequence[Sequence[Row]]) -> Iterator[str]:
    """One phrase for each of the most frequent kinds of one status of a backend, and one for the others."""
    for rows in kinds[:MAX_REASONS]:
        cases = f"{name} {FAILED[status]} in {units.counted(len(rows), 'case')}"
        error = _error(rows)
        yield f"{cases} ({error}){_colon(_hint(rows))}" if error else f"{cases}{_colon(rows[0].reason)}"
    if rest := sum(map(len, kinds[MAX_REASONS:])):
        yield f"{name} {FAILED[status]} in {_rest(rest, len(kinds))}"


def _rest(cases: int, kinds: int) -> str:
    return f"{units.counted(cases, 'more case')}, for {units.counted(kinds - MAX_REASONS, 'other reason')}"


def _hint(rows: Sequence[Row]) -> str:
    """What the reasons of all these rows say after the error; empty if they differ."""
    hints = {row.reason.partition("; ")[2] for row in rows}
    return hints.pop() if len(hints) == 1 else ""


def _error(rows: Sequence[Row]) -> str:
    """The error of the case that exceeds its limit by most; empty if another rule than that limit is broken."""
    ratios = {row.max_abs_err / row.err_allowed: row for row in rows if row.max_abs_err is not None and row.err_allowed}
    worst = max(ratios, default=0.0)
    if worst <= 1:
        return ""
    row = ratios[worst]
    return f"error {units.figure(row.max_abs_err)}, allowed {units.figure(row.err_allowed)}"


def broken_lines(broken: Iterable[tuple[str, str]], whole: bool = False) -> list[str]:
    """`naive is broken in 2 cases: ...`: phrases for each name, the most frequent kinds of reasons first.

    Reasons that differ in numbers alone are one kind. With `whole` all kinds are there, and no reason is cut.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for name, reason in broken:
        kinds.setdefault(name, {}).setdefault(without_numbers(reason), []).append(reason)
    return [
        line
        for name, by_kind in kinds.items()
        for line in _broken(name, sorted(by_kind.values(), key=len, reverse=True), whole)
    ]


def _broken(name: str, kinds: Sequence[Sequence[str]], whole: bool) -> Iterator[str]:
    for reasons in kinds if whole else kinds[:MAX_REASONS]:
        reason = f": {reasons[0]}" if whole and reasons[0] else _colon(reasons[0])
        yield f"{name} is broken in {units.counted(len(reasons), 'case')}{reason}"
    if not whole and (rest := sum(map(len, kinds[MAX_REASONS:]))):
        yield f"{name} is broken in {_rest(rest, len(kinds))}"


def _colon(reason: str) -> str:
    """The reason, shortened; what it says after its first part, as that a kernel may cache, is not cut off."""
    first, semicolon, hint = reason.partition("; ")
    return f": {shortened(first)}{semicolon}{shortened(hint)}" if reason else ""


def notes(rows: Sequence[Row], ceilings: CeilingsByDevice = NO_CEILINGS) -> list[str]:
    """Advice that follows from the run: dtypes and devices that are much slower than others here."""
    return [*_packed(rows), *(preference.text for preference in preferences(rows, ceilings))]


def time_with_packing(row: Row) -> float | None:
    """The seconds of a call that writes the whole cache; None where that is no other time."""
    if not (row.time_s and row.pack_s and row.pack_s > PACKED_SHARE * row.time_s):
        return None
    return row.time_s + row.pack_s


def _packed(rows: Sequence[Row]) -> Iterator[str]:
    """The time of a call if it wrote the whole cache, where that is another one: docs/backends.md has the rule."""
    of_arms: dict[str, list[str]] = {}
    for row in rows:
        if (with_packing := time_with_packing(row)) is None:
            continue
        times = f"{units.seconds(row.time_s)} -> {units.seconds(with_packing)}"
        of_arms.setdefault(row.arm_name, []).append(f"{times} ({row.dtype}, {row.seq_kv} keys)")
    if of_arms:
        arms = "; ".join(f"{name} {', '.join(times[:MAX_OTHERS])}" for name, times in of_arms.items())
        yield f"the cache was written before the call; with all keys written in it: {arms}"


def text(
    rows: Sequence[Row], impossible: int = 0, ceilings: CeilingsByDevice = NO_CEILINGS, left: str = ""
) -> list[str]:
    """Failures, then `findings`."""
    return [*failure_lines(rows), *findings(rows, impossible, ceilings, left)]


def findings(
    rows: Sequence[Row], impossible: int = 0, ceilings: CeilingsByDevice = NO_CEILINGS, left: str = ""
) -> list[str]:
    """The finding, advice, and the counts: each one or several sentences."""
    return [sentence(rows, left), *notes(rows, ceilings), tally(rows, impossible)]


def record(
    rows: Sequence[Row], planned: int, path: str, code: int, ceilings: CeilingsByDevice = NO_CEILINGS, left: str = ""
) -> dict[str, object]:
    """The last line of `--json`."""
    noisy = sum(bool(row.noisy) for row in rows)
    figures = {"planned": planned, "cases": len(rows), "status": counts(rows), "noisy": noisy}
    texts = {"failures": failure_lines(rows), "verdict": sentence(rows, left), "notes": notes(rows, ceilings)}
    return {"type": "summary", **figures, **texts, "path": path or None, "exit_code": int(code)}


def repeat_command(row: Row, pythons: Iterable[str], command: str = "run") -> str:
    """`attnbench run --batch 1 ...`, or another command that takes one case; `pythons`: NAME=PYTHON of the run."""
    return case_command(command, suite.options_of(problem_of(row), row.mode), [row.backend], row.device, pythons)


def _reasons(reasons: Sequence[str]) -> str:
    """The most frequent reasons, with counts if there are several; reasons that differ in numbers alone are one.

    What a reason says in parentheses is left out: these are in parentheses themselves.
    """
    similar: dict[str, list[str]] = {}
    for reason in (_IN_PARENTHESES.sub("", reason) for reason in reasons):
        similar.setdefault(without_numbers(reason), []).append(shortened(reason))
    kinds = sorted((kind for kind in similar.values() if kind[0]), key=len, reverse=True)
    if len(kinds) < 2:
        return f" ({kinds[0][0]})" if kinds else ""
    shown = [f"{len(kind)} {kind[0]}" for kind in kinds[:MAX_REASONS]]
    if others := kinds[MAX_REASONS:]:
        shown.append(f"{sum(map(len, others))} for {units.counted(len(others), 'other reason')}")
    return f" ({'; '.join(shown)})"
