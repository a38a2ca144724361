"""attnbench's reference for all groups of a problem at once; the package computes one group at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from attnbench.attention import reference
from attnbench.attention.blocks import Forward, Gradients, groups

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.attention.problem import Problem


def attend(problem: Problem, *qkv: Tensor) -> Forward:
    """Exact attention in float64: out [batch, heads, seq_q, head_dim_v], lse [batch, heads, seq_q]."""
    return Forward(*_joined(problem, (reference.attend_group(problem, *qkv, group) for group in groups(problem))))


def gradients(problem: Problem, *qkv_dout: Tensor) -> Gradients:
    """Exact gradients of sum(out * dout), in float64."""
    parts = (reference.gradients_group(problem, *qkv_dout, group) for group in groups(problem))
    return Gradients(*_joined(problem, parts))


def attend_same_dtype(problem: Problem, *qkv: Tensor) -> Forward:
    """The same-dtype reference, as float32."""
    parts = (reference.attend_group_same_dtype(problem, *qkv, group)[0] for group in groups(problem))
    return Forward(*_joined(problem, parts))


def gradients_same_dtype(problem: Problem, *qkv_dout: Tensor) -> Gradients:
    """The gradients of the same-dtype reference, as float32."""
    parts = (reference.gradients_group_same_dtype(problem, *qkv_dout, group)[0] for group in groups(problem))
    return Gradients(*_joined(problem, parts))


def _joined(problem: Problem, parts: Iterable[tuple[Tensor, ...]]) -> Iterable[Tensor]:
    for tensors in zip(*parts, strict=True):
        yield torch.cat(tensors).reshape(problem.batch, -1, *tensors[0].shape[1:])
