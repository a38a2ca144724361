"""What a run says in one sentence, and its counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from attnbench import stats
from attnbench.frame import Place, Row
from attnbench.report.pivot import factor, references
from attnbench.result import Status

REASONS_MOST = 3
REASON_MOST = 100  # characters; footnotes and reports give it whole


def sentence(rows: Sequence[Row]) -> str:
    """`sdpa:flash is fastest in 8 of 8 problems, 5.9x naive by geomean.`; a tie counts as no win."""
    measured = [row for row in rows if row["place"]]
    if not measured:
        return "nothing was measured."
    rivals = [row for row in measured if Place(row["place"]) is not Place.ALONE]
    contested = {(row["problem"], row["device"], row.get("run")) for row in rivals}
    if not contested:
        return "one backend was measured for each problem: nothing to compare."
    wins = Counter(row["arm_name"] for row in measured if Place(row["place"]) is Place.FASTEST)
    if not wins:
        return f"no backend is fastest beyond doubt in any of {_count(len(contested), 'problem')}."
    name, count = wins.most_common(1)[0]
    against = references(rows)
    speedups = [row["speedup"] for row in measured if row["arm_name"] == name and row["speedup"] is not None]
    mean = stats.geometric_mean(speedups)
    beside = f", {factor(mean.value)} {against} by geomean" if mean and against and against != name else ""
    return f"{name} is fastest in {count} of {_count(len(contested), 'problem')}{beside}."


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many cases ended how, in the order of Status; none that is zero."""
    found = Counter(str(row["status"]) for row in rows)
    return {status.value: found[status.value] for status in Status if found[status.value]}


def tally(rows: Sequence[Row], impossible: int = 0) -> str:
    """`40 cases: 36 ok (2 noisy), 4 skipped: budget.`"""
    parts = []
    for status, count in counts(rows).items():
        text = f"{count} {status}"
        if status == Status.OK:
            noisy = sum(bool(row["noisy"]) for row in rows)
            text += f" ({noisy} noisy)" if noisy else ""
        else:
            text += _reasons([str(row["reason"]) for row in rows if row["status"] == status])
        parts.append(text)
    if impossible:
        parts.append(f"{impossible} impossible")
    return f"{_count(len(rows) + impossible, 'case')}: {', '.join(parts)}."


def record(rows: Sequence[Row], planned: int, path: str, code: int) -> dict[str, Any]:
    """The last line of `--json`."""
    noisy = sum(bool(row["noisy"]) for row in rows)
    return {
        "type": "summary",
        "planned": planned,
        "cases": len(rows),
        "status": counts(rows),
        "noisy": noisy,
        "verdict": sentence(rows),
        "path": path or None,
        "exit_code": int(code),
    }


def _reasons(given: Sequence[str]) -> str:
    """The most frequent reasons, counted where there are several; those that differ in numbers alone are one."""
    alike: dict[str, list[str]] = {}
    for reason in given:
        alike.setdefault(re.sub(r"\d+(\.\d+)?", "#", reason), []).append(reason[:REASON_MOST])
    kinds = sorted((kind for kind in alike.values() if kind[0]), key=lambda kind: -len(kind))
    if not kinds:
        return ""
    if len(kinds) == 1:
        return f" ({kinds[0][0]})"
    shown = [f"{len(kind)} {kind[0]}" for kind in kinds[:REASONS_MOST]]
    rest = len(kinds) - len(shown)
    return f" ({'; '.join(shown)}{f'; {rest} more' if rest else ''})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
