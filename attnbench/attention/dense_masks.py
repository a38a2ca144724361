"""Masks and biases as tensors over all pairs of queries and keys, for libraries that take no other form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.attention import biases
from attnbench.attention.masks import PATTERNS
from attnbench.attention.masks.dense import Dense
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Features of a library that takes such tensors. Rows that see no key are apart: some libraries return NaN for them.
MASKS = frozenset({"causal", "window", "prefix", "document", "padding", "dense"}) | PATTERNS
BIASES = frozenset({word for word, kind in biases.BIASES.items() if issubclass(kind, biases.Constant)} | {"dense_bias"})


def is_top_left(problem: Problem) -> bool:
    """Whether a causal flag that is aligned to the top left is exactly this mask."""
    return problem.mask == "causal" and problem.seq_q == problem.seq_kv


def sees_all(problem: Problem) -> bool:
    """Whether every query sees every key, so that no mask is needed."""
    if problem.mask == "none":
        return True
    every = problem.batch * problem.seq_q * problem.seq_kv
    return not problem.masking.find(Dense) and problem.masking.pairs(problem.grid) == every


def visible(problem: Problem) -> Tensor:
    """The mask as booleans, True where visible: [batch or 1, 1, seq_q, seq_kv]."""
    import torch

    return torch.from_numpy(problem.masking.dense(problem.grid)).unsqueeze(1)


def added(problem: Problem, dtype: torch.dtype) -> Tensor:
    """A constant bias, and -inf where a key is hidden: [batch or 1, heads or 1, seq_q, seq_kv]."""
    import torch

    values = torch.zeros(1, 1, 1, dtype=torch.float64, device="cpu")
    if isinstance(problem.bias, biases.Constant):
        values = problem.bias.dense_tensor(problem)
    return values[None].masked_fill(~visible(problem), float("-inf")).to(dtype)
