"""Weights of attention as one heat map for each head."""

from attnbench.attention.choices import Mode
from attnbench.records.case import problem_label
from attnbench.report.charts import heat_map
from attnbench.report.charts.figure import Figure
from attnbench.studies.weights import Seen

CELLS = 64  # along a side
SIDE = 240  # pixels
MAX_HEADS = 8


def figure(seen: Seen) -> Figure:
    """A heat map for each of the first MAX_HEADS heads, on one scale of colours."""
    figures = seen.heads()[:MAX_HEADS]
    pooled = {
        f"head {head.head}: entropy {head.entropy:.2f} of {head.most:.2f}": seen.pooled(head.head, CELLS)
        for head in figures
    }
    largest = float(max(weights.max() for weights in pooled.values()))
    left_out = f"the first {len(figures)} of {len(seen.weights)} heads" if len(figures) < len(seen.weights) else ""
    caption = f"{title(seen)}; {heat_map.scale(largest, '{:.2g}'.format)}"
    lengths = (seen.problem.seq_q, seen.problem.seq_kv)
    return Figure(
        name="weights", heading="Weights by head", caption=caption, left_out=left_out,
        panels=heat_map.panels(pooled, lengths, SIDE, largest, "{:.2g}".format),
    )  # fmt: skip


def title(seen: Seen) -> str:
    """The problem in words, and the distribution of its inputs."""
    return f"{problem_label(seen.problem, Mode.FWD).replace(' returns=weights', '')}, {seen.inputs} inputs"
