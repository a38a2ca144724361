"""How far outputs are from float64: what `attnbench verify` prints, as a table for each arm or as JSON Lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from attnbench.report import accuracy
from attnbench.report.accuracy import OUTPUTS, WIDTH
from attnbench.report.table import wrap
from attnbench.result import Result, Status


def text(results: Sequence[Result], figures: bool = False) -> Iterator[str]:
    """Lines: for each arm its cases, the error of out, and of every output the error as a share of what it may be.

    `figures` adds max, mean and rms error of every output, and how many times those of the plain formula they are.
    """
    for arm in dict.fromkeys(result.arm.id for result in results):
        own = [result for result in results if result.arm.id == arm]
        if len(own) > 1 and len({(result.status, result.reason) for result in own}) == 1 and own[0].reason:
            said = f"{_named(own[0])}: {len(own)} {own[0].status.value}: {own[0].reason}"
            yield from wrap(said, WIDTH, indent=2)
            yield ""
            continue
        yield from _table(own)
        yield ""
        yield from accuracy.figures(own) if figures else ()
        yield from accuracy.growth(own)
        yield from accuracy.probes(own)
    yield "error: the largest of out; percentages: largest errors, of what they may be"
    yield tally(results)


def drawn(results: Sequence[Result], figures: bool = False) -> Iterator[str]:
    """Lines of many problems drawn at random: for each arm how many, the one nearest to its bound, and what failed."""
    for arm in dict.fromkeys(result.arm.id for result in results):
        own = [result for result in results if result.arm.id == arm]
        yield from wrap(f"{_named(own[0])}: {tally(own)}", WIDTH, indent=2)
        judged = [(_used(result), result) for result in own if result.status is Status.OK]
        if judged:
            share, nearest = max(judged, key=lambda pair: pair[0])
            yield from wrap(f"  nearest to its bound, at {share:.0%}: {accuracy.label(nearest)}", WIDTH, indent=4)
        yield ""
    wrong = [result for result in results if result.status.failed]
    if figures or wrong:
        yield from text(results if figures else wrong, figures)
    else:
        yield tally(results)


def _used(result: Result) -> float:
    """The largest error of an output as a share of what it may be; 0 where none was judged."""
    errors = result.facts.get("errors", {}).values()
    return max(
        (one["max_abs"] / one["budget"] for one in errors if one.get("max_abs") and one.get("budget")), default=0
    )


def tally(results: Sequence[Result]) -> str:
    """`156 cases: 150 ok, 6 unsupported.`"""
    counts = Counter(result.status.value for result in results)
    return f"{len(results)} cases: {', '.join(f'{count} {status}' for status, count in counts.most_common())}."


def record(result: Result) -> dict[str, Any]:
    """One line of `verify --json`."""
    return {
        "type": "verify",
        "case_id": result.case.id,
        "label": result.case.label,
        "arm": result.arm.name,
        "backend": result.arm.backend,
        "device": result.arm.device,
        "mode": result.case.mode.value,
        "status": result.status.value,
        "reason": result.reason,
        "verified_share": result.facts.get("verified_share"),
        "inputs": result.procedure.inputs,
        "errors": result.facts.get("errors", {}),
        "probes": result.facts.get("probes", {}),
    }


def summary(results: Sequence[Result], code: int) -> dict[str, Any]:
    """The last line of `verify --json`."""
    counts = Counter(result.status.value for result in results)
    return {"type": "summary", "cases": len(results), "status": dict(counts), "exit_code": code}


def _table(results: Sequence[Result]) -> Iterator[str]:
    shown = [name for name in OUTPUTS if any(name in result.facts.get("errors", {}) for result in results)]
    notes = list(dict.fromkeys(result.reason for result in results if result.status is not Status.OK))
    cells = [_cells(result, shown, notes) for result in results]
    labels = [accuracy.label(result) for result in results]
    width = min(max(map(len, labels)), WIDTH - 18 - 6 * len(shown))
    yield _named(results[0])
    yield "case".ljust(width) + "    error" + "".join(name.rjust(6) for name in shown)
    for label, (error, *shares, verdict) in zip(labels, cells, strict=True):
        first, *rest = wrap(label, width)
        yield (
            first.ljust(width) + error.rjust(9) + "".join(share.rjust(6) for share in shares) + f"  {verdict}"
        ).rstrip()
        yield from (f"  {line}" for line in rest)
    for number, note in enumerate(notes, start=1):
        yield from wrap(f"[{number}] {note}", WIDTH)


def _named(result: Result) -> str:
    env = "".join(f" {key}={value}" for key, value in result.arm.env)
    return f"{result.arm.name} on {result.arm.device}{env}"


def _cells(result: Result, shown: Sequence[str], notes: Sequence[str]) -> list[str]:
    """The error of out, the shares, and the verdict with the number of its note."""
    errors = result.facts.get("errors", {})
    verdict = "ok" if result.status is Status.OK else f"{result.status.value} [{notes.index(result.reason) + 1}]"
    if result.status is Status.OK and (share := result.facts.get("verified_share", 1.0)) < 1:
        verdict += f" ({share:.0%} of rows)"
    out = errors.get("out", {}).get("max_abs")
    return ["-" if out is None else f"{out:.1e}", *(_share(errors.get(name)) for name in shown), verdict]


def _share(error: dict[str, Any] | None) -> str:
    if not error or error.get("max_abs") is None or not error.get("budget"):
        return "-"
    share = error["max_abs"] / error["budget"]
    return f"{share:.0%}" if share < 10 else ">999%"
