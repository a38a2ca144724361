"""Why problems and cases have no time, in few words; of several reasons those that a user can act on."""

from collections import Counter
from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.records.result import Status
from attnbench.report import pivot, quantities

MAX_REASON = 60  # characters of a reason; the table of all cases has the whole
FAILED = {Status.INCORRECT: "wrong", Status.CRASHED: "crashed", Status.ERROR: "failed with an error"}
BUDGET = "budget spent"
NOT_COMPARED = "not compared"  # the times that there are share no rounds
NOT_HERE = (Status.UNAVAILABLE, Status.UNSUPPORTED)


def cut(row: Row) -> bool:
    """Whether the budget ended before the case."""
    return row.status is Status.SKIPPED and row.reason == "budget"


def reason(row: Row) -> str:
    """Why a case has no time, in few words."""
    if cut(row):
        return BUDGET
    if row.impossible:
        return "impossible time"
    return quantities.clipped(row.reason or pivot.why(row), MAX_REASON)


def why(rows: Sequence[Row], limit: int = 1) -> str:
    """`2 wrong`, or `not measured: budget spent`: why no row of a problem has a time.

    Failures come first, then the budget, then memory and timeouts, and last the backends that cannot run here: only the
    first of these is given, at most `limit` reasons of it.
    """
    if any(row.place for row in rows):
        return NOT_COMPARED
    if failures := _failures(rows):
        return failures
    first = min(map(_rank, rows))
    return f"not measured: {_most_frequent([row for row in rows if _rank(row) == first], limit)}"


def every(rows: Sequence[Row], limit: int) -> str:
    """All reasons in that order, at most `limit` beside failures."""
    if any(row.place for row in rows):
        return NOT_COMPARED
    others = sorted((row for row in rows if row.status not in FAILED), key=_rank)
    texts = [_failures(rows), *([f"not measured: {_most_frequent(others, limit)}"] if others else ())]
    return "; ".join(filter(None, texts))


def _rank(row: Row) -> int:
    return 0 if cut(row) else 2 if row.status in NOT_HERE else 1


def _failures(rows: Sequence[Row]) -> str:
    """`2 wrong, 1 crashed`; of the only backend `wrong`."""
    counts = Counter(row.status for row in rows)
    shown = [f"{counts[status]} {word}" if len(rows) > 1 else word for status, word in FAILED.items() if counts[status]]
    return ", ".join(shown)


def _most_frequent(rows: Sequence[Row], limit: int) -> str:
    """Reasons by rank, then by frequency."""
    counts = Counter((_rank(row), reason(row)) for row in rows)
    texts = [text for (_, text), _ in sorted(counts.items(), key=lambda item: (item[0][0], -item[1]))]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return "; ".join(texts[:limit]) + more
