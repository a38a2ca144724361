"""The scaling page."""

from attnbench.report.charts import local_exponents
from attnbench.report.pages.page import Page, PageTable, ReportData, drawn
from attnbench.studies import scaling as study


def page(data: ReportData) -> Page:
    """Exponents of time and memory, and the claims that they confirm or refute."""
    laws = list(study.laws(data.rows))
    exponents = PageTable(
        heading="Exponents",
        head=("quantity", "backend", "at", "axis", "predicted", "measured (95 %)", "local slopes", "verdict"),
        rows=[
            (
                law.quantity, law.arm, law.problem, law.axis, f"{law.predicted:g}", study.interval(law.measured),
                " ".join(f"{slope:.2f}" for slope in law.slopes),
                law.verdict.value + (f": {law.why}" if law.why else ""),
            )
            for law in laws
        ],
        numbers=(False, False, False, False, True, True, False, False),
    )  # fmt: skip
    claims = PageTable(
        heading="Claims",
        head=("id", "claim", "predicts", "measured", "verdict"),
        rows=[
            (claim.id, claim.says, claim.predicts, claim.measured, claim.verdict.value)
            for claim in (study.claims(laws) if laws else ())
        ],
    )
    return Page(
        charts=drawn(slopes=local_exponents.chart(laws, data.caption)),
        tables=(exponents, claims),
        hint="attnbench scaling measures exponents",
    )
