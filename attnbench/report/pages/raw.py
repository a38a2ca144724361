"""The last page: every case, and the command that measures it again."""

from attnbench import units
from attnbench.report import pivot
from attnbench.report.pages.page import Page, PageTable, ReportData
from attnbench.report.summary import repeat_command


def page(data: ReportData) -> Page:
    """All cases and the commands of the runs."""
    cases = PageTable(
        heading="Every case",
        head=("id", "case", "device", "status", "time or reason", "speed-up", "repeat it"),
        rows=[
            (
                row.case_id, row.name, row.device, row.status,
                units.seconds(row.time_s) if row.time_s is not None else pivot.why(row), pivot.factor(row.speedup),
                repeat_command(row),
            )
            for row in data.rows
        ],
        numbers=(False, False, False, False, True, True, False),
    )  # fmt: skip
    commands = [(run.path.name, run.manifest.command) for run in data.runs]
    return Page(tables=(cases, PageTable(heading="Commands", head=("run", "command"), rows=commands)))
