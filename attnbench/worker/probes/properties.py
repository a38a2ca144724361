"""Properties of a correct kernel: sensitivity to its inputs, determinism, batch invariance, second derivatives."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.attention.choices import Mode
from attnbench.backends import scope
from attnbench.records.case import Case
from attnbench.worker.prepared_case import PreparedCase, first_output
from attnbench.worker.probes.outcome import Figures

if TYPE_CHECKING:
    from torch import Tensor

SIGMAS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the noise, in units of the input's root mean square
STEP = 1e-2  # of an adversarial step, in units of the norm of the inputs
REPEATS = 5
POSITIONS = 3  # of one sequence in a batch


def noise(case: PreparedCase) -> Figures:
    """Relative change of the output over the relative change of q, k and v, for noise of several sizes.

    The change of the inputs is taken after rounding to their dtype: in bf16, noise of 1e-4 rounds to nothing.
    """
    import torch

    before, clean = _copies(case), _out(case, case.q, case.k, case.v)
    generator = torch.Generator().manual_seed(case.procedure.seed + 1)
    gains: dict[str, float | None] = {}
    for sigma in SIGMAS:
        moved = []
        for tensor in before:
            wide = tensor.float()
            size = wide.square().mean().sqrt()
            step = torch.randn(tensor.shape, generator=generator).to(tensor.device) * size * sigma
            moved.append((wide + step).to(tensor.dtype))
        gains[f"{sigma:g}"] = _gain(before, moved, clean, _out(case, *moved))
    return {"gain": gains}


def adversarial(case: PreparedCase) -> Figures:
    """Gain of a step along the gradient, a lower bound of the local Lipschitz constant (https://arxiv.org/abs/2006.04710),
    beside that of a random step of the same length.

    The direction is one power iteration on the Jacobian: J^T J of a random step.
    """
    import torch

    before, clean = _copies(case), _out(case, case.q, case.k, case.v)
    generator = torch.Generator().manual_seed(case.procedure.seed + 2)
    sizes = [float(tensor.float().square().mean().sqrt()) for tensor in before]
    if not all(sizes):
        raise ValueError("an input is zero: no step is relative to it")
    random = [torch.randn(tensor.shape, generator=generator).to(tensor.device) for tensor in before]
    randomly_moved = _moved(before, random, sizes)
    change = _out(case, *randomly_moved) - clean
    leaves = [tensor.detach().clone().requires_grad_() for tensor in before]
    out = first_output(case.attend(*leaves))
    if not out.requires_grad:
        raise RuntimeError("the backend gives no gradient")
    # J^T times the change of the output that the random step made.
    direction = (change / change.norm().clamp_min(1e-30)).to(out.dtype).reshape(out.shape)
    with case.state.backend_code():
        gradients = torch.autograd.grad(out, leaves, direction, materialize_grads=True)
    # Step and gradient are in units of the size of each input.
    scaled = [size * gradient.float() for size, gradient in zip(sizes, gradients, strict=True)]
    worst = _moved(before, scaled, sizes)
    return {
        "gain": _gain(before, worst, clean, _out(case, *worst)),
        "random_gain": _gain(before, randomly_moved, clean, clean + change),
    }


def determinism(case: PreparedCase) -> Figures:
    """Whether the same inputs give the same bits, in out and in gradients."""
    import torch

    first: list[Tensor] | None = None
    worst = 0.0
    for _ in range(REPEATS):
        case.call_once(case.state.timed_calls())
        again = [tensor.detach().clone() for tensor in case.named_outputs().values()]
        if first is not None and not all(map(torch.equal, first, again)):
            worst = max(worst, *map(_largest_difference, first, again))
        first = first or again
    return {"repeats": REPEATS, "equal": worst == 0.0, "largest": worst}


def batch(case: PreparedCase) -> Figures:
    """Batch invariance: whether a sequence gives the same bits alone and at every position of a batch.

    https://thinkingmachines.ai/blog/defeating-nondeterminism-in-llm-inference/
    """
    import numpy as np
    import torch

    problem = case.problem
    if problem.requests or case.prepared.stored:
        raise ValueError("sequences of different lengths, or keys in pages")
    several = replace(problem, batch=POSITIONS)
    rows = several.masking.rows(several.grid)
    if any(bound.shape[0] > 1 and (np.asarray(bound) != np.asarray(bound)[:1]).any() for bound in rows):
        raise ValueError("the mask differs from sequence to sequence")
    outputs = []
    for count in (1, POSITIONS):
        batched = Case(problem=replace(problem, batch=count), backend=case.case.backend, mode=Mode.FWD)
        if objections := case.backend.objections(batched, case.q.device.type, case.instrument.capability):
            raise ValueError("; ".join(objections))
        copies = [tensor[:1].repeat(count, 1, 1, 1) for tensor in case.qkv]
        with case.state.backend_code(), torch.no_grad():
            prepared = scope.prepare(case.backend, batched, str(case.q.device))
            outputs.append(first_output(prepared.call(*copies)).clone())
    alone, together = outputs
    worst = _largest_difference(alone, together)
    return {"positions": POSITIONS, "equal": worst == 0.0, "largest": worst}


def double_backward(case: PreparedCase) -> Figures:
    """Whether the gradient is differentiable, and the seconds of one second derivative."""
    import torch

    leaves = [tensor.detach().clone().requires_grad_() for tensor in case.qkv]
    out = first_output(case.attend(*leaves))
    dout = case.dout.reshape(out.shape).to(out.dtype)
    with case.state.backend_code():
        first = torch.autograd.grad(out, leaves, dout, create_graph=True)
    if not any(gradient.requires_grad for gradient in first):
        raise RuntimeError("the gradient has no graph")
    started = time.perf_counter()
    size = torch.stack([gradient.float().square().sum() for gradient in first]).sum()
    with case.state.timed_calls():
        second = torch.autograd.grad(size, leaves, allow_unused=True)
        case.instrument.synchronize()
    seconds = time.perf_counter() - started
    finite = all(bool(gradient.isfinite().all()) for gradient in second if gradient is not None)
    return {"seconds": seconds, "finite": finite}


def quantisation(case: PreparedCase) -> Figures:
    """Relative change of the output when k and v are stored in int8 or fp8, and their bytes."""
    import torch

    from attnbench.attention import cost
    from attnbench.attention.choices import KvDtype
    from attnbench.attention.kv_cache import quantized

    problem = case.problem
    if problem.kv_dtype is not KvDtype.SAME or case.prepared.stored:
        raise ValueError("k and v are quantised already, or in pages")
    q, k, v = _copies(case)
    clean = _out(case, q, k, v)
    error: dict[str, float] = {}
    sizes = {problem.dtype.value: cost.kv_bytes(problem)}
    for kind in (KvDtype.INT8, KvDtype.FP8_E4M3):
        k_stored, v_stored = (quantized(tensor.float().cpu(), kind).to(tensor) for tensor in (k, v))
        change = _out(case, q, k_stored, v_stored) - clean
        error[kind.value] = float(torch.linalg.vector_norm(change) / torch.linalg.vector_norm(clean))
        sizes[kind.value] = cost.kv_bytes(replace(problem, kv_dtype=kind))
    return {"error": error, "bytes": sizes}


def soft(case: PreparedCase) -> Figures:
    """Relative error of a weighting that leaves keys out, against softmax over all keys, and the share that it keeps.

    Both are computed by `naive` on the inputs of the case. An adaptive span is compared with no span.
    """
    import torch

    from attnbench import backends
    from attnbench.attention.biases import AdaptiveSpan
    from attnbench.attention.choices import Returns

    problem = case.problem
    spans = isinstance(problem.bias, AdaptiveSpan)
    if (problem.weighting == "softmax" and not spans) or problem.scope != "core" or case.prepared.stored:
        raise ValueError("softmax over all visible keys already")
    plain = replace(problem, returns=Returns.WEIGHTS, dropout=0.0)
    score = replace(problem.score, bias="none") if spans else problem.score
    full = replace(plain, weighting="softmax", score=score)
    naive, device = backends.load("naive"), str(case.q.device)
    other_layout = case.backend.layout is not naive.layout
    qkv = [tensor.transpose(1, 2) if other_layout else tensor for tensor in _copies(case)]
    with torch.no_grad():
        (out, weights), (dense, dense_weights) = (
            scope.prepare(naive, Case(problem=variant, backend="naive"), device).call(*qkv) for variant in (plain, full)
        )
    chosen, visible = int((weights != 0).sum()), int((dense_weights > 0).sum())
    return {"error": float((out - dense).float().norm() / dense.float().norm()), "kept": chosen / max(1, visible)}


def _out(case: PreparedCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return first_output(case.attend_without_gradients(q, k, v)).float().clone()


def _copies(case: PreparedCase) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in case.qkv]


def _largest_difference(tensor: Tensor, other: Tensor) -> float:
    return float((tensor.float() - other.float()).abs().max())


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.float().square().sum()) for tensor in tensors))


def _moved(before: Sequence[Tensor], direction: Sequence[Tensor], sizes: Sequence[float]) -> list[Tensor]:
    """Inputs after a step of length STEP, each in units of its size."""
    step = STEP * math.sqrt(sum(tensor.numel() for tensor in before)) / max(_norm(direction), 1e-30)
    moved = zip(before, direction, sizes, strict=True)
    return [(tensor.float() + step * size * way).to(tensor.dtype) for tensor, way, size in moved]


def _gain(before: Sequence[Tensor], after: Sequence[Tensor], clean: Tensor, noisy: Tensor) -> float | None:
    """Relative change of the output over that of the inputs, each in units of its own size.

    None if no input changed, if one of them is zero, or if the output is not finite.
    """
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if old.numel()]
    moves = [_norm([new.float() - old.float()]) for old, new in pairs]
    of_in, of_out = [_norm([old]) for old, _ in pairs], float(clean.norm())
    if not any(moves) or not all(of_in) or not of_out:
        return None
    moved = math.sqrt(sum((move / size) ** 2 for move, size in zip(moves, of_in, strict=True)) / len(moves))
    gain = float((noisy - clean).norm()) / of_out / moved
    return gain if math.isfinite(gain) else None
