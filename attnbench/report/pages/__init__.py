"""What stands on each page of a report: words, charts and tables, from the rows of runs. Nothing is drawn here.

A page without data is left out, and the summary says which command would fill it.
"""

from __future__ import annotations

from collections.abc import Callable

from attnbench.report.material import Material, Page
from attnbench.report.pages import ends, measured, studied

PAGES: dict[str, Callable[[Material], Page]] = {
    "latency": measured.latency,
    "throughput": measured.throughput,
    "speedup": measured.speedup,
    "memory": measured.memory,
    "roofline": measured.roofline,
    "scaling": studied.scaling,
    "accuracy": measured.accuracy,
    "support": studied.support,
    "profile": studied.profile,
    "applications": measured.applications,
    "quality": studied.quality,
    "history": studied.history,
    "raw": ends.raw,
}
NAMES = ("summary", *PAGES)


def pages(found: Material) -> list[Page]:
    """All that have something to show, the summary first."""
    every = [make(found) for make in PAGES.values()]
    kept = [page for page in every if not page.empty]
    return [ends.summary(found, [page for page in every if page.empty]), *kept]
