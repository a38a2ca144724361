"""The attention weights of the float64 reference, and statistics of each head."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention import input_file
from attnbench.attention.choices import Returns
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import ProblemError

TOP = 8  # number of largest weights whose mass is reported
COLLAPSE_KEYS = 256
COLLAPSE_WIDTHS = (16, 64, 256, 1024)
COLLAPSE_ROWS = 64
MAX_PAIRS = 2**26  # maximum number of weights of one problem


class Head(NamedTuple):
    """Statistics of the weights of one head: means over the rows with a visible key."""

    head: int
    entropy: float  # nats
    most: float  # entropy of equal weights on all visible keys, nats
    first: float  # the largest weight
    top: float  # the mass of the TOP largest
    sink: float  # the mass of key 0
    distance: float  # mean distance of a key from the diagonal, weighted, in tokens


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The weights of one sequence, [heads, seq_q, seq_kv]."""

    problem: Problem
    inputs: str
    weights: NDArray[np.float64]

    def heads(self) -> list[Head]:
        return [self._head(number) for number in range(len(self.weights))]

    def _head(self, number: int) -> Head:
        weights = self.weights[number]
        visible = self.problem.masking.visible(
            self.problem.grid, np.array(0), np.arange(weights.shape[0])[:, None], np.arange(weights.shape[1])[None, :]
        )
        rows = visible.any(axis=1)
        weights, visible = weights[rows], visible[rows]
        if not len(weights):
            raise ProblemError(f"mask {self.problem.mask!r}: no row has a visible key, so there are no weights")
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1.0)), 0.0)
        ordered = np.sort(weights, axis=1)[:, ::-1]
        diagonal = np.flatnonzero(rows)[:, None] + self.problem.grid.offset
        far = np.abs(np.arange(weights.shape[1])[None, :] - diagonal)
        mass = np.maximum(np.abs(weights).sum(axis=1), 1e-300)
        return Head(
            head=number,
            entropy=float(-terms.sum(axis=1).mean()),
            most=float(np.log(visible.sum(axis=1)).mean()),
            first=float(ordered[:, 0].mean()),
            top=float(ordered[:, :TOP].sum(axis=1).mean()),
            sink=float(weights[:, 0].mean()),
            distance=float(((np.abs(weights) * far).sum(axis=1) / mass).mean()),
        )

    def pooled(self, head: int, cells: int) -> NDArray[np.float64]:
        """Mean weights in a grid of at most `cells` x `cells`."""
        weights = self.weights[head]
        down, right = (np.linspace(0, n, min(cells, n) + 1).astype(int) for n in weights.shape)
        sums = np.add.reduceat(np.add.reduceat(weights, down[:-1], axis=0), right[:-1], axis=1)
        means: NDArray[np.float64] = sums / (np.diff(down)[:, None] * np.diff(right)[None, :])
        return means


def look(problem: Problem, inputs: str = "normal", seed: int = 0) -> Seen:
    """The weights of the first sequence of a problem. Raises ProblemError if there are more than MAX_PAIRS."""
    from attnbench.attention import autograd_reference
    from attnbench.attention.inputs import make

    if (pairs := problem.heads * problem.seq_q * problem.seq_kv) > MAX_PAIRS:
        raise ProblemError(f"{pairs:,} weights are too many: at most {MAX_PAIRS:,}; fewer --heads or --seq")
    alone = {"batch": 1, "requests": "", "shared_prefix": ""}
    plain = msgspec.structs.replace(problem, **alone, returns=Returns.WEIGHTS, dropout=0.0, scope="core")
    tensors = make(plain, seed, inputs)
    heads = []
    for head in range(plain.kv_heads):
        weights = autograd_reference.forward_group(
            plain, tensors.q, tensors.k, tensors.v, (0, head), None, None
        ).weights
        assert weights is not None
        heads.append(weights.numpy())
    return Seen(problem=plain, inputs=inputs, weights=np.concatenate(heads))


def shape_of(path: Path) -> dict[str, int]:
    """The shapes of q, k and v in a safetensors file. Raises ProblemError for a file that does not fit."""
    shapes = {name: tensor.shape for name, tensor in input_file.summary(path).items()}
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ProblemError(f"{path}: {name} is {list(shape)}; needs [batch, heads, seq, head_dim]")
    (_, heads, seq_q, head_dim), (_, kv_heads, seq_kv, _) = shapes["q"], shapes["k"]
    return {"batch": shapes["q"][0], "heads": heads, "kv_heads": kv_heads, "seq_q": seq_q, "seq_kv": seq_kv,
            "head_dim": head_dim, "head_dim_v": shapes["v"][3]}  # fmt: skip


class Collapse(NamedTuple):
    """Mean entropy of a row over 256 keys, in nats, with and without the scale 1 / sqrt(head_dim)."""

    head_dim: int
    unscaled: float
    scaled: float


def collapse(widths: Sequence[int] = COLLAPSE_WIDTHS, seed: int = 0) -> list[Collapse]:
    """Entropy with and without scaling: without it, a wide head puts almost all weight on one key."""
    make_problem: Callable[..., Problem] = Problem
    rows = []
    for width in widths:
        shape = {"seq_q": COLLAPSE_ROWS, "seq_kv": COLLAPSE_KEYS, "heads": 4, "head_dim": width}
        entropies = []
        for scale in (1.0, None):
            heads = look(make_problem(**shape, score=Score(scale=scale)), seed=seed).heads()
            entropies.append(math.fsum(head.entropy for head in heads) / len(heads))
        rows.append(Collapse(width, *entropies))
    return rows
