"""Runs of Weights & Biases: offline unless WANDB_MODE says otherwise, and without facts about the machine."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnbench import units
from attnbench.analysis.rows import AXES
from attnbench.report.charts import attention_weights, rendering
from attnbench.report.formats.exported_run import SCALARS, ExportedRun
from attnbench.studies.weights import Head, Seen

if TYPE_CHECKING:
    from wandb import Run as WandbRun

BINS = 64


def write(exported: ExportedRun, folder: Path) -> None:
    """Write a table of every case, and scalars along the length."""
    import wandb

    manifest = exported.run.manifest
    config = {"suite": manifest.suite, "fingerprint": manifest.fingerprint, **manifest.tags}
    columns: list[str | int] = ["case", *AXES, "mode", "backend", "device", "status", *SCALARS, "time"]
    lines: list[Iterable[object]] = [
        [row.name, *(row.value(str(name)) for name in columns[1:-1]), units.seconds(row.time_s)]
        for row in exported.rows
    ]
    by_step: dict[int, dict[str, float]] = {}
    for tag, step, value in exported.scalars():
        by_step.setdefault(step, {})[tag] = value
    with _offline_run(folder, exported.run.path.name, config) as run:
        for step, values in sorted(by_step.items()):
            run.log(values, step=step)
        run.log({"cases": wandb.Table(columns=columns, data=lines)})


def write_weights(seen: Seen, folder: Path) -> None:
    """Write the heat maps of attention weights as an image, and by head, as the step, a histogram and scalars."""
    import wandb
    from PIL import Image

    config = {"problem": attention_weights.title(seen), "inputs": seen.inputs}
    with _offline_run(folder, "weights", config) as run:
        for head in seen.heads():
            counts = np.histogram(seen.weights[head.head], bins=BINS)
            figures: dict[str, object] = {f"weights/{name}": getattr(head, name) for name in Head._fields[1:]}
            run.log({**figures, "weights/by_head": wandb.Histogram(np_histogram=counts)}, step=head.head)
        png = rendering.render(attention_weights.figure(seen), "png")
        run.log({"weights": wandb.Image(Image.open(io.BytesIO(png)))})


@contextlib.contextmanager
def _offline_run(folder: Path, name: str, config: dict[str, str]) -> Iterator[WandbRun]:
    """A run that records nothing about the machine; its logs, which name folders of the user, are deleted."""
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True,
        x_disable_machine_info=True, host="attnbench", init_timeout=60,
    )  # fmt: skip
    run = wandb.init(
        project="attnbench", dir=str(folder), mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
        name=name, config=config, settings=settings,
    )  # fmt: skip
    yield run
    run.finish()
    for log in folder.glob("wandb/**/*.log"):
        log.unlink()
