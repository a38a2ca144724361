"""The sections of a report: what each shows, in a sentence, charts and tables. Rendering is left to the formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from attnbench.report.answer import Answer
from attnbench.report.pages import (
    accuracy,
    answer,
    applications,
    cases,
    comparison,
    fleet,
    machine,
    memory,
    scaling,
    speed,
    traffic,
    trust,
)
from attnbench.report.pages.page import Page, ReportData

PAGES: dict[str, tuple[str, Callable[[ReportData], Page]]] = {  # by name: the title, and the function
    "traffic": ("Your traffic", traffic.page),
    "speed": ("Speed", speed.page),
    "memory": ("Memory", memory.page),
    "accuracy": ("Accuracy", accuracy.page),
    "trust": ("Trust", trust.page),
    "comparison": ("Comparison", lambda data: comparison.page(data, comparison.compare(data))),
    "fleet": ("Your machines", fleet.page),
    "applications": ("Applications", applications.page),
    "scaling": ("Scaling", scaling.page),
    "machine": ("Machine and method", machine.page),
    "cases": ("All cases", cases.page),
}
NAMES = ("answer", *PAGES)


def contents(data: ReportData) -> tuple[Answer, list[Page]]:
    """The first screen, and the sections in order; the comparison comes first if there are several runs.

    A section without data has the command that fills it, or nothing.
    """
    compared = comparison.compare(data)
    by_name = {
        name: comparison.page(data, compared) if name == "comparison" else page(data)
        for name, (_, page) in PAGES.items()
    }
    names = list(PAGES)
    if len(data.runs) > 1:
        names.sort(key=lambda name: name != "comparison")
    sections = [replace(by_name[name], name=name, title=PAGES[name][0]) for name in names]
    return answer.answer(data, compared.sentences, compared.cautions), [*sections, *_suggestions(data)]


def _suggestions(data: ReportData) -> Iterator[Page]:
    """What a section of its own does not show, without data."""
    if not any(row.roofline_share is not None for row in data.rows):
        finding = "how near times are to the limit of the hardware"
        yield Page(name="roofline", title="Roofline", finding=finding, hint="`attnbench calibrate`")
    if not any(detail.kernels for detail in data.details):
        yield Page(name="profile", title="Profile", finding="where the time goes", hint="`attnbench run --profile`")
