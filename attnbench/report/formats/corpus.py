"""The silent-bug corpus: rates by rule, and the kernels that a rule gets wrong; as text or Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from attnbench.report.formats import markdown
from attnbench.report.terminal.text_layout import aligned
from attnbench.studies.corpus.registry import listing
from attnbench.studies.corpus.study import OURS, RuleRates, RuleVerdict, rates

HEAD = ("wrong kernels found", "of those chosen without regard to attnbench", "false alarms", "cannot judge")
SHORT = ("found", "any", "alarms", "unjudged")  # for a terminal
MARKS = {True: "wrong", False: "right", None: "-"}


def text(verdicts: Sequence[RuleVerdict], width: int) -> Iterator[str]:
    """The rates, and what attnbench's own rule gets wrong."""
    table = [(each.rule, _cells(each)) for each in rates(verdicts)]
    for lines in aligned("rule", SHORT, table, width):
        yield from lines
    yield ""
    yield "found: wrong kernels; any: those chosen without regard to attnbench's rule"
    yield "alarms: right kernels found wrong; unjudged: kernels that the rule cannot judge"
    for verdict in verdicts:
        if verdict.rule == OURS and not verdict.good:
            reason = verdict.reason or "found right"
            yield f"{OURS} errs: {verdict.kernel} ({listing()[verdict.kernel]['text']}): {reason}"


def tables(verdicts: Sequence[RuleVerdict]) -> str:
    """Two tables: the rates, and a row for each kernel that any rule gets wrong."""
    counted = rates(verdicts)
    head = markdown.table(("rule", *HEAD), [(each.rule, *_cells(each)) for each in counted], [False] + [True] * 4)
    by_kernel: dict[str, dict[str, RuleVerdict]] = {}
    for verdict in verdicts:
        by_kernel.setdefault(verdict.kernel, {})[verdict.rule] = verdict
    names = [each.rule for each in counted]
    rows = [
        (kernel, listing()[kernel]["text"], *(MARKS[group[name].found_wrong] for name in names))
        for kernel, group in by_kernel.items()
        if not all(verdict.good for verdict in group.values())
    ]
    of_wrong, of_right = (
        markdown.table(
            ("kernel", column, *names), [row for row in rows if bool(by_kernel[row[0]][names[0]].kind) is wrong],
            [False] * (2 + len(names)),
        )
        for column, wrong in (("fault", True), ("looks", False))
    )  # fmt: skip
    return (
        f"{head}\nWrong kernels that a rule misses:\n\n{of_wrong}\nRight kernels that a rule finds wrong:\n\n{of_right}"
    )


def _cells(counts: RuleRates) -> tuple[str, ...]:
    return (
        f"{counts.detected} of {counts.wrong}",
        f"{counts.found_any} of {counts.wrong_any}",
        f"{counts.false_alarms} of {counts.right}",
        str(counts.unjudged),
    )


def entries(entries: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """A line for each kernel of the listing."""
    for entry in entries:
        kind = f"wrong {entry['kind']}" if "kind" in entry else "right"
        yield f"{entry['name']}  {kind}: {entry['text']}{'  ' + entry['source'] if 'source' in entry else ''}"
