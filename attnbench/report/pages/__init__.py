"""The pages of a report: text, charts and tables from the rows of runs. Rendering is left to the formats.

A page without data is left out, and the summary names the command that would fill it.
"""

from collections.abc import Callable

from msgspec.structs import replace

from attnbench.report.pages import (
    accuracy,
    applications,
    comparison,
    latency,
    memory,
    profile,
    quality,
    raw,
    roofline,
    scaling,
    speedup,
    summary,
    support,
    throughput,
)
from attnbench.report.pages.page import Page, ReportData

PAGES: dict[str, tuple[str, Callable[[ReportData], Page]]] = {  # by name: the title, and the function
    "latency": ("Latency", latency.page),
    "throughput": ("Throughput", throughput.page),
    "speedup": ("Speed-up", speedup.page),
    "memory": ("Memory", memory.page),
    "roofline": ("Roofline", roofline.page),
    "scaling": ("Scaling", scaling.page),
    "accuracy": ("Accuracy", accuracy.page),
    "support": ("Support", support.page),
    "profile": ("Profile", profile.page),
    "applications": ("Applications", applications.page),
    "quality": ("Data quality", quality.page),
    "history": ("Comparison", comparison.page),
    "raw": ("Raw data", raw.page),
}
NAMES = ("summary", *PAGES)


def pages(data: ReportData) -> list[Page]:
    """The summary, then every page that has something to show."""
    others = [replace(page(data), name=name, title=title) for name, (title, page) in PAGES.items()]
    first = summary.page(data, [page for page in others if page.empty])
    return [replace(first, name="summary", title="Summary"), *(page for page in others if not page.empty)]
