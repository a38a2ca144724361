"""Event files of TensorBoard; neither they nor their names hold the name of the host."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from attnbench.analysis.rows import AXES, Row
from attnbench.report.charts import attention_weights, rendering
from attnbench.report.formats.exported_run import SCALARS, ExportedRun
from attnbench.studies.weights import Head, Seen

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

BINS = 64


class EventFile:
    """One event file in a folder, named by its time and `name`."""

    def __init__(self, folder: Path, created_s: float, name: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._created_s, self._name = folder, created_s, name
        self._before = set(folder.iterdir())
        self._writer = EventFileWriter(str(folder))

    def add(self, step: int, **fields: object) -> None:
        """Add one value of a Summary: its `tag`, and `simple_value`, `image`, `histo` or `tensor`."""
        from tensorboard.compat.proto import summary_pb2

        self.put(summary_pb2.Summary(value=[summary_pb2.Summary.Value(**fields)]), step)

    def put(self, summary: Summary, step: int = 0) -> None:
        from tensorboard.compat.proto import event_pb2

        self._writer.add_event(event_pb2.Event(wall_time=self._created_s, step=step, summary=summary))

    def close(self) -> None:
        """Close the file and rename it, since the writer's name for it holds the host's name."""
        self._writer.close()
        for path in set(self._folder.iterdir()) - self._before:
            if path.is_file():
                path.rename(self._folder / f"events.out.tfevents.{int(self._created_s)}.attnbench-{self._name}")


def write(exported: ExportedRun, folder: Path) -> None:
    """Write a scalar for each metric, panel and backend over the length, the manifest as text, and profiles.

    `cases` holds one folder for each case, with its hyperparameters.
    """
    created_s, name = exported.created_s, exported.run.path.name
    events = EventFile(folder, created_s, name)
    for tag, step, value in exported.scalars():
        events.add(step, tag=tag, simple_value=value)
    _add_text(events, exported)
    events.close()
    for row in exported.rows:
        if row.time_s is not None:
            case_folder = folder / "cases" / f"{row.case_id}-{_folder_name(row)}"
            _write_hyperparameters(row, EventFile(case_folder, created_s, name))
    for trace in sorted(exported.run.path.rglob("trace.json.gz")):
        copy = folder / "plugins" / "profile" / name / f"{trace.parent.name}.pt.trace.json.gz"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trace, copy)


def write_weights(seen: Seen, folder: Path) -> None:
    """Write the heat maps of attention weights as an image, and by head, as the step, a histogram and scalars."""
    from tensorboard.compat.proto import summary_pb2

    events = EventFile(folder, 0.0, "weights")
    png = rendering.render(attention_weights.figure(seen), "png")
    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk
    image = summary_pb2.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    events.add(0, tag="weights", image=image)
    for head in seen.heads():
        events.add(head.head, tag="weights/by_head", histo=_histogram(seen.weights[head.head]))
        for name in Head._fields[1:]:
            events.add(head.head, tag=f"weights/{name}", simple_value=getattr(head, name))
    events.close()


def _add_text(events: EventFile, exported: ExportedRun) -> None:
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.text import metadata

    manifest = exported.run.manifest
    facts = {"suite": manifest.suite, "command": manifest.command, "measured": manifest.created_at}
    text = "\n".join(f"    {name}: {value}" for name, value in {**facts, **exported.packages}.items() if value)
    tensor = TensorProto(dtype=7, string_val=[text.encode()], tensor_shape=TensorShapeProto())  # DT_STRING
    events.add(0, tag="run", metadata=metadata.create_summary_metadata("run", ""), tensor=tensor)


def _write_hyperparameters(row: Row, events: EventFile) -> None:
    """A session of the table of hyperparameters: the problem, the backend, and the metrics."""
    from tensorboard.plugins.hparams import summary_v2

    columns = {column: row.value(column) for column in (*AXES, "mode", "backend", "arm_name", "device")}
    values = {name: str(value) if value is None else value for name, value in columns.items()}
    events.put(summary_v2.hparams_pb(values, trial_id=row.name))
    for metric in SCALARS:
        if (value := row.number(metric)) is not None:
            events.add(0, tag=metric, simple_value=float(value))
    events.close()


def _folder_name(row: Row) -> str:
    """The arm and its device, without characters that other systems and artifact stores refuse in names of files."""
    return quote(f"{row.arm_name}@{row.device}", safe="@=#")


def _histogram(values: NDArray[np.float64]) -> HistogramProto:
    from tensorboard.compat.proto import summary_pb2

    flat = np.asarray(values, dtype=np.float64).ravel()
    counts, edges = np.histogram(flat, bins=BINS)
    return summary_pb2.HistogramProto(
        min=flat.min(), max=flat.max(), num=len(flat), sum=flat.sum(), sum_squares=float(flat @ flat),
        bucket_limit=edges[1:].tolist(), bucket=counts.tolist(),
    )  # fmt: skip
