"""The profile page."""

from attnbench import units
from attnbench.report.pages.page import Page, PageTable, ReportData, metrics_table

ONCE = ("import_s", "first_call_s", "compile_s", "mask_build_s")


def page(data: ReportData) -> Page:
    """The kernels of each profiled case, and the costs that arise once."""
    kernels = PageTable(
        heading="Where the time goes",
        head=("case", "kernel or operator", "calls", "time", "share"),
        rows=[
            (detail.label, row["name"], str(row["calls"]), units.seconds(row["self_s"]), f"{row['share']:.1%}")
            for detail in data.details
            for row in detail.kernels
        ],
        numbers=(False, False, True, True, True),
    )
    files = [(detail.label, detail.trace) for detail in data.details if detail.trace]
    traces = PageTable(heading="Traces", head=("case", "file"), rows=files)
    return Page(
        tables=(kernels, traces, metrics_table("Once", data.rows, ONCE)) if kernels.rows else (),
        hint="attnbench run --profile looks at each case",
    )
