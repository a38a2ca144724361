"""The support page: which cases ran, which did not, and why."""

from collections import Counter, defaultdict

from attnbench.records.result import Status
from attnbench.report import pivot
from attnbench.report.pages.page import Page, PageTable, ReportData

HEAD = ("backend", "device", "cases", "reason")


def page(data: ReportData) -> Page:
    """Outcomes of each backend by dtype and mode, and the reasons."""
    outcomes: defaultdict[tuple[str, str], defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    reasons: Counter[tuple[str, str, str]] = Counter()
    for row in data.rows:
        outcomes[row.arm_name, row.device][f"{row.dtype} {row.mode}"][row.status] += 1
        if row.status != Status.OK:
            reasons[row.arm_name, row.device, pivot.why(row)] += 1
    columns = list(dict.fromkeys(column for counts in outcomes.values() for column in counts))
    grid = [
        (*arm, *(", ".join(f"{n} {status}" for status, n in counts[column].most_common()) for column in columns))
        for arm, counts in outcomes.items()
    ]
    lines = [(arm, device, str(count), reason) for (arm, device, reason), count in reasons.items()]
    return Page(
        tables=(
            PageTable(heading="Cases by outcome", head=("backend", "device", *columns), rows=grid),
            PageTable(heading="Reasons", head=HEAD, rows=lines, numbers=(False, False, True, False)),
        )
    )
