"""The Python interface: `attnbench.run(...)` and `attnbench.load(...)`, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from attnbench import units
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.roofline import ceilings_by_device
from attnbench.analysis.rows import Row, Value, as_frame, rows_of
from attnbench.engine import sweep
from attnbench.engine.runner import SilentObserver
from attnbench.errors import UnknownNameError, UsageError
from attnbench.records import results_file, run_directory
from attnbench.records.result import Result
from attnbench.report import pivot, summary
from attnbench.report.charts import any_metric, panels, rendering, sizes
from attnbench.report.formats import html
from attnbench.suite import AXES

if TYPE_CHECKING:
    import pandas as pd

SHAPE = ("batch", "heads", "kv_heads", "head_dim", "head_dim_v")
PLOT_AXES = ("seq", "seq_q", "seq_kv", *SHAPE, "intensity", "flops", "bytes")
BY_COLOR = {"backend": "arm_name"}  # the column of rows
COLORS = ("backend", "device", "dtype", "mask", "mode")
MAX_HTML_ROWS = 40  # of a run that a notebook displays
REPEATABLE = ("only", "skip", "backend_python")
TYPED_OPTIONS = ("launches", "restarts", "seed", "tags", "profile", *REPEATABLE)  # the others are text


class StoredRun(run_directory.Run, kw_only=True):
    """A stored run with its rows, its charts, and its display in a notebook."""

    def rows(self, reference: str | None = None) -> list[dict[str, Value]]:
        """One plain dict for each case, with the columns of `attnbench.frame.COLUMNS`."""
        return [row.plain() for row in self._rows(reference)]

    def _rows(self, reference: str | None = None) -> list[Row]:
        return rows_of(self.results, reference, ceilings_by_device(self.manifest), self.manifest.arms)

    def frame(self, reference: str | None = None) -> pd.DataFrame:
        """The rows as a DataFrame, in base units that the column names state: `time_s`, `peak_bytes`."""
        return as_frame(self._rows(reference))

    @property
    def sentence(self) -> str:
        """The finding: `sdpa:flash is fastest in 8 of 8 problems, 5.9x naive by geomean.`"""
        return summary.sentence(self._rows(), self.left)

    def plot(
        self, x: str = "", y: str = "time_s", color: str = "backend", facet: Sequence[str] | None = None,
        keep: Callable[[Result], bool] | None = None, size: str = "",
    ) -> rendering.Picture:  # fmt: skip
        """A chart as `attnbench plot` draws it; `keep` selects results. `size` is `column`, `page` or WxH in mm.

        Without `x` the axis is the one that varies most. Raises UnknownNameError for an unknown column, and UsageError
        if `y` was not measured or two problems would share a place.
        """
        facets = ((name, panels.FACETS, "--facet") for name in facet or ())
        axes = ((x, PLOT_AXES, "--x"),) if x else ()
        for value, known, flag in (*axes, (y, METRICS, "--y"), (color, COLORS, "--color"), *facets):
            if value not in known:
                raise UnknownNameError("column", value, known, where=flag)
        results = results_file.chosen(self.results, keep) if keep else self.results
        rows = rows_of(results, ceilings=ceilings_by_device(self.manifest), arms=self.manifest.arms)
        column, by = {"seq": "seq_kv"}.get(x, x), BY_COLOR.get(color, color)
        facet = None if facet is None else [BY_COLOR.get(name, name) for name in facet]
        paper = sizes.parse(size) if size else None
        figure = any_metric.figure(rows, column, y, by, facet, paper.panel if paper else sizes.SCREEN)
        if figure is None:
            raise UsageError(f"--y {y}: it was not measured in {self.path.name}; choose another metric")
        return rendering.Picture(figure, paper)

    def _repr_html_(self) -> str:
        """The finding, the counts, and the first rows, for a notebook."""
        rows = self._rows()
        table = [
            {"case": row.label, "device": row.device, "time": units.seconds(row.time_s),
             "speed-up": pivot.factor(row.speedup), "place": row.place or pivot.why(row)}
            for row in rows[:MAX_HTML_ROWS]
        ]  # fmt: skip
        sentences = [*summary.failure_lines(rows), summary.sentence(rows, self.left)]
        sentences += [summary.tally(rows, len(self.manifest.impossible))]
        sentences += [f"The first {MAX_HTML_ROWS}; .frame() has all."] if len(rows) > MAX_HTML_ROWS else []
        return html.fragment(sentences, table)


def run(
    *suites: str, out: str | Path | None = None, retry_failed: bool = False, force: bool = False, **options: object
) -> StoredRun:
    """Measure and store; the options are those of `attnbench run`, with `_` for `-`.

    `attnbench.run(seq="512..4k", mask=["none", "causal"], backend="naive,sdpa:flash", budget="1m")`. Lists and numbers
    replace comma lists. Raises AttnbenchError where the command exits with 2 or 4.
    """
    ready = sweep.prepare(request(*suites, **options))
    directory = Path(out) if out else None
    outcome = sweep.run(ready, SilentObserver(), directory=directory, retry_failed=retry_failed, force=force)
    return _stored(outcome.run)


def request(*suites: str, **options: object) -> sweep.Request:
    """The options of `run` as a Request. Raises UnknownNameError for an unknown option."""
    fields = {field.name: field.encode_name for field in msgspec.structs.fields(sweep.Request)}
    fields = {name: stored for name, stored in fields.items() if name not in ("suites", "axes")}
    fields |= {stored: stored for stored in fields.values()}  # a renamed option keeps its former name
    axes: dict[str, str] = {}
    values: dict[str, object] = {}
    for name, value in options.items():
        if name in AXES:
            axes[name] = _text(value)
        elif name in REPEATABLE and isinstance(value, str):
            values[name] = (value,)
        elif name in fields:
            values[fields[name]] = value if name in TYPED_OPTIONS else _text(value)
        else:
            raise UnknownNameError("option", name, sorted((*AXES, *fields)))
    return msgspec.convert({"suites": suites, "axes": axes, **values}, sweep.Request)


def load(name: str | Path = "last") -> StoredRun:
    """A stored run: `last`, a name under the results root, or a path."""
    return _stored(run_directory.read(run_directory.resolve(str(name), run_directory.results_root())))


def _stored(run: run_directory.Run) -> StoredRun:
    return StoredRun(**{name: getattr(run, name) for name in run.__struct_fields__})


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
