"""Questions about a right output: how much it follows its inputs, and whether it is the same again.

A probe asks one prepared case, and gives figures by name, or `absent` with the reason why it has none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from attnbench.attention.problem import Mode
from attnbench.backends import around
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.loaded import Loaded

SIGMAS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the noise, in units of the input's root mean square
STEP = 1e-2  # of an adversarial step, in units of the norm of the inputs
REPEATS = 5
POSITIONS = 3  # of one sequence in a batch

Figures = dict[str, Any]
Triple = tuple["Tensor", "Tensor", "Tensor"]


def run(names: Sequence[str], loaded: Loaded) -> dict[str, Figures]:
    """The figures of each probe. What a backend cannot do is said, and ends nothing."""
    found: dict[str, Figures] = {}
    for name in names:
        try:
            found[name] = PROBES[name](loaded)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            found[name] = {"absent": " ".join(str(error).split())[:200] or type(error).__name__}
        loaded.fill(loaded.procedure.inputs)
    return found


def noise(loaded: Loaded) -> Figures:
    """Relative change of the output over the relative change of q, k and v, for noise of several sizes.

    The change of the inputs is the one that their dtype let through: in bf16 noise of 1e-4 rounds to nothing.
    """
    import torch

    before, clean = _copies(loaded), _out(loaded, loaded.q, loaded.k, loaded.v)
    generator = torch.Generator().manual_seed(loaded.procedure.seed + 1)
    gains: dict[str, float | None] = {}
    for sigma in SIGMAS:
        moved = []
        for tensor in before:
            wide = tensor.float()
            size = wide.square().mean().sqrt()
            step = torch.randn(tensor.shape, generator=generator).to(tensor.device) * size * sigma
            moved.append((wide + step).to(tensor.dtype))
        gains[f"{sigma:g}"] = _gain(before, moved, clean, _out(loaded, *moved))
    return {"gain": gains}


def adversarial(loaded: Loaded) -> Figures:
    """As `noise`, for one step along the gradient that changes the output most: a lower bound of the local Lipschitz
    constant (https://arxiv.org/abs/2006.04710), beside that of a random step of the same length.

    The direction is one power iteration on the Jacobian: J^T J of a random step.
    """
    import torch

    before, clean = _copies(loaded), _out(loaded, loaded.q, loaded.k, loaded.v)
    generator = torch.Generator().manual_seed(loaded.procedure.seed + 2)
    sizes = [float(tensor.float().square().mean().sqrt()) for tensor in before]
    if not all(sizes):
        raise ValueError("an input is zero: no step is a share of it")
    random = [torch.randn(tensor.shape, generator=generator).to(tensor.device) for tensor in before]
    tried = _moved(before, random, sizes)
    change = _out(loaded, *tried) - clean
    leaves = [tensor.detach().clone().requires_grad_() for tensor in before]
    out = _first(loaded.prepared.call(*leaves))
    if not out.requires_grad:
        raise RuntimeError("the backend gives no gradient")
    # Along the change that the random step made: J^T (J step).
    towards = change / change.norm().clamp_min(1e-30)
    along = towards.to(out.dtype).reshape(out.shape)
    gradients = torch.autograd.grad(out, leaves, along, materialize_grads=True)
    # Every input counts in units of its own size, in the step as in the gradient.
    scaled = [size * gradient.float() for size, gradient in zip(sizes, gradients, strict=True)]
    worst = _moved(before, scaled, sizes)
    return {
        "gain": _gain(before, worst, clean, _out(loaded, *worst)),
        "random_gain": _gain(before, tried, clean, clean + change),
    }


def determinism(loaded: Loaded) -> Figures:
    """Whether the same inputs give the same bits, in out and gradients alike."""
    import torch

    first: list[Tensor] | None = None
    worst = 0.0
    for _ in range(REPEATS):
        loaded.outputs = None
        loaded.call()
        again = [tensor.detach().clone() for tensor in loaded.named_outputs().values()]
        if first is not None and not all(map(torch.equal, first, again)):
            worst = max(worst, *(float((a.float() - b.float()).abs().max()) for a, b in zip(first, again, strict=True)))
        first = first or again
    return {"repeats": REPEATS, "equal": worst == 0.0, "largest": worst}


def batch(loaded: Loaded) -> Figures:
    """Whether a sequence gives the same bits alone and at every position of a batch (batch invariance,
    https://thinkingmachines.ai/blog/defeating-nondeterminism-in-llm-inference/)."""
    import numpy as np
    import torch

    problem = loaded.case.problem
    if problem.lengths or problem.page_size:
        raise ValueError("sequences of different lengths, or keys in pages")
    several = replace(problem, batch=POSITIONS)
    rows = several.masking.rows(several.grid)
    if any(bound.shape[0] > 1 and (np.asarray(bound) != np.asarray(bound)[:1]).any() for bound in rows):
        raise ValueError("the mask differs from sequence to sequence")
    outputs = []
    for count in (1, POSITIONS):
        case = Case(problem=replace(problem, batch=count), backend=loaded.case.backend, mode=Mode.FWD)
        if objections := loaded.backend.objections(case, loaded.q.device.type, loaded.instrument.capability):
            raise ValueError("; ".join(objections))
        prepared = around.prepare(loaded.backend, case, str(loaded.q.device))
        with torch.no_grad():
            copies = (tensor[:1].repeat(count, 1, 1, 1) for tensor in (loaded.q, loaded.k, loaded.v))
            outputs.append(_first(prepared.call(*copies)).clone())
    alone, together = outputs
    worst = float((together.float() - alone.float()).abs().max())
    return {"positions": POSITIONS, "equal": worst == 0.0, "largest": worst}


def double_backward(loaded: Loaded) -> Figures:
    """Whether a gradient of the gradient can be had, and the seconds that it takes once."""
    import torch

    leaves = [tensor.detach().clone().requires_grad_() for tensor in (loaded.q, loaded.k, loaded.v)]
    out = _first(loaded.prepared.call(*leaves))
    dout = loaded.dout.reshape(out.shape).to(out.dtype)
    first = torch.autograd.grad(out, leaves, dout, create_graph=True)
    if not any(gradient.requires_grad for gradient in first):
        raise RuntimeError("the gradient has no graph")
    started = time.perf_counter()
    size = torch.stack([gradient.float().square().sum() for gradient in first]).sum()
    second = torch.autograd.grad(size, leaves, allow_unused=True)
    loaded.instrument.synchronize()
    seconds = time.perf_counter() - started
    finite = all(bool(gradient.isfinite().all()) for gradient in second if gradient is not None)
    return {"seconds": seconds, "finite": finite}


def quantisation(loaded: Loaded) -> Figures:
    """Relative change of the output when k and v are kept in int8 or fp8, and how many bytes they then are."""
    import torch

    from attnbench.attention import cost, inputs
    from attnbench.attention.problem import KvDtype

    problem = loaded.case.problem
    if problem.kv_dtype is not KvDtype.SAME or problem.page_size:
        raise ValueError("k and v are kept in few bits already, or in pages")
    q, k, v = _copies(loaded)
    clean = _out(loaded, q, k, v)
    error: dict[str, float] = {}
    sizes = {problem.dtype.value: cost.kv_bytes(problem)}
    for kind in (KvDtype.INT8, KvDtype.FP8_E4M3):
        kept = (inputs.stored(tensor.float().cpu(), kind).to(tensor) for tensor in (k, v))
        found = _out(loaded, q, *kept)
        error[kind.value] = float(torch.linalg.vector_norm(found - clean) / torch.linalg.vector_norm(clean))
        sizes[kind.value] = cost.kv_bytes(replace(problem, kv_dtype=kind))
    return {"error": error, "bytes": sizes}


def soft(loaded: Loaded) -> Figures:
    """How far a weighting that leaves keys out is from softmax over all of them, and the share of keys that it keeps.

    Both by the formula of `naive`, on the inputs of the case; an adaptive span is compared with none.
    """
    import torch

    from attnbench import backends
    from attnbench.attention.biases import Span
    from attnbench.attention.problem import Returns

    problem = loaded.case.problem
    spans = isinstance(problem.bias, Span)
    if (problem.weighting == "softmax" and not spans) or problem.scope != "core" or problem.page_size:
        raise ValueError("softmax over all visible keys already")
    plain = replace(problem, returns=Returns.WEIGHTS, dropout=0.0)
    score = replace(problem.score, bias="none") if spans else problem.score
    full = replace(plain, weighting="softmax", score=score)
    naive, device = backends.load("naive"), str(loaded.q.device)
    turned = loaded.backend.layout is not naive.layout
    qkv = [tensor.transpose(1, 2) if turned else tensor for tensor in _copies(loaded)]
    with torch.no_grad():
        (out, weights), (dense, every) = (
            around.prepare(naive, Case(problem=one, backend="naive"), device).call(*qkv) for one in (plain, full)
        )
    kept, visible = int((weights != 0).sum()), int((every > 0).sum())
    return {"error": float((out - dense).float().norm() / dense.float().norm()), "kept": kept / max(1, visible)}


PROBES: dict[str, Callable[[Loaded], Figures]] = {
    "noise": noise,
    "adversarial": adversarial,
    "determinism": determinism,
    "batch": batch,
    "double_backward": double_backward,
    "quantisation": quantisation,
    "soft": soft,
}


def _first(outputs: Any) -> Tensor:
    tensor: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return tensor


def _out(loaded: Loaded, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return _first(loaded.prepared.call(q, k, v)).float().clone()


def _copies(loaded: Loaded) -> Triple:
    q, k, v = (tensor.detach().clone() for tensor in (loaded.q, loaded.k, loaded.v))
    return q, k, v


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.float().square().sum()) for tensor in tensors))


def _moved(before: Sequence[Tensor], direction: Sequence[Tensor], sizes: Sequence[float]) -> list[Tensor]:
    """Inputs after a step of STEP, each in units of its size."""
    step = STEP * math.sqrt(sum(tensor.numel() for tensor in before)) / max(_norm(direction), 1e-30)
    moved = zip(before, direction, sizes, strict=True)
    return [(tensor.float() + step * size * way).to(tensor.dtype) for tensor, way, size in moved]


def _gain(before: Sequence[Tensor], after: Sequence[Tensor], clean: Tensor, found: Tensor) -> float | None:
    """Relative change of the output over that of the inputs, each in units of its own size.

    None where no input changed, where one of them is zero, and where the output is not finite.
    """
    moves = [_norm([new.float() - old.float()]) for old, new in zip(before, after, strict=True)]
    of_in, of_out = [_norm([old]) for old in before], float(clean.norm())
    if not any(moves) or not all(of_in) or not of_out:
        return None
    moved = math.sqrt(sum((move / size) ** 2 for move, size in zip(moves, of_in, strict=True)) / len(moves))
    gain = float((found - clean).norm()) / of_out / moved
    return gain if math.isfinite(gain) else None
