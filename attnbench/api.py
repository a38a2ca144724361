"""The Python side of the commands: `attnbench.run(...)` and `attnbench.load(...)`, in scripts and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from attnbench import __version__, frame, lines, store, sweep, units
from attnbench.errors import UnknownNameError, UsageError
from attnbench.frame import Row
from attnbench.metrics import METRICS
from attnbench.report import charts, drawing, html, pivot, plots, summary
from attnbench.report.plots import Picture
from attnbench.result import Result
from attnbench.store import Run
from attnbench.suite import AXES
from attnbench.sweep import Request

if TYPE_CHECKING:
    import pandas as pd


AXES_SHOWN = (
    "seq",
    "seq_q",
    "seq_kv",
    "batch",
    "heads",
    "kv_heads",
    "head_dim",
    "head_dim_v",
    "intensity",
    "flops",
    "bytes",
)
COLORS = ("backend", "device", "dtype", "mask", "mode")
HTML_MOST = 40  # rows of a run that a notebook shows by itself


class Measured(Run, kw_only=True):
    """A stored run with what a script or a notebook wants of it."""

    def rows(self, reference: str | None = None) -> list[Row]:
        """One plain dict a case, with the columns of `attnbench.frame.COLUMNS`."""
        return frame.rows(self.results, reference, frame.roofs_of(self.manifest))

    def frame(self, reference: str | None = None) -> pd.DataFrame:
        """The same as a DataFrame. Units are base units and stand in the names: `time_s`, `peak_bytes`."""
        return frame.table(self.rows(reference))

    @property
    def sentence(self) -> str:
        """The finding: `sdpa:flash is fastest in 8 of 8 problems, 5.9x naive by geomean.`"""
        return summary.sentence(self.rows())

    def plot(
        self, x: str = "seq", y: str = "time_s", color: str = "backend", facet: Sequence[str] | None = None,
        keep: Callable[[Result], bool] | None = None,
    ) -> Picture:  # fmt: skip
        """A chart by the rules of the report's, as `attnbench plot` draws it.

        Raises UnknownNameError for a name that is none, UsageError where nothing of `y` was measured.
        """
        for value, known, flag in ((x, AXES_SHOWN, "--x"), (y, METRICS, "--y"), (color, COLORS, "--color")):
            if value not in known:
                raise UnknownNameError("column", value, known, where=flag)
        for name in facet or ():
            if name not in drawing.PANEL:
                raise UnknownNameError("column", name, drawing.PANEL, where="--facet")
        if not plots.available():
            raise UsageError(plots.MISSING)
        chosen = lines.chosen(self.results, keep) if keep else self.results
        rows = frame.rows(chosen, roofs=frame.roofs_of(self.manifest))
        column, by = {"seq": "seq_q"}.get(x, x), {"backend": "arm_name"}.get(color, color)
        chart = charts.custom(rows, column, y, by, facet, drawing.caption_of(rows, __version__))
        if chart is None:
            raise UsageError(f"--y {y}: nothing of it was measured in {self.path.name}")
        return Picture(chart)

    def _repr_html_(self) -> str:
        """What a notebook shows: the finding, the counts, and the first rows."""
        rows = self.rows()
        shown = [
            {"case": row["label"], "device": row["device"], "time": units.seconds(row["time_s"]),
             "speed-up": pivot.factor(row["speedup"]), "place": row["place"] or pivot.why(row)}
            for row in rows[:HTML_MOST]
        ]  # fmt: skip
        said = [summary.sentence(rows), summary.tally(rows, len(self.manifest.impossible))]
        said += [f"The first {HTML_MOST}; .frame() has all."] if len(rows) > HTML_MOST else []
        return html.fragment(said, shown)


class Quiet:
    """Watches a run and says nothing."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def result(self, result: Result, remaining_s: float) -> None:
        """Nothing."""


def run(
    *suites: str, out: str | Path | None = None, retry_failed: bool = False, force: bool = False, **options: Any
) -> Measured:
    """Measure, store, and give the stored run; the options are those of `attnbench run`, with `_`.

    `attnbench.run(seq="512..4k", mask=["none", "causal"], backend="naive,sdpa:flash", budget="1m")`. Lists and numbers
    stand for their comma lists. Raises AttnbenchError for what the command answers with exit code 2 or 4.
    """
    given = request(*suites, **options)
    outcome = sweep.run(given, Quiet(), directory=Path(out) if out else None, retry_failed=retry_failed, force=force)
    return _measured(outcome.run)


def request(*suites: str, **options: Any) -> Request:
    """The options of `run` as a Request. Raises UnknownNameError for a name that is none."""
    fields = {field.name for field in msgspec.structs.fields(Request)} - {"suites", "axes"}
    axes: dict[str, str] = {}
    chosen: dict[str, Any] = {}
    for name, value in options.items():
        if name in AXES:
            axes[name] = _text(value)
        elif name in fields:
            chosen[name] = value if name in ("launches", "seed", "tags", "only", "skip", "profile") else _text(value)
        else:
            raise UnknownNameError("option", name, sorted((*AXES, *fields)))
    for name in ("only", "skip"):
        if isinstance(chosen.get(name), str):
            chosen[name] = (chosen[name],)
    return msgspec.convert({"suites": suites, "axes": axes, **chosen}, Request)


def load(name: str | Path = "last") -> Measured:
    """A stored run: `last`, a name under the results root, or a path."""
    return _measured(store.read(store.resolve(str(name), store.results_root())))


def _measured(run: Run) -> Measured:
    return Measured(**{name: getattr(run, name) for name in run.__struct_fields__})


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
