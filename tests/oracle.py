"""Attention in float64 by einsum, independent of attnbench, which backends are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch

from tests.attention.masks import definitions

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

    from attnbench.attention.problem import Problem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WITHIN = {"fp32": 2e-5, "bf16": 6e-2, "fp16": 8e-3}


def drawn(problem: Problem) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random q, k, v and dout of a problem."""
    # Not torch.manual_seed, which formats the stack of calls for each kind of device that torch does not see.
    generator = torch.Generator().manual_seed(7)
    dtype = DTYPES[problem.dtype]
    shapes = (
        (*problem.shape_q, problem.head_dim),
        (*problem.shape_kv, problem.head_dim),
        (*problem.shape_kv, problem.head_dim_v),
        (*problem.shape_q, problem.head_dim_v),
    )
    *qkv, dout = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return qkv, dout


def attend(problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse; the mask is a tensor of all pairs. Requests are computed one by one."""
    if problem.requests:
        parts = [
            attend(part, q[:, :, queries], k[:, :, keys], v[:, :, keys])
            for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True)
        ]
        out, lse = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
        return out, lse
    q, k, v = (tensor.double() for tensor in (q, k, v))
    sharing = problem.heads // problem.kv_heads
    k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
    score = problem.score
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * (score.scale or problem.head_dim**-0.5)
    if score.softcap:
        logits = score.softcap * torch.tanh(logits / score.softcap)
    logits = logits / (score.temperature or 1.0)
    seen = visible(problem)
    logits = logits.masked_fill(~seen, -1e30)
    out = torch.einsum("bhij,bhjd->bhid", logits.softmax(-1) * seen, v)
    return out, torch.where(seen.any(-1), logits.logsumexp(-1), torch.tensor(-math.inf, dtype=torch.double))


def visible(problem: Problem) -> torch.Tensor:
    """The mask from its text: [batch, 1, seq_q, seq_kv]. Random patterns are those of attnbench, tested elsewhere."""
    i = torch.arange(problem.seq_q)[:, None]
    j = torch.arange(problem.seq_kv)[None, :]
    d = i + problem.seq_kv - problem.seq_q
    seen = torch.ones(problem.batch, 1, problem.seq_q, problem.seq_kv, dtype=torch.bool)
    terms = dict(term.partition(":")[::2] for term in problem.mask.split("+"))
    if "causal" in terms:
        seen &= j <= d
    if "window" in terms:
        left, _, right = terms["window"].partition(":")
        reach = 0 if "causal" in terms else int(right or left)
        seen &= (j >= d - int(left)) & (j <= d + reach)
    if "prefix" in terms:
        seen &= (j < int(terms["prefix"])) | (j <= d)
    if "document" in terms:
        count, rest = divmod(problem.seq_q, int(terms["document"]))
        owner = torch.repeat_interleave(
            torch.arange(int(terms["document"])),
            torch.tensor([count + (n < rest) for n in range(int(terms["document"]))]),
        )
        seen &= owner[i] == owner[j]
    if "padding" in terms:
        share = float(terms["padding"])
        for b in range(problem.batch):
            length = max(1, math.floor(problem.seq_kv * (1 - 2 * share * (b + 0.5) / problem.batch) + 0.5))
            seen[b] &= j < length
    distance = d - j
    if "dilated" in terms:
        seen &= distance.remainder(int(terms["dilated"])) == 0
    if "strided" in terms:
        stride = int(terms["strided"])
        seen &= (distance >= 0) & ((distance < stride) | (distance.remainder(stride) == 0))
    if "longformer" in terms:
        width, _, first = terms["longformer"].partition(":")
        count = int(first or 1)
        seen &= (distance.abs() <= int(width) // 2) | (i < count) | (j < count)
    for word in set(terms) & set(definitions.KEYS):
        seen &= torch.from_numpy(definitions.table(word, terms[word], problem.seq_q, problem.seq_kv))
    if {"blocksparse", "bigbird", "graph"} & set(terms):
        seen &= torch.from_numpy(problem.masking.pattern.visible(problem.grid, 0, i.numpy(), j.numpy()))
    return seen


def traced(yes: bool) -> AbstractContextManager[object]:
    """Whether dynamo traces the masks and scores of flex:eager, as it does for users, or torch calls them directly.

    The functions that compute are the same. Tracing takes a fourth of a second for each mask, score and shape.
    """
    from torch.nn.attention import flex_attention

    return patch.object(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", not yes, create=True)


def forward_grid(problems: Iterable[str], names: Sequence[str]) -> Iterator[ParameterSet]:
    """Every combination. Of flex, which takes seconds, each problem has one dtype here and all in `make test-slow`."""
    for number, problem in enumerate(problems):
        for place, dtype in enumerate(DTYPES):
            for name in names:
                if name != "flex:eager" or number % len(DTYPES) == place:
                    yield pytest.param(problem, dtype, name)
                if name == "flex:eager":
                    whole = f"{problem}-{dtype}-{name}-traced"
                    yield pytest.param(problem, dtype, name, marks=[pytest.mark.slow], id=whole)


def whole_grid(request: pytest.FixtureRequest) -> bool:
    """Whether a test of `forward_grid` runs in `make test-slow`, where every problem of flex is traced."""
    return request.node.get_closest_marker("slow") is not None
