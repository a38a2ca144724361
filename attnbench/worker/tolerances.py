"""How far each output of a problem may be from the float64 reference, by dtype and by what a plain formula loses.

The bounds come from the error of the same-dtype reference: the plain formula, evaluated in the dtype of the problem.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention.choices import Dtype
from attnbench.attention.inputs import torch_dtype
from attnbench.records.result import Record
from attnbench.worker.reference_outputs import GroupOutput

if TYPE_CHECKING:
    from torch import Tensor

FACTOR = 2.0  # times the error of the same-dtype reference
TILE = 16  # rows that are judged together: fewer than a kernel computes at once, enough for a steady mean
ADDED = 4.5  # standard deviations: the largest of some hundred thousand numbers
TILE_SLACK = 2.0  # a tile may be off by this factor more than the whole output
LOOSE_PEAK = 4.0  # largest error of a row whose keys were chosen otherwise, over its root mean square


class Precision(NamedTuple):
    """The accuracy that a dtype allows."""

    eps: float  # spacing of the numbers next to 1, in the working dtype
    cap: float  # of the relative root mean square error
    lse: float  # error of the log-sum-exp: absolute up to 1, relative above


PRECISION: dict[Dtype, Precision] = {
    Dtype.FP32: Precision(eps=2.0**-23, cap=1e-5, lse=1e-5),
    Dtype.TF32: Precision(eps=2.0**-10, cap=5e-3, lse=1e-3),
    Dtype.FP16: Precision(eps=2.0**-10, cap=5e-3, lse=1e-3),
    Dtype.BF16: Precision(eps=2.0**-7, cap=3e-2, lse=1e-3),
    Dtype.FP8_E4M3: Precision(eps=2.0**-7, cap=3e-2, lse=1e-3),
}


class OutputTolerance(Record, frozen=True, kw_only=True):
    """How far an output may be from the reference. A backend's error factor multiplies all but `rounding`.

    Keys are those that workers of other versions read.
    """

    plain_max: float = msgspec.field(name="yardstick_max")  # largest error of the same-dtype reference
    plain_mean: float = msgspec.field(name="yardstick_mean")
    plain_rms: float = msgspec.field(name="yardstick_rms")
    rounding: float  # error at any element that rounding of the output and cancelling terms explain
    rms: float  # of the reference
    rms_error: float  # of the same-dtype reference, or half the cap of the dtype if that is larger
    loose: float = 0.0  # largest error from another choice of keys, where a rounding decides the choice


class OutputTally:
    """Writes one output group by group, and sums up the figures of its tolerance."""

    def __init__(self, dtype: Dtype, directory: Path, name: str, shape: tuple[int, int]) -> None:
        """`shape`: the number of groups, and the most rows of one where they differ, else 0."""
        self.dtype, self.name = dtype, name
        self.count, self.most_rows = shape
        self.path, self.arrays = directory, dict[str, NDArray[np.floating]]()
        self.numbers, self.worst, self.total, self.rounding = 0, 0.0, 0.0, 0.0
        self.largest, self.loose = 1.0, 0.0
        self.sum = 0.0  # the largest sum
        self.squares = np.zeros(4)  # of the reference, the error of the plain formula, the mass, the loose part

    def add(self, place: int, output: GroupOutput, with_mass: bool) -> None:
        """Add one output of the group at `place`; with its mass by row, the scale of the errors from dropout."""
        import torch

        reference, mass = output.reference, output.mass
        finite = reference.isfinite()
        known = reference.where(finite, 0.0)
        # The plain formula may overflow in fp16; such elements say nothing about normal errors.
        error = (output.plain.double() - known).where(finite, 0.0).nan_to_num(0.0, 0.0, 0.0)
        mass = mass.double().nan_to_num(0.0, 0.0, 0.0)
        loose = mass.new_zeros(mass.shape) if output.loose is None else output.loose
        self.loose = max(self.loose, LOOSE_PEAK * float(loose.max()))
        self.numbers += int(finite.sum())
        self.worst = max(self.worst, float(error.abs().max()))
        self.total += float(error.abs().sum())
        self.sum = max(self.sum, float(known.abs().max()), float(mass.max()))
        self.largest = max(self.largest, self.sum)
        # Rounded to the output dtype first: in float64, adding and subtracting 0.3 would show no rounding.
        stored = known.to(torch_dtype(Dtype.FP32 if self.name == "lse" else self.dtype.out))
        self.rounding = max(self.rounding, float((stored + 0.3 - 0.3 - stored).abs().max()))
        width = reference.shape[-1]
        rows = torch.stack([part.square().mean(-1) for part in (known, error, mass, loose)])
        self.squares += rows.sum((1, 2)).numpy() * width
        of_known, of_error, of_mass, of_loose = _root_mean(rows)
        self._write(place, self.name, reference, exact=self.dtype.bytes == 4 or self.name == "lse")
        limit = (of_known.maximum(of_mass) * self._half_cap).maximum(of_error) * TILE_SLACK + of_loose
        self._write(place, f"{self.name}.tiles", limit, exact=True, most=tiles_of(self.most_rows))
        if with_mass:
            self._write(place, f"{self.name}.mass", output.mass, exact=True)

    def tolerance(self, logits: float = 0.0, far: float = 0.0, terms: int = 0) -> OutputTolerance:
        """The tolerance of the whole output; `logits`, for gradients, is the size of the logits in units of eps.

        `terms` of each sum may be added one after the other in float32, where the plain formula, a product of matrices,
        adds blocks of them. Every step is off by up to half an eps of the partial sum; the largest of many such random
        walks is ADDED standard deviations long.

        A fused backward recomputes its weights as exp(logit - lse). Both are float32 sums that may be off by eps(fp32)
        times `logits`, independently; the plain formula, which keeps the weights, has no such error. Nor has it the
        error of a merge by the log-sum-exp, which matters where that is far from 0: `far` is its size there, else 0.
        """
        numbers = max(1, self.numbers)
        rms, error, mass, loose = (float(x) for x in np.sqrt(self.squares / numbers))
        eps = 2.0**-23 if self.name == "lse" else PRECISION[self.dtype].eps
        added = ADDED * math.sqrt(terms / 3) * 2.0**-24 * self.sum
        return OutputTolerance(
            plain_max=self.worst,
            plain_mean=self.total / numbers,
            plain_rms=error,
            rounding=2 * self.rounding + (8 * eps + 2.0**-23 * logits) * self.largest + added,
            rms=rms,
            rms_error=max(error, self._half_cap * max(rms, mass)) + loose + 2.0**-23 * far * rms,
            loose=self.loose,
        )

    @property
    def _half_cap(self) -> float:
        return PRECISION[self.dtype].cap / FACTOR

    def _write(self, place: int, name: str, values: Tensor, exact: bool, most: int | None = None) -> None:
        heads, rows, *width = values.shape
        if name not in self.arrays:
            kind = np.float64 if exact else np.float32
            shape = (self.count, heads, (self.most_rows if most is None else most) or rows, *width)
            self.arrays[name] = np.lib.format.open_memmap(self.path / f"{name}.npy", "w+", kind, shape)
        self.arrays[name][place][:, :rows] = values.numpy()


def tiles_of(rows: int) -> int:
    """The tiles of so many rows."""
    return -(-rows // TILE)


def tile_rms(numbers: Tensor) -> Tensor:
    """Root mean square of every tile of TILE rows: [heads, rows, width] -> [heads, tiles]."""
    return _root_mean(numbers.square().mean(-1))


def _root_mean(squares: Tensor) -> Tensor:
    """Root of the mean of every TILE rows: [..., rows] -> [..., tiles]."""
    import torch

    rows = squares.shape[-1]
    sums = torch.nn.functional.pad(squares, (0, -rows % TILE)).unflatten(-1, (-1, TILE)).sum(-1)
    counts = sums.new_full((tiles_of(rows),), TILE)
    counts[-1:] -= -rows % TILE
    roots: Tensor = (sums / counts).sqrt()
    return roots
