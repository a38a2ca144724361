"""Every failed case with its trace and the end of what its worker printed; identical failures are one group."""

from collections.abc import Iterator, Sequence

from attnbench.analysis import common_axes
from attnbench.analysis.rows import one_line
from attnbench.records.arm import distinct_names
from attnbench.records.result import Result
from attnbench.report.reasons import different_words, without_numbers
from attnbench.report.terminal.text_layout import terminal_width, wrap
from attnbench.report.terminal.verification import arm_name, label

NONE = "no case failed"
DETAILS = {"trace": "trace", "log": "the worker's last lines"}  # facts of a failed case


def text(results: Sequence[Result]) -> Iterator[str]:
    """The groups of failures, each with its cases, and the trace and log of the first."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if is_listed(result):
            key = result.arm.id, result.status.value, without_numbers(result.reason)
            groups.setdefault(key, []).append(result)
    names = distinct_names(result.arm for result in results)
    for (arm, _, _), failed in groups.items():
        beside = [result for result in results if result.arm.id == arm]
        shared = common_axes.sentence(beside) if _all_failures(failed, beside) else ""
        yield from _group(failed, arm_name(failed[0], names), shared)
    if not groups:
        yield NONE


def is_listed(result: Result) -> bool:
    """Whether it failed, or has the trace of an exception."""
    return result.status.failed or "trace" in result.facts


def _all_failures(failed: Sequence[Result], beside: Sequence[Result]) -> bool:
    return len(failed) == sum(result.status.failed for result in beside)


def _group(failed: Sequence[Result], name: str, shared: str) -> Iterator[str]:
    first, width = failed[0], terminal_width()
    constant = one_line(first.reason)
    cases = dict.fromkeys(
        label(result) + (f": {text}" if (text := different_words(one_line(result.reason), constant)) else "")
        for result in failed
    )
    heading = f"{name}: {len(cases)} {first.status.value}: {constant}"
    yield from wrap(heading, width, indent=2)
    for case in cases:
        yield from (f"  {line}" for line in wrap(case, width - 2, indent=2))
    if shared:
        yield from (f"  {line}" for line in wrap(shared, width - 2, indent=2))
    yield from (f"  {line}" for line in details(failed))
    yield ""


def details(failed: Sequence[Result]) -> Iterator[str]:
    """The first trace and log of these results."""
    for name, title in DETAILS.items():
        detail = next((str(result.facts[name]) for result in failed if name in result.facts), "")
        if detail:
            yield f"{title}:"
            yield from (f"  {_printable(line)}" for line in detail.splitlines())


def _printable(line: str) -> str:
    """A line of a kernel without control characters, which a terminal would interpret."""
    return "".join(character for character in line.expandtabs(4) if character.isprintable())
