"""What `attnbench viz --weights` looks at: the weights of the reference, in float64, and what can be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention.problem import Problem, Returns
from attnbench.attention.scores import Score
from attnbench.errors import ProblemError

TOP = 8  # keys whose mass is told beside that of the first
COLLAPSE_KEYS = 256
COLLAPSE_WIDTHS = (16, 64, 256, 1024)
COLLAPSE_ROWS = 64
PAIRS_MOST = 2**26  # weights that are looked at in one go


class Head(NamedTuple):
    """What can be said of the weights of one head: means over the rows that see a key."""

    head: int
    entropy: float  # nats
    most: float  # the entropy of equal weights on all keys that a row sees
    first: float  # the largest weight
    top: float  # the mass of the TOP largest
    sink: float  # the mass of key 0
    distance: float  # of a key from the diagonal one, weighed


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The weights of one sequence, [heads, seq_q, seq_kv]."""

    problem: Problem
    inputs: str
    weights: NDArray[np.float64]

    def heads(self) -> list[Head]:
        """The figures of every head."""
        return [self._head(number) for number in range(len(self.weights))]

    def _head(self, number: int) -> Head:
        weights = self.weights[number]
        visible = self.problem.masking.visible(
            self.problem.grid, np.array(0), np.arange(weights.shape[0])[:, None], np.arange(weights.shape[1])[None, :]
        )
        rows = visible.any(axis=1)
        weights, visible = weights[rows], visible[rows]
        if not len(weights):
            raise ProblemError(f"mask {self.problem.mask!r}: no row sees a key, so there are no weights to look at")
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
        """The mean weight in each cell of a raster of at most `cells` to a side."""
        weights = self.weights[head]
        down, right = (np.linspace(0, n, min(cells, n) + 1).astype(int) for n in weights.shape)
        sums = np.add.reduceat(np.add.reduceat(weights, down[:-1], axis=0), right[:-1], axis=1)
        found: NDArray[np.float64] = sums / (np.diff(down)[:, None] * np.diff(right)[None, :])
        return found


def look(problem: Problem, inputs: str = "normal", seed: int = 0) -> Seen:
    """The weights of the first sequence of a problem. ProblemError where they are too many to look at."""
    from attnbench.attention import general
    from attnbench.attention.inputs import make

    if (pairs := problem.heads * problem.seq_q * problem.seq_kv) > PAIRS_MOST:
        raise ProblemError(f"{pairs:,} weights are too many to look at: at most {PAIRS_MOST:,}; fewer --heads or --seq")
    plain = msgspec.structs.replace(problem, batch=1, lengths=(), returns=Returns.WEIGHTS, dropout=0.0, scope="core")
    made = make(plain, seed, inputs)
    found = []
    for head in range(plain.kv_heads):
        weights = general.forward_group(plain, made.q, made.k, made.v, (0, head), None, None).weights
        assert weights is not None
        found.append(weights.numpy())
    return Seen(problem=plain, inputs=inputs, weights=np.concatenate(found))


def shape_of(path: Path) -> dict[str, int]:
    """The shape of a problem whose q and k a safetensors file holds. ProblemError for a file that does not fit."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as held:
            shapes = {name: list(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ProblemError(f"--inputs file:{path}: cannot be read: {error}") from error
    for name in "qk":
        if len(shapes.get(name, ())) != 4:
            told = f"{name} is {shapes[name]}" if name in shapes else f"no tensor {name!r}"
            raise ProblemError(f"--inputs file:{path}: {told}; needs [batch, heads, seq, head_dim]")
    (_, heads, seq_q, head_dim), (_, kv_heads, seq_kv, _) = shapes["q"], shapes["k"]
    return {"batch": shapes["q"][0], "heads": heads, "kv_heads": kv_heads, "seq_q": seq_q, "seq_kv": seq_kv,
            "head_dim": head_dim, "head_dim_v": shapes.get("v", [0, 0, 0, head_dim])[3]}  # fmt: skip


class Collapse(NamedTuple):
    """Mean entropy of a row over 256 keys, in nats, with and without the scale 1 / sqrt(head_dim)."""

    head_dim: int
    unscaled: float
    scaled: float


def collapse(widths: Sequence[int] = COLLAPSE_WIDTHS, seed: int = 0) -> list[Collapse]:
    """Why attention is scaled: without it one key takes all the weight, the more the wider a head is."""
    found = []
    for width in widths:
        shape: dict[str, Any] = {"seq_q": COLLAPSE_ROWS, "seq_kv": COLLAPSE_KEYS, "heads": 4, "head_dim": width}
        entropies = []
        for scale in (1.0, None):
            heads = look(Problem(**shape, score=Score(scale=scale)), seed=seed).heads()
            entropies.append(math.fsum(head.entropy for head in heads) / len(heads))
        found.append(Collapse(width, *entropies))
    return found
