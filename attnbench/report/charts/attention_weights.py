"""Weights of attention as one heat map for each head."""

from attnbench.attention.problem import Mode
from attnbench.records.case import problem_label
from attnbench.report.charts.drawing import Chart, titled
from attnbench.report.charts.heat_map import heat_maps
from attnbench.report.charts.style import BLUE
from attnbench.studies.weights import Seen

CELLS = 64  # along a side
SIDE = 200  # pixels
MAX_HEADS = 8


def chart(seen: Seen) -> Chart:
    """A heat map for each of the first MAX_HEADS heads, on one scale of colours."""
    import altair as alt

    figures = seen.heads()[:MAX_HEADS]
    pooled = {
        f"head {head.head}: entropy {head.entropy:.2f} of {head.most:.2f}": seen.pooled(head.head, CELLS)
        for head in figures
    }
    largest = float(max(weights.max() for weights in pooled.values()))
    colors = alt.Scale(type="sqrt", domain=[0, largest], range=["#ffffff", BLUE], interpolate="rgb")
    drawn = heat_maps(pooled, (seen.problem.seq_q, seen.problem.seq_kv), SIDE, "weight", ".2g", colors)
    left_out = f"the first {len(figures)} of {len(seen.weights)} heads" if len(figures) < len(seen.weights) else ""
    return titled(drawn, "Weights by head", title(seen), left_out)


def title(seen: Seen) -> str:
    """The problem in words, and the distribution of its inputs."""
    return f"{problem_label(seen.problem, Mode.FWD).replace(' returns=weights', '')}, {seen.inputs} inputs"
