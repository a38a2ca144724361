"""Weights of attention in the folders of TensorBoard and Weights & Biases: images, histograms and figures by head."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.report import plots, weights
from attnbench.report.trackers import Events, finished, started
from attnbench.studies.weights import Head, Seen

NAME = "weights"
BINS = 64
FIGURES = Head._fields[1:]


def tensorboard(seen: Seen, folder: Path) -> None:
    """One event file: the heat maps as an image, and by head, which is the step, a histogram and scalars."""
    from tensorboard.compat.proto import summary_pb2

    events = Events(folder, 0.0, NAME)
    png = _png(seen)
    width, height = struct.unpack(">II", png[16:24])  # of the header of a PNG
    image = summary_pb2.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    events.add(0, tag="weights", image=image)
    for head in seen.heads():
        events.add(head.head, tag="weights/by_head", histo=_histogram(seen.weights[head.head]))
        for name in FIGURES:
            events.add(head.head, tag=f"weights/{name}", simple_value=getattr(head, name))
    events.close()


def wandb(seen: Seen, folder: Path) -> None:
    """One run, offline unless WANDB_MODE says otherwise, with the same."""
    import wandb as library
    from PIL import Image

    run = started(folder, NAME, {"problem": weights.title(seen), "inputs": seen.inputs})
    for head in seen.heads():
        counts = np.histogram(seen.weights[head.head], bins=BINS)
        figures: dict[str, Any] = {f"weights/{name}": getattr(head, name) for name in FIGURES}
        run.log({**figures, "weights/by_head": library.Histogram(np_histogram=counts)}, step=head.head)
    run.log({"weights": library.Image(Image.open(io.BytesIO(_png(seen))))})
    finished(run, folder)


def _png(seen: Seen) -> bytes:
    return plots.render(weights.chart(seen), "png")


def _histogram(values: Any) -> Any:
    from tensorboard.compat.proto import summary_pb2

    flat = np.asarray(values, dtype=np.float64).ravel()
    counts, edges = np.histogram(flat, bins=BINS)
    return summary_pb2.HistogramProto(
        min=flat.min(), max=flat.max(), num=len(flat), sum=flat.sum(), sum_squares=float(flat @ flat),
        bucket_limit=edges[1:].tolist(), bucket=counts.tolist(),
    )  # fmt: skip
