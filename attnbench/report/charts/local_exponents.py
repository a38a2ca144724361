"""Local exponents of time and memory, beside the predicted ones."""

from collections import Counter
from collections.abc import Sequence

from attnbench import units
from attnbench.report.charts import series
from attnbench.report.charts.figure import Figure
from attnbench.studies.scaling import Law

MAX_LAWS = 40  # of one quantity
PANELS = {"time": "time of a call", "peak": "peak memory"}


def figure(laws: Sequence[Law]) -> Figure | None:
    """The exponents between neighbouring values of the axis that most laws are about; a panel for each quantity."""
    if not any(law.slopes for law in laws):
        return None
    (axis, _), *_ = Counter(law.axis for law in laws).most_common()
    laws = [law for law in laws if law.axis == axis and law.slopes]
    steps = {_step(left, right): left * right for law in laws for (left, _), (right, _) in _neighbours(law)}
    names = sorted(steps, key=lambda step: steps[step])
    by_quantity: dict[str, list[Law]] = {}
    for law in laws:
        by_quantity.setdefault(law.quantity, []).append(law)
    groups = [
        series.SeriesPanel(
            heading=PANELS.get(quantity, quantity), rules=tuple(dict.fromkeys(law.predicted for law in group)),
            series=tuple(_line(law, names) for law in group[:MAX_LAWS]),
        )
        for quantity, group in sorted(by_quantity.items(), reverse=True)
    ]  # fmt: skip
    most = max(map(len, by_quantity.values()))
    left_out = f"the first {MAX_LAWS} of {most} lines of a quantity; the table has all" if most > MAX_LAWS else ""
    heading = f"Exponents between neighbours along {axis.replace('_', ' ')}"
    return series.figure(
        "slopes", groups, names, ("local exponent", ""), heading, "dashed: predicted", left_out, log=False
    )


def _neighbours(law: Law) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    return list(zip(law.points, law.points[1:], strict=False))


def _step(left: float, right: float) -> str:
    return f"{units.short(left)} to {units.short(right)}"


def _line(law: Law, names: Sequence[str]) -> series.Series:
    steps = [_step(left, right) for (left, _), (right, _) in _neighbours(law)]
    points = tuple(
        series.SeriesPoint(
            place=names.index(step), value=slope, tip=f"{law.arm}, {law.problem}, {step}: exponent {slope:.2f}"
        )
        for step, slope in zip(steps, law.slopes, strict=False)
    )
    return series.Series(arm=law.arm, points=points)
