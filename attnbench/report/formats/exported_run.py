"""A run with its rows, as the formats of other tools need it."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple

import msgspec

from attnbench.analysis.roofline import ceilings_by_device
from attnbench.analysis.rows import Row, rows_of
from attnbench.records.run_directory import Run
from attnbench.report.charts import panels

SCALARS = ("time_s", "flop_per_s", "speedup", "total_bytes", "rms_err")  # metrics that trackers follow along the length


class ExportedRun(NamedTuple):
    """A stored run and its rows."""

    run: Run
    rows: list[Row]

    @property
    def created_s(self) -> float:
        """When it was measured, in seconds since 1970; 0 if unknown."""
        created_at = self.run.manifest.created_at
        return datetime.fromisoformat(created_at).timestamp() if created_at else 0.0

    @property
    def packages(self) -> Mapping[str, str]:
        return next((env.packages for env in self.run.manifest.environments.values()), {})

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        """Tag, step and value of each metric: the tag holds metric, panel and arm, the step is the length."""
        layout = panels.layout(self.rows)
        for step, row in sorted(((int(row.number(layout.axis) or 0), row) for row in self.rows), key=itemgetter(0)):
            place = [part for part in (layout.heading(row), row.arm_name) if part]
            for metric in SCALARS:
                if (value := row.number(metric)) is not None:
                    yield "/".join((metric, *place)), step, float(value)


def exported(run: Run) -> ExportedRun:
    """Read the rows of a run."""
    return ExportedRun(run, rows_of(run.results, ceilings=ceilings_by_device(run.manifest), arms=run.manifest.arms))


def json_text(value: object) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
