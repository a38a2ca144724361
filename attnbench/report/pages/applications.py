"""The page of suites that hold a model's shapes."""

from attnbench.analysis.rows import leaders
from attnbench.report.pages.page import Page, ReportData, metrics_table

NO_MODEL = ("", "quick", "custom", "scaling", "ci")  # suites that are about no application
COLUMNS = ("tokens_per_s", "bytes_per_s", "flop_per_s", "time_s", "total_bytes")


def page(data: ReportData) -> Page:
    """The fastest backends of each model's shapes, and decoding in tokens and bytes a second."""
    models = []
    for run, rows in zip(data.runs, data.by_run, strict=True):
        if run.manifest.suite not in NO_MODEL:
            best = [row for group in leaders(rows) for row in group]
            models.append(metrics_table(f"{run.manifest.suite}: the fastest of each shape", best, COLUMNS))
    decode = [row for row in data.rows if row.seq_q == 1 and row.time_s is not None]
    decoding = metrics_table("Decoding: one new token a sequence", decode, ("tokens_per_s", "bytes_per_s", "time_s"))
    return Page(
        text=("Attention alone: tokens a second are of one layer's attention, not of a model.",),
        tables=(*models, decoding),
        hint="attnbench run llama3-8b measures a model's shapes",
    )
