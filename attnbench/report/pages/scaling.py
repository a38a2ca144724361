"""The scaling section: exponents of time and memory; of the suites that are about them also the claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from attnbench.report.charts import local_exponents
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, blocks
from attnbench.report.quantities import listed
from attnbench.studies import scaling as study
from attnbench.studies.scaling import ClaimVerdict, Law
from attnbench.units import counted

SUITES = ("scaling", "claims")  # that are about exponents; other runs need MIN_LENGTHS values of the axis
MIN_LENGTHS = 6
MAX_POINTS = 400  # of the chart; the table has every exponent
NAMES = {"time": "time", "peak": "peak memory"}


def page(data: ReportData) -> Page:
    """Exponents of time and memory, and the claims that they confirm or refute."""
    about = any(run.manifest.suite.startswith(SUITES) for run in data.runs)
    laws = [law for law in data.laws if about or len(law.points) >= MIN_LENGTHS]
    if not laws:
        return Page(finding="how time and memory grow", hint="`attnbench scaling`")
    return Page(
        finding=finding(laws) if about else growth(laws),
        blocks=blocks(local_exponents.figure(_drawn(laws)), _exponents(laws), _claims(laws) if about else None),
    )


def _drawn(laws: Sequence[Law]) -> list[Law]:
    """The first laws, as far as the chart has room."""
    totals = accumulate(len(law.points) for law in laws)
    return [law for law, total in zip(laws, totals, strict=True) if total <= MAX_POINTS] or list(laws[:1])


def finding(laws: Sequence[Law]) -> str:
    """`4 of 6 exponents are as predicted, 1 is not: time of naive, 1.6 where 2 is predicted`."""
    verdicts = Counter(law.verdict for law in laws)
    agree, total = verdicts[ClaimVerdict.CONFIRMED], counted(len(laws), "exponent")
    refuted = [law for law in laws if law.verdict is ClaimVerdict.REFUTED]
    text = f"{agree} of {total} {'is' if agree == 1 else 'are'} as predicted"
    if refuted:
        described = [
            f"{NAMES.get(law.quantity, law.quantity)} of {law.arm} along {law.axis}, {law.measured.value:.1f} where "
            f"{law.predicted:g} is predicted"
            for law in refuted
        ]
        return f"{text}, {len(refuted)} {'is' if len(refuted) == 1 else 'are'} not: {listed(described, limit=2)}"
    undecided = len(laws) - agree
    return f"{text}, {undecided} {'is' if undecided == 1 else 'are'} undecided" if undecided else text


def growth(laws: Sequence[Law]) -> str:
    """`Time along seq grows with an exponent of 1.1 to 2.0`: of runs that are not about the prediction."""
    axis, _ = Counter(law.axis for law in laws).most_common(1)[0]
    shown = [law for law in laws if law.axis == axis and law.quantity == "time"]
    word = "Time" if shown else "Peak memory"
    values = [law.measured.value for law in shown or laws if law.axis == axis]
    ends = dict.fromkeys(f"{value:.1f}" for value in (min(values), max(values)))
    return f"{word} along {axis} grows with an exponent of {' to '.join(ends)}"


def _exponents(laws: Sequence[Law]) -> PageTable:
    return PageTable(
        heading="Exponents",
        head=("quantity", "backend", "along", "predicted", "measured (95 %)", "local slopes", "verdict", "at"),
        rows=[
            (
                NAMES.get(law.quantity, law.quantity), PageCell(text=law.arm, arm=law.arm), law.axis,
                f"{law.predicted:g}",
                study.interval(law.measured), " ".join(f"{slope:.2f}" for slope in law.slopes),
                law.verdict.value + (f": {law.why}" if law.why else ""), law.problem,
            )
            for law in laws
        ],
        numbers=(False, False, False, True, True, False, False, False),
    )  # fmt: skip


def _claims(laws: Sequence[Law]) -> PageTable:
    return PageTable(
        heading="Claims",
        head=("id", "claim", "predicts", "measured", "verdict"),
        rows=[
            (claim.id, claim.says, claim.predicts, claim.measured, claim.verdict.value) for claim in study.claims(laws)
        ],
    )
