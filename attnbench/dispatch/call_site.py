"""`attention`: the key of a call, and the call that a table keeps for it."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.dispatch import calls
from attnbench.dispatch.table import Table, load
from attnbench.records.case import Case, problem_label

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None,
    table: Table | str | Path | None = None,
) -> Tensor:  # fmt: skip
    """Exact attention by the backend that the table recommends, or by torch's SDPA where it recommends none.

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim]; v: [batch, kv_heads, seq_kv,
    head_dim_v]; out: [batch, heads, seq_q, head_dim_v]. `causal` is aligned to the last query and key. The file of
    a table is read once. Without a table that of the file ATTNBENCH_DISPATCH is used. Under torch.compile and without
    any table it is SDPA. ValueError names tensors that do not fit together, TypeError an argument of a wrong type.
    """
    import torch

    if torch.compiler.is_compiling():
        return calls.sdpa(q, k, v, causal, scale)
    if not isinstance(table, Table):
        table = _table_of_environment() if table is None else _table_of_file(table)
    if table is None:
        _check_types(q, k, v, causal, scale)
        return calls.sdpa(q, k, v, causal, scale)
    try:
        gradients = (q.requires_grad or k.requires_grad or v.requires_grad) and torch.is_grad_enabled()
        autocast: bool = torch._C._is_any_autocast_enabled()
        dense = q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        key = (
            q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, causal, scale, gradients, autocast, dense,
        )  # fmt: skip
        call = table.calls.get(key)
    except (AttributeError, TypeError, IndexError):
        _check_types(q, k, v, causal, scale)
        raise
    if call:
        return call(q, k, v)
    _check_types(q, k, v, causal, scale)
    if 0 in (*q.shape, *k.shape, *v.shape):
        return calls.sdpa(q, k, v, causal, scale)
    case = _case(q, k, v, causal, scale, gradients)
    return table.first_call(key, case, _label(case, q.dtype), _objection(q, autocast, dense), (q, k, v))


@cache
def _table_of_environment() -> Table | None:
    path = os.environ.get("ATTNBENCH_DISPATCH")
    return load(path) if path else None


@cache
def _table_of_file(path: str | Path) -> Table:
    if not isinstance(path, str | Path):
        raise TypeError(f"table is of type {type(path).__name__}: must be a Table, or the path of its file")
    return load(path)


def _check_types(q: object, k: object, v: object, causal: object, scale: object) -> None:
    """Raise TypeError, which names the argument, for one of a wrong type."""
    import torch

    for name, value in (("q", q), ("k", k), ("v", v)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is of type {type(value).__name__}: must be a tensor")
    if not isinstance(causal, bool):
        raise TypeError(f"causal={causal!r}: must be True or False")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
        raise TypeError(f"scale={scale!r}: must be a number or None")


@cache
def _measured_dtypes() -> dict[torch.dtype, Dtype]:
    import torch

    return {torch.float32: Dtype.FP32, torch.float16: Dtype.FP16, torch.bfloat16: Dtype.BF16}


def _label(case: Case, dtype: torch.dtype) -> str:
    """The case in words, with the dtype of the call where no case has it."""
    label = problem_label(case.problem, case.mode)
    if dtype in _measured_dtypes():
        return label
    return label.replace(f" {case.problem.dtype} ", f" {str(dtype).removeprefix('torch.')} ")


def _objection(q: Tensor, autocast: bool, dense: bool) -> str:
    """Why no measured problem is like the call; empty: one may be."""
    if q.dtype not in _measured_dtypes():
        return f"{str(q.dtype).removeprefix('torch.')} is not measured"
    if autocast:
        return "torch.autocast casts the inputs of SDPA"
    return "" if dense else "the last stride of q, k or v is not 1"


def _case(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, gradients: bool) -> Case:
    """The case of a call. Raises ValueError for tensors that do not fit together, ProblemError for their sizes."""
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: must be [batch, heads, seq, head_dim]")
        if (tensor.dtype, tensor.device) != (q.dtype, q.device):
            here, there = f"{tensor.dtype} on {tensor.device}", f"{q.dtype} on {q.device}"
            raise ValueError(f"{name} is {here}: must be as q, {there}")
    if k.shape[:3] != v.shape[:3] or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        raise ValueError(f"{shapes}: batch and the head_dim of q and k, heads and seq of k and v must be equal")
    batch, heads, seq_q, head_dim = q.shape
    problem = Problem(
        batch=batch, heads=heads, kv_heads=k.shape[1], seq_q=seq_q, seq_kv=k.shape[2], head_dim=head_dim,
        head_dim_v=v.shape[3], dtype=_measured_dtypes().get(q.dtype, Dtype.FP32), mask="causal" if causal else "none",
        score=Score(scale=scale),
    )  # fmt: skip
    return Case(problem=problem, backend="sdpa", mode=Mode.FWD_BWD if gradients else Mode.FWD)
