"""The charts that are not a quantity over the length: roofline, best backend, slopes, noise, ratios, trend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attnbench import units
from attnbench.ceilings import Ceilings
from attnbench.comparison import Pair
from attnbench.frame import TIE_FLOOR, Place, Roofs, Row
from attnbench.gate import history
from attnbench.gate.history import Point
from attnbench.report import drawing
from attnbench.report.drawing import FAINT, GUIDE, HEIGHT, INK, WIDTH, Chart
from attnbench.report.style import in_order, look
from attnbench.stats import Estimate
from attnbench.studies.scaling import Law

GRID_MOST = 40  # rows of the best-backend grid
TRENDS_MOST = 40  # cases whose commits are drawn
PAIRS_MOST = 40  # of the ratios between two runs, the largest effects
TIED = "tied"


def roofline(rows: Sequence[Row], roofs: Roofs, caption: str) -> Chart | None:
    """FLOP/s over intensity beneath the measured ceilings, a panel for each device and dtype, a trail along the length.

    Backends at one problem share an intensity, so a trail goes from the shortest length to the longest.
    """
    measured = [row for row in rows if row["roofline_share"] is not None and row["device"] in roofs]
    if not measured:
        return None
    import altair as alt

    measured = measured[:: math.ceil(len(measured) / drawing.POINTS_MOST)]
    data = [
        {
            "kind": "point", "x": row["intensity"], "y": row["flop_per_s"], "arm": row["arm_name"],
            "label": row["label"], "share": row["roofline_share"], "bound": row["bound"], "n": row["seq_kv"],
            "panel": f"{row['device']} {row['dtype']}", "note": row["notes"] or "",
            "trail": f"{row['arm_name']} {row['mask']} {row['mode']} {row['batch']} {row['heads']} {row['head_dim']}",
        }
        for row in measured
    ]  # fmt: skip
    panels = list(dict.fromkeys(point["panel"] for point in data))
    for row in {(row["device"], row["dtype"]): row for row in measured}.values():
        own = [point["x"] for point in data if point["panel"] == f"{row['device']} {row['dtype']}"]
        data += _ceiling(roofs[row["device"]], row["dtype"], f"{row['device']} {row['dtype']}", min(own), max(own))
    arms = in_order(point["arm"] for point in data if "arm" in point)
    scale = alt.Scale(type="log", nice=False, padding=8)
    thin: dict[str, Any] = {"gridOpacity": 0.4, "tickCount": 4}
    spelled = alt.Axis(labelExpr=drawing.SPELLED["FLOP/s"], **thin)
    x = alt.X("x:Q", scale=scale, axis=alt.Axis(**thin), title="FLOP a byte, exact work over compulsory traffic")
    y = alt.Y("y:Q", scale=scale, axis=spelled, title="FLOP/s")
    whole = alt.Chart(alt.InlineData(values=data)).encode(x=x, y=y)
    points = whole.transform_filter("datum.kind == 'point'").encode(
        color=drawing.of_arm(alt.Color, arms, legend=alt.Legend(symbolOpacity=1))
    )
    layers = [
        whole.transform_filter("datum.kind == 'roof'").mark_line(color=INK, strokeWidth=1.2),
        points.mark_line(strokeWidth=1, opacity=0.5).encode(detail="trail:N", order="n:Q"),
        points.mark_point(filled=True, size=50, opacity=1).encode(
            shape=drawing.of_arm(alt.Shape, arms),
            tooltip=["label:N", "x:Q", "y:Q", "share:Q", "bound:N", "note:N"],
        ),
    ]
    drawn = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    best = max(measured, key=lambda row: row["roofline_share"])
    finding = f"{best['arm_name']} comes nearest to its roof: {best['roofline_share']:.0%}, bound by {best['bound']}"
    return drawing.titled(drawing.faceted(drawn, panels), finding, caption)


def _ceiling(known: Ceilings, dtype: str, panel: str, low: float, high: float) -> list[dict[str, Any]]:
    """The roof as a line: memory up to the ridge, then the burst rate of matrix products."""
    rate, memory = known.matmul.get(dtype), known.memory
    if rate is None or memory is None:
        return []
    ridge = rate.burst / memory
    ends = sorted({min(low, ridge) / 2, ridge, max(high, ridge) * 2})
    return [{"kind": "roof", "panel": panel, "x": x, "y": min(rate.burst, memory * x)} for x in ends]


def grid(rows: Sequence[Row], caption: str) -> Chart | None:
    """The best backend of each problem in its colour, with its speed-up; grey where intervals overlap."""
    ranked = [row for row in rows if row["place"] and Place(row["place"]) is not Place.ALONE]
    if not ranked:
        return None
    import altair as alt

    x = drawing.axis_of(rows)
    down = drawing.varying(rows, x)
    cells: dict[tuple[str, Any], dict[str, Any]] = {}
    for row in ranked:
        if Place(row["place"]) is Place.BEHIND:
            continue
        line = drawing.panel_of(row, down) or "all"
        known = cells.get((line, row[x]))
        names = [*known["names"], row["arm_name"]] if known else [row["arm_name"]]
        factor = row["speedup"] or 1.0
        cells[line, row[x]] = {
            "kind": "cell", "x": row[x], "y": line, "names": names,
            "best": row["arm_name"] if len(names) == 1 and Place(row["place"]) is Place.FASTEST else TIED,
            "text": f"{factor:.2g}x" if len(names) == 1 else "~", "label": row["problem"],
        }  # fmt: skip
    lines = list(dict.fromkeys(line for line, _ in cells))
    kept = lines[:GRID_MOST]
    data = [{**cell, "names": ", ".join(cell["names"])} for cell in cells.values() if cell["y"] in kept]
    data = data[:: math.ceil(len(data) / drawing.POINTS_MOST)]
    arms = in_order({cell["best"] for cell in data} - {TIED})
    colors = alt.Scale(domain=[*arms, TIED], range=[*(look(arm).color for arm in arms), "#c8c8c8"])
    axis = alt.Axis(labelAngle=0, grid=False, labelExpr=drawing.SHORT)
    title = drawing.AXIS_TITLES.get(x, x.replace("_", " "))
    whole = alt.Chart(alt.InlineData(values=data)).encode(
        x=alt.X("x:O", title=title, axis=axis),
        y=alt.Y("y:N", title=None, sort=kept, axis=alt.Axis(labelLimit=300)),
    )
    tiles = whole.mark_rect(stroke=FAINT).encode(
        color=alt.Color("best:N", scale=colors, title=None), tooltip=["label:N", "best:N", "names:N", "text:N"]
    )
    # Dark text on light tiles: the colours were chosen for lines, and white on orange cannot be read.
    words = whole.mark_text(fontSize=11, color="black").encode(text="text:N")
    left_out = f"{len(kept)} of {len(lines)} rows; the table has all" if len(kept) < len(lines) else ""
    drawn = alt.layer(tiles, words).properties(width=alt.Step(54), height=alt.Step(26), title=alt.TitleParams(""))
    return drawing.titled(drawn, "Best backend, and its speed-up over the reference; ~ tied", caption, left_out)


def slopes(laws: Sequence[Law], caption: str) -> Chart | None:
    """Local exponents along the axis that most laws are about, beside the predicted one."""
    if not laws:
        return None
    import altair as alt

    axes = [law.axis for law in laws]
    axis = max(dict.fromkeys(axes), key=axes.count)
    data: list[dict[str, Any]] = []
    middles: dict[str, float] = {}
    for number, law in enumerate(law for law in laws if law.axis == axis):
        panel = {"time": "time of a call", "peak": "peak memory"}.get(law.quantity, law.quantity)
        steps = zip(law.points, law.points[1:], law.slopes, strict=False)
        for (left, _), (right, _), slope in steps:
            step = f"{units.short(left)} to {units.short(right)}"
            middles[step] = left * right
            data.append({
                "kind": "point", "x": step, "y": slope, "arm": law.arm, "panel": panel, "law": number,
                "label": f"{law.problem}: {step}",
            })  # fmt: skip
        data.append({"kind": "rule", "y": law.predicted, "panel": panel})
    arms = in_order(point["arm"] for point in data if "arm" in point)
    whole = alt.Chart(alt.InlineData(values=data))
    y = alt.Y("y:Q", title="local exponent", scale=alt.Scale(zero=False, padding=10))
    order = sorted(middles, key=lambda step: middles[step])
    x = alt.X("x:O", sort=order, title=axis, axis=alt.Axis(grid=False, labelAngle=-30))
    points = whole.transform_filter("datum.kind == 'point'").encode(
        x=x, y=y, color=drawing.of_arm(alt.Color, arms), detail="law:N"
    )
    layers = [
        whole.transform_filter("datum.kind == 'rule'").mark_rule(strokeDash=[4, 4], color=GUIDE).encode(y=y),
        points.mark_line(strokeWidth=1.4),
        points.mark_point(filled=True, size=40, opacity=1).encode(
            shape=drawing.of_arm(alt.Shape, arms), tooltip=["arm:N", "label:N", "y:Q"]
        ),
    ]
    drawn = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    panels = sorted({point["panel"] for point in data}, reverse=True)
    heading = f"Exponents between neighbours along {axis}; dashed: what is predicted"
    return drawing.titled(drawing.faceted(drawn, panels), heading, caption)


def noise(drift: Sequence[Mapping[str, Any]], caption: str, left_out: str) -> Chart | None:
    """Every block over the median of its case, in the order taken."""
    if not drift:
        return None
    import altair as alt

    arms = in_order({point["arm"] for point in drift})
    whole = alt.Chart(alt.InlineData(values=list(drift)))
    y = alt.Y("y:Q", title="block over median of its case", scale=alt.Scale(zero=False))
    points = whole.mark_point(size=18, opacity=0.8, filled=True).encode(
        x=alt.X("x:Q", title="round", axis=alt.Axis(grid=False, tickMinStep=1)), y=y,
        color=drawing.of_arm(alt.Color, arms), shape=drawing.of_arm(alt.Shape, arms),
        tooltip=["label:N", "y:Q", "x:Q", "position:Q", "load:Q", "tags:N"],
    )  # fmt: skip
    drawn = points.properties(width=2 * WIDTH, height=HEIGHT)
    return drawing.titled(drawn, "Blocks over the rounds: a flat cloud about 1 is a quiet machine", caption, left_out)


def ratios(pairs: Sequence[Pair], old: str, new: str) -> Chart | None:
    """New over old, largest effects first, with intervals and the band within which single launches differ."""
    kept = sorted((pair for pair in pairs if pair.ratio), key=lambda pair: -pair.effect)[:PAIRS_MOST]
    if not kept:
        return None
    import altair as alt

    data: list[dict[str, Any]] = []
    for pair in kept:
        assert pair.ratio
        low, high = pair.ratio.low, pair.ratio.high
        data.append({
            "kind": "point", "y": f"{pair.label} {pair.arm.partition('@')[2]}".strip(), "x": pair.ratio.value,
            "low": low if drawing.drawable(low) else pair.ratio.value,
            "high": high if drawing.drawable(high) else pair.ratio.value,
            "arm": pair.arm.partition("@")[0], "change": pair.change.value,
        })  # fmt: skip
    arms = in_order({point["arm"] for point in data})
    ends = [1 - TIE_FLOOR, 1 + TIE_FLOOR]
    data.append({"kind": "band", "x": ends[0], "high": ends[1]})
    whole = alt.Chart(alt.InlineData(values=data))
    scale = alt.Scale(type="log", base=2, nice=False, padding=12)
    x = alt.X(
        "x:Q", scale=scale, title="new over old: right of 1 is slower", axis=alt.Axis(labelExpr=drawing.SPELLED["x"])
    )
    names = alt.Y("y:N", sort=[point["y"] for point in data[:-1]], title=None, axis=alt.Axis(labelLimit=420))
    points = whole.transform_filter("datum.kind == 'point'").encode(y=names, color=drawing.of_arm(alt.Color, arms))
    layers = [
        whole.transform_filter("datum.kind == 'band'").mark_rect(color=GUIDE, opacity=0.2).encode(x=x, x2="high:Q"),
        points.mark_rule(strokeWidth=1.4).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        points.mark_point(filled=True, size=44, opacity=1).encode(
            x=x, shape=drawing.of_arm(alt.Shape, arms), tooltip=["y:N", "x:Q", "low:Q", "high:Q", "change:N"]
        ),
    ]
    drawn = alt.layer(*layers).properties(width=WIDTH + 80, height=alt.Step(18))
    left_out = f"the {len(kept)} largest of {len(pairs)}" if len(kept) < len(pairs) else ""
    return drawing.titled(drawn, f"{new} over {old}", f"grey: closer than launches differ. {left_out}".strip())


def trend(geomeans: Iterable[tuple[str, Mapping[str, Estimate]]]) -> Chart | None:
    """Geometric means over the first run, run by run, of one machine; a line for each backend."""
    import altair as alt

    data: list[dict[str, Any]] = []
    names = []
    for name, means in geomeans:
        names.append(name)
        for arm, mean in means.items():
            data.append({
                "kind": "point", "x": name, "y": mean.value, "arm": arm.partition("@")[0], "detail": arm,
                "low": mean.low if drawing.drawable(mean.low) else mean.value,
                "high": mean.high if drawing.drawable(mean.high) else mean.value,
            })  # fmt: skip
    if len(names) < 2 or not data:
        return None
    arms = in_order({point["arm"] for point in data})
    whole = alt.Chart(alt.InlineData(values=data)).encode(
        x=alt.X("x:O", sort=names, title=None, axis=alt.Axis(labelAngle=-30, labelLimit=200)),
        color=drawing.of_arm(alt.Color, arms),
    )
    y = alt.Y(
        "y:Q", scale=alt.Scale(type="log", base=2), title="time over the first run's",
        axis=alt.Axis(labelExpr=drawing.SPELLED["x"]),
    )  # fmt: skip
    layers = [
        whole.mark_line(strokeWidth=1.4).encode(y=y, detail="detail:N"),
        whole.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q"), y2="high:Q"),
        whole.mark_point(filled=True, size=44, opacity=1).encode(
            y=y, shape=drawing.of_arm(alt.Shape, arms), tooltip=["arm:N", "x:N", "y:Q", "low:Q", "high:Q"]
        ),
    ]
    drawn = alt.layer(*layers).properties(width=2 * WIDTH, height=HEIGHT)
    return drawing.titled(
        drawn, "Run by run: geometric mean of times over the first run's", "95 % intervals over cases"
    )


def commits(seen: Mapping[str, Sequence[tuple[Point, float]]]) -> Chart | None:
    """Times by commit over the first, a line for each case, largest changes first; a ring where a level changes."""
    found = {case: history.changes(case, values) for case, values in seen.items() if len(values) > 1}
    if not found:
        return None
    import altair as alt

    def largest(case: str) -> float:
        return max((abs(math.log(one.ratio)) for one in found[case]), default=0.0)

    kept = sorted(found, key=largest, reverse=True)[:TRENDS_MOST]
    order = list(dict.fromkeys(point.name for values in seen.values() for point, _ in values))
    data: list[dict[str, Any]] = []
    for case in kept:
        edges = {one.at.name: one.ratio for one in found[case]}
        first = seen[case][0][1]
        data += [
            {
                "kind": "point", "x": point.name, "y": seconds / first, "detail": case, "seconds": seconds,
                "arm": case.partition("@")[0].rpartition(" ")[2], "at": point.measured_at,
                "changed": edges.get(point.name),
            }
            for point, seconds in seen[case]
        ]  # fmt: skip
    whole = alt.Chart(alt.InlineData(values=data)).encode(
        x=alt.X("x:O", sort=order, title=None, axis=alt.Axis(labelAngle=-30, labelLimit=140, labelOverlap=True)),
        y=alt.Y(
            "y:Q", scale=alt.Scale(type="log", base=2, nice=False, padding=10), title="time over the first commit's",
            axis=alt.Axis(labelExpr=drawing.SPELLED["x"]),
        ),
        color=drawing.of_arm(alt.Color, in_order({point["arm"] for point in data})),
        tooltip=["detail:N", "x:N", "at:N", "seconds:Q", "y:Q", "changed:Q"],
    )  # fmt: skip
    layers = [
        whole.mark_line(strokeWidth=1.2, opacity=0.8).encode(detail="detail:N"),
        whole.mark_point(filled=True, size=14, opacity=1),
        whole.transform_filter("isValid(datum.changed)").mark_point(size=130, strokeWidth=2, color=INK, filled=False),
    ]
    count = sum(map(len, found.values()))
    said = (
        f"{count} changes of level, in {sum(map(bool, found.values()))} of {len(found)} cases" if count else "no change"
    )
    left_out = f"; the {len(kept)} with the largest changes of {len(found)}" if len(kept) < len(found) else ""
    drawn = alt.layer(*layers).properties(width=2 * WIDTH, height=HEIGHT)
    return drawing.titled(drawn, f"Commit by commit: {said}", f"a ring: the level changes there (PELT){left_out}")
