"""Runs as folders of tools that follow benchmarks and experiments: asv, TensorBoard, Weights & Biases.

None of them is asked of the network, and none is told a user's or a host's name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from attnbench import units
from attnbench.errors import UsageError
from attnbench.frame import AXES, Row
from attnbench.report import drawing
from attnbench.store import Manifest, Run

SCALARS = ("time_s", "flop_per_s", "speedup", "total_bytes", "rms_err")  # what is followed along the length


class Made(NamedTuple):
    """What a format is written from."""

    run: Run
    rows: list[Row]


def named(row: Row) -> str:
    """A case on its device: what other tools call a benchmark."""
    return f"{row['label']}@{row['device']}"


def _seconds(manifest: Manifest) -> float:
    return datetime.fromisoformat(manifest.created_at).timestamp() if manifest.created_at else 0.0


# -- asv ---------------------------------------------------------------------------------------------------------------


def asv(made: Made, folder: Path) -> None:
    """A results folder of https://asv.readthedocs.io: benchmarks.json, and one file of results for the commit.

    UsageError for a run that was not measured in a git repository: asv orders results by commit.
    """
    manifest = made.run.manifest
    commit = (manifest.commit or {}).get("commit")
    if not commit:
        raise UsageError(f"{made.run.path.name} was measured outside a git repository, and asv orders by commit")
    card = manifest.machine
    machine = {
        "machine": manifest.fingerprint, "os": str(card.get("system")), "arch": str(card.get("arch", "")),
        "cpu": str(card.get("cpu")), "num_cpu": str(card.get("cores")), "ram": f"{card.get('memory_gib')} GiB",
    }  # fmt: skip
    versions = next((env.packages for env in manifest.environments.values()), {})
    name = f"attnbench-torch{versions.get('torch', '')}"
    when = int(1000 * _seconds(manifest))
    results, benchmarks = {}, {}
    for row in made.rows:
        for kind, column, unit in (("time", "time_s", "seconds"), ("peakmem", "total_bytes", "bytes")):
            if row[column] is None:
                continue
            bench = f"{kind}.{named(row)}"
            ends = ([row["time_low_s"]], [row["time_high_s"]]) if kind == "time" else (None, None)
            results[bench] = [[row[column]], [], row["case_id"], when, None, *ends]
            benchmarks[bench] = {
                "name": bench, "type": kind, "unit": unit, "version": row["case_id"], "params": [], "param_names": [],
                "code": row["label"], "timeout": 60.0,
            }  # fmt: skip
    columns = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b"]
    held = {
        "commit_hash": commit, "env_name": name, "date": when, "params": machine, "requirements": versions,
        "python": str(card.get("python", "")), "env_vars": {}, "result_columns": columns, "results": results,
        "durations": {}, "version": 2,
    }  # fmt: skip
    own = folder / manifest.fingerprint
    own.mkdir(exist_ok=True)
    for path, value in (
        (own / "machine.json", {**machine, "version": 1}),
        (own / f"{commit[:8]}-{name}.json", held),
        (folder / "benchmarks.json", {**benchmarks, "version": 2}),
    ):
        path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2))


# -- TensorBoard -------------------------------------------------------------------------------------------------------


class Events:
    """One event file in a folder; nothing in it or in its name tells a host."""

    def __init__(self, folder: Path, when: float, name: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._when, self._name = folder, when, name
        self._before = set(folder.iterdir())
        self._writer = EventFileWriter(str(folder))

    def add(self, step: int, **value: Any) -> None:
        """One value of a Summary: `tag`, and `simple_value`, `image`, `histo` or what else it has."""
        from tensorboard.compat.proto import summary_pb2

        self.put(summary_pb2.Summary(value=[summary_pb2.Summary.Value(**value)]), step)

    def put(self, summary: Any, step: int = 0) -> None:
        """A whole Summary."""
        from tensorboard.compat.proto import event_pb2

        self._writer.add_event(event_pb2.Event(wall_time=self._when, step=step, summary=summary))

    def close(self) -> None:
        """The writer puts the host's name into that of the file: it gets another."""
        self._writer.close()
        for path in set(self._folder.iterdir()) - self._before:
            if path.is_file():
                path.rename(self._folder / f"events.out.tfevents.{int(self._when)}.attnbench-{self._name}")


def tensorboard(made: Made, folder: Path) -> None:
    """An event file with a scalar for each metric, panel and backend, its step the length, and the manifest as text.

    Under `cases` one folder a case with its hyperparameters, and profiles where the run has them.
    """
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.text import metadata

    when, name = _seconds(made.run.manifest), made.run.path.name
    events = Events(folder, when, name)
    for tag, step, value in _scalars(made.rows):
        events.add(step, tag=tag, simple_value=value)
    said = "\n".join(f"    {line}" for line in _facts(made.run.manifest))
    tensor = TensorProto(dtype=7, string_val=[said.encode()], tensor_shape=TensorShapeProto())  # DT_STRING
    events.add(0, tag="run", metadata=metadata.create_summary_metadata("run", ""), tensor=tensor)
    events.close()
    for row in made.rows:
        if row["time_s"] is not None:
            _hparams(row, folder / "cases" / f"{row['case_id']}-{row['arm_name'].replace(':', '-')}", when, name)
    for trace in sorted(made.run.path.rglob("trace.json.gz")):
        kept = folder / "plugins" / "profile" / name / f"{trace.parent.name}.pt.trace.json.gz"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trace, kept)


def _hparams(row: Row, folder: Path, when: float, name: str) -> None:
    """A session of TensorBoard's table of hyperparameters: what the problem is, who computes it, and its figures."""
    from tensorboard.plugins.hparams import summary_v2

    kept = {column: row[column] for column in (*AXES, "mode", "backend", "device")}
    given = {
        column: value if isinstance(value, bool | int | float | str) else str(value) for column, value in kept.items()
    }
    events = Events(folder, when, name)
    events.put(summary_v2.hparams_pb(given, trial_id=row["case_id"]))
    for metric in SCALARS:
        if row[metric] is not None:
            events.add(0, tag=metric, simple_value=float(row[metric]))
    events.close()


def _scalars(rows: list[Row]) -> Iterable[tuple[str, int, float]]:
    x = drawing.axis_of(rows) if rows else "seq_q"
    panels = drawing.varying(rows, x) if rows else []
    for row in sorted(rows, key=lambda row: int(row[x])):
        place = [word for word in (drawing.panel_of(row, panels), row["arm_name"]) if word]
        for metric in SCALARS:
            if row[metric] is not None:
                yield "/".join((metric, *place)), int(row[x]), float(row[metric])


def _facts(manifest: Manifest) -> list[str]:
    versions = next((env.packages for env in manifest.environments.values()), {})
    facts = {"suite": manifest.suite, "command": manifest.command, "measured": manifest.created_at, **versions}
    return [f"{name}: {value}" for name, value in facts.items() if value]


# -- Weights & Biases --------------------------------------------------------------------------------------------------


def wandb(made: Made, folder: Path) -> None:
    """One run: a table of every case, scalars along the length. Offline unless WANDB_MODE says otherwise."""
    import wandb as library

    manifest = made.run.manifest
    config = {"suite": manifest.suite, "fingerprint": manifest.fingerprint, **manifest.tags}
    run = started(folder, made.run.path.name, config)
    columns = ["case", *AXES, "mode", "backend", "device", "status", *SCALARS, "time"]
    lines = [[row["label"], *(row[name] for name in columns[1:-1]), units.seconds(row["time_s"])] for row in made.rows]
    by_step: dict[int, dict[str, float]] = {}
    for tag, step, value in _scalars(made.rows):
        by_step.setdefault(step, {})[tag] = value
    for step, values in sorted(by_step.items()):
        run.log(values, step=step)
    run.log({"cases": library.Table(columns=list[str | int](columns), data=list[Iterable[Any]](lines))})
    finished(run, folder)


def started(folder: Path, name: str, config: dict[str, Any]) -> Any:
    """A run of wandb that tells nothing of the machine."""
    import wandb as library

    quiet = library.Settings(
        silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True,
        x_disable_machine_info=True, host="attnbench", init_timeout=60,
    )  # fmt: skip
    return library.init(
        project="attnbench", dir=str(folder), mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
        name=name, config=config, settings=quiet,
    )  # fmt: skip


def finished(run: Any, folder: Path) -> None:
    """End it, and leave no log behind."""
    run.finish()
    # Its logs name folders of the user; they are of the library's own running, not of the benchmark.
    for logs in folder.glob("wandb/**/*.log"):
        logs.unlink()
