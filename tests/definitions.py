"""Second implementations of every mechanism, element by element in float64, which the fast ones are compared with."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from attnbench.attention import fixed_random
from attnbench.attention.logits import additive, sink_logits
from attnbench.attention.problem import Problem
from tests import oracle


def bias(problem: Problem, h: int, i: int, j: int, q: np.ndarray, k: np.ndarray) -> float:
    """The bias of one pair, by its definition."""
    word, *values = problem.score.bias.removesuffix(":dense").split(":")
    distance = i + problem.seq_kv - problem.seq_q - j  # above 0: the key is before the diagonal
    if word == "alibi":
        return -slope(problem.heads, h) * abs(distance)
    if word == "t5":
        one_sided = "causal" in problem.mask
        return float(fixed_random.normal(f"t5 32 {problem.heads}", 32, problem.heads)[bucket(-distance, one_sided), h])
    if word == "span":
        size, ramp = int(values[0]), int(values[1])
        soft = min(max((ramp + size - abs(distance)) / ramp, 0.0), 1.0)
        return math.log(soft) if soft else -math.inf
    scale = problem.scale * problem.temperature
    if word == "shaw":
        clip = int(values[0])
        table = problem.bias.table(problem)[0].numpy()
        return scale * float(q @ table[min(max(-distance, -clip), clip) + clip])
    assert word == "xl"
    u, v = (vector.numpy()[h] for vector in problem.bias.vectors(problem))
    width = problem.heads * problem.head_dim
    wave = sinusoid(distance, width)
    projected = wave @ fixed_random.projection("xl r", width, width).numpy()
    vector = projected[h * problem.head_dim : (h + 1) * problem.head_dim]
    return scale * float(u @ k + (q + v) @ vector)


def slope(heads: int, h: int) -> float:
    """The slopes of the ALiBi paper: those of the power of two below, then every other one of the power above."""
    power = 2 ** math.floor(math.log2(heads))
    return 2 ** (-8 * (h + 1) / power) if h < power else 2 ** (-4 * (2 * (h - power) + 1) / power)


def bucket(relative: int, one_sided: bool, buckets: int = 32, max_distance: int = 128) -> int:
    """`_relative_position_bucket` of the published T5; `relative` is the index of the key minus that of the query."""
    first = 0
    if one_sided:
        distance = max(-relative, 0)
    else:
        buckets //= 2
        first, distance = (buckets if relative > 0 else 0), abs(relative)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    logarithmic = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact) + 1e-9)
    return first + min(logarithmic, buckets - 1)


def weigh(weighting: str, logits: np.ndarray) -> np.ndarray:
    """The weights of one row; the logits of hidden keys are -inf."""
    visible = np.isfinite(logits)
    weights = np.zeros(len(logits))
    if not visible.any():
        return weights
    soft = np.where(visible, np.exp(logits - logits[visible].max()), 0.0)
    soft /= soft.sum()
    order = sorted(np.flatnonzero(visible), key=lambda j: (-logits[j], j))
    word, _, value = weighting.partition("=" if "=" in weighting else ":")
    if weighting == "softmax":
        return soft
    if weighting in ("hard:argmax", "hard:sample"):
        weights[order[0]] = 1.0
    elif word == "hard:topk":
        top = order[: int(value)]
        weights[top] = soft[top] / soft[top].sum()
    elif word == "topp":
        top = []
        for j in order:
            top.append(j)
            if soft[top].sum() >= float(value):
                break
        weights[top] = soft[top] / soft[top].sum()
    elif word == "raw":
        weights[visible] = logits[visible]
    elif word == "sigmoid":
        weights[visible] = 1 / (1 + np.exp(-logits[visible]))
    else:
        assert word == "sparsemax"
        weights[visible] = onto_simplex(logits[visible])
    return weights


def onto_simplex(point: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by bisection of the threshold."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(point - (low + high) / 2, 0)


def attend(problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[np.ndarray, ...]:
    """out, lse and weights of a small problem, pair by pair."""
    p = problem
    visible = np.broadcast_to(oracle.visible(p).numpy(), (p.batch, 1, p.seq_q, p.seq_kv))
    q, k, v = (tensor.double().numpy() for tensor in (q, k, v))
    weights = np.zeros((p.batch, p.heads, p.seq_q, p.seq_kv))
    lse = np.full((p.batch, p.heads, p.seq_q), -np.inf)
    out = np.zeros((p.batch, p.heads, p.seq_q, p.head_dim_v))
    sharing = p.heads // p.kv_heads
    sinks = sink_logits(p).numpy() if p.sinks else None
    keys = np.zeros(k.shape)
    for b, h, j in np.ndindex(p.batch, p.kv_heads, p.seq_kv):
        keys[b, h, j] = positioned(p, k[b, h, j], j, False)
    for b, h, i in np.ndindex(p.batch, p.heads, p.seq_q):
        query = positioned(p, q[b, h, i], i + p.seq_kv - p.seq_q, True)
        logits = np.full(p.seq_kv, -np.inf)
        for j in np.flatnonzero(visible[b, 0, i]):
            key = keys[b, h // sharing, j]
            x = p.scale * p.temperature * similarity(p, query, key)
            x = p.score.softcap * math.tanh(x / p.score.softcap) if p.score.softcap else x
            x += bias(p, h, i, j, query, key) if p.score.bias != "none" else 0.0
            logits[j] = x / p.temperature
        with np.errstate(divide="ignore"):
            extra = np.exp(sinks[h]) if p.sinks else 0.0
            lse[b, h, i] = np.log(np.exp(logits).sum() + extra)
        row = weigh(p.weighting, logits)
        if p.sinks and np.isfinite(logits).any():
            row = np.exp(logits - lse[b, h, i])
        weights[b, h, i] = row
        out[b, h, i] = row @ v[b, h // sharing]
    return out, lse, weights


def positioned(problem: Problem, vector: np.ndarray, place: int, is_query: bool) -> np.ndarray:
    """A query or a key with its position embedding, normalised or projected for its score."""
    width = len(vector)
    if problem.positions == "rope":
        speeds = [10000 ** (-2 * c / width) for c in range(width // 2)]
        rotated = vector.copy()
        for c, speed in enumerate(speeds):
            number = complex(vector[c], vector[c + width // 2]) * complex(
                math.cos(place * speed), math.sin(place * speed)
            )
            rotated[c], rotated[c + width // 2] = number.real, number.imag
        vector = rotated
    elif problem.positions == "sinusoidal":
        vector = vector + sinusoid(place, width)
    if problem.score.similarity == "cosine":
        return vector / np.linalg.norm(vector)
    if problem.score.similarity == "bilinear" and is_query:
        return vector @ fixed_random.projection("bilinear", width, width).numpy()
    return vector


@cache
def sinusoid(place: int, width: int) -> np.ndarray:
    """The sinusoidal embedding of https://arxiv.org/abs/1706.03762, section 3.5."""
    angles = [place / 10000 ** (2 * (c // 2) / width) for c in range(width)]
    return np.array([math.cos(angle) if c % 2 else math.sin(angle) for c, angle in enumerate(angles)])


def similarity(problem: Problem, query: np.ndarray, key: np.ndarray) -> float:
    """The similarity, not scaled."""
    if problem.score.similarity == "additive":
        of_q, of_k, weight = (tensor.numpy() for tensor in additive(problem))
        return float(np.tanh(query @ of_q + key @ of_k) @ weight)
    return float(query @ key)
