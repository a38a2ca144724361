"""The tensors that a problem is measured and verified with, made on the CPU from a seed.

Every arm makes its inputs from the same seed, and their digests prove that they are equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from attnbench.attention import input_file, shared_prefix
from attnbench.attention.choices import Dtype, KvDtype, Mode, Positions
from attnbench.attention.kv_cache import MAX_FP8, quantized
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Similarity
from attnbench.errors import ProblemError, UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PEAKED_DEVIATION = 8.0  # standard deviation of the logits: a few keys have almost all the weight
OUTLIER = 100.0  # factor on one channel
LARGE = 1e4  # standard deviation of q.k
LARGEST_FP32 = 3.4028234663852886e38
LARGEST = {Dtype.FP16: 65504.0, Dtype.FP8_E4M3: MAX_FP8}  # other dtypes have the range of fp32
SINK = 12.0  # logit of the first key above the others
VALUE_MEAN = 4.0  # of heavy and low inputs: weights that do not add up to 1 change every number of the output
# Of low inputs: q and k are this in one channel. q.k is -2^18, or as low as the format allows.
LOW = {Dtype.FP16: (256.0, 128.0), Dtype.FP8_E4M3: (256.0, 256.0)}
LOW_WIDE = 512.0, 512.0

FILE = "file:"
DISTRIBUTIONS: dict[str, str] = {
    "normal": "independent, standard normal",
    "peaked": f"normal, q so wide that logits have a standard deviation of {PEAKED_DEVIATION:g}",
    "uniform": "independent, uniform, mean 0, variance 1",
    "outlier": f"normal, one channel of q, k and v times {OUTLIER:g}, as in language models (arXiv 2208.07339)",
    "large": f"normal, q so wide that q.k has a standard deviation of {LARGE:g}",
    "sink": f"normal, the logit of the first key {SINK:g} above the others and its value near 0 (arXiv 2309.17453)",
    "heavy": f"normal, the first key has about half of the weight; values with a mean of {VALUE_MEAN:g}",
    "low": f"all logits of a row equal and far below zero; values with a mean of {VALUE_MEAN:g}",
    "zeros": "q, k and v all zero; dout normal",
}


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a call, contiguous, in the dtype of the problem."""

    q: Tensor  # [batch, heads, seq_q, head_dim]; of requests [1, heads, tokens, head_dim], as the others
    k: Tensor  # [batch, kv_heads, seq_kv, head_dim]
    v: Tensor  # [batch, kv_heads, seq_kv, head_dim_v]; of a latent cache empty, and k holds all
    dout: Tensor  # [batch, heads, seq_q, head_dim_v], in the dtype of the output


def make(problem: Problem, seed: int, distribution: str = "normal") -> Inputs:
    """Make inputs on the CPU.

    `file:x.safetensors` holds q, k, v and, for gradients, dout, in the shapes of the problem and in any float dtype.
    Raises UnknownNameError for an unknown distribution, ProblemError for a file that does not fit.
    """
    import torch

    check(distribution)
    p, shapes = problem, _shapes(problem)
    generator = torch.Generator("cpu").manual_seed(seed)
    # Drawn in float32 and cast, so that all dtypes round the same numbers.
    drawn = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        for name, shape in shapes.items()
    }
    if distribution.startswith(FILE):
        drawn |= _read(distribution, problem)
    else:
        _shape(drawn, problem, distribution, generator)
    for first, others in _shared_keys(problem):
        for name in "kv":
            for keys in others:
                drawn[name][:, :, keys] = drawn[name][:, :, first]
    for name in "kv":
        drawn[name] = quantized(drawn[name], p.kv_dtype)
    if p.dtype is Dtype.FP8_E4M3:  # the cast of a number beyond its range is NaN
        for name in "qkv":
            drawn[name].clamp_(-MAX_FP8, MAX_FP8)
    dtypes = dict.fromkeys("qkv", torch_dtype(p.dtype)) | {"dout": torch_dtype(p.dtype.out)}
    return Inputs(**{name: tensor.to(dtypes[name]).contiguous() for name, tensor in drawn.items()})


def stressing(problem: Problem, mode: Mode) -> tuple[str, ...]:
    """The distributions that a full verification checks besides the requested one.

    heavy and low suit plain logits. A fused backward pass recomputes weights as exp(logit - lse), which has no accuracy
    left at low logits.
    """
    plain = problem.score.similarity is Similarity.DOT and problem.score.bias == "none"
    plain = plain and problem.weighting == "softmax" and problem.scope == "core" and not problem.kv
    plain = plain and problem.positions is Positions.NONE and problem.kv_dtype is KvDtype.SAME
    return ("peaked", *(("heavy",) if plain else ()), *(("low",) if plain and mode is Mode.FWD else ()))


def check(distribution: str, where: str = "") -> None:
    """Raise UnknownNameError for an unknown distribution, ProblemError for a file that is missing or no inputs."""
    if distribution.startswith(FILE):
        if not _path(distribution).is_file():
            hint = "use a safetensors file with the tensors q, k, v and dout"
            raise ProblemError(f"{where or 'inputs'}: {distribution}: no such file; {hint}")
        with _named(where or "inputs"):
            input_file.summary(_path(distribution))
    elif distribution not in DISTRIBUTIONS:
        names = (*DISTRIBUTIONS, f"{FILE}x.safetensors")
        raise UnknownNameError("input distribution", distribution, names, where=where)


def check_fits(distribution: str, problems: Sequence[Problem], where: str) -> None:
    """Raise ProblemError where a file fits none of the problems."""
    reasons = [objection(distribution, problem) for problem in problems] if distribution.startswith(FILE) else []
    if reasons and all(reasons):
        raise ProblemError(f"{where} {distribution}: fits no case: {reasons[0]}")


def objection(distribution: str, problem: Problem) -> str:
    """Why a file of inputs does not fit the problem, in shape or in the range of its dtype; else empty."""
    if not distribution.startswith(FILE):
        return ""
    narrow = dict.fromkeys("qkv", problem.dtype) | {"dout": problem.dtype.out}
    largest = {name: LARGEST.get(dtype, LARGEST_FP32) for name, dtype in narrow.items()}
    reason = input_file.objection(_path(distribution), _shapes(problem), largest)
    if reason or not problem.shared_prefix:
        return reason
    arrays = input_file.read(_path(distribution))
    for first, others in _shared_keys(problem):
        for name in "kv":
            if any((arrays[name][:, :, keys] != arrays[name][:, :, first]).any() for keys in others):
                return f"{name} differs among requests with shared_prefix={problem.shared_prefix}: use equal first keys"
    return ""


def _shapes(p: Problem) -> dict[str, tuple[int, ...]]:
    return {
        "q": (*p.shape_q, p.head_dim),
        "k": (*p.shape_kv, p.kv_widths[0]),
        "v": (*p.shape_kv, p.kv_widths[1]),
        "dout": (*p.shape_q, p.head_dim_v),
    }


def _shared_keys(problem: Problem) -> Iterator[tuple[slice, list[slice]]]:
    """The places of every shared prefix: of its first request, and of the others."""
    text = problem.shared_prefix
    for keys, members in shared_prefix.groups(text, problem.sizes, page_size=0) if text else ():
        first, *others = (slice(start, start + keys) for start in (problem.spans[each][1].start for each in members))
        yield first, others


def _path(distribution: str) -> Path:
    return Path(distribution.removeprefix(FILE))


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the option or key before an error about its file."""
    try:
        yield
    except ProblemError as error:
        raise ProblemError(f"{where} {FILE}{error}") from error


def _shape(drawn: dict[str, Tensor], problem: Problem, distribution: str, generator: torch.Generator) -> None:
    """Transform normal numbers to a distribution, in place."""
    import torch

    q, k, v = drawn["q"], drawn["k"], drawn["v"]
    deviation = abs(problem.scale) * problem.head_dim**0.5  # of a logit, for standard normal q and k
    if distribution == "peaked" and deviation:
        q.mul_(PEAKED_DEVIATION / deviation)
    elif distribution == "uniform":
        for tensor in drawn.values():
            tensor.uniform_(-(3**0.5), 3**0.5, generator=generator)
    elif distribution == "outlier":
        for tensor in (q, k, v)[: 2 if problem.kv else 3]:
            channel = int(torch.randint(tensor.shape[3], (1,), generator=generator))
            tensor[..., channel].mul_(OUTLIER)
    elif distribution == "large":
        q.mul_(LARGE / problem.head_dim**0.5)
    elif distribution == "sink" and problem.scale:
        values = k[..., : problem.latent.rank] if problem.latent else v
        values[:, :, _raise_first_key(problem, q, k, SINK)] *= 0.01
    elif distribution == "heavy" and problem.scale:
        v.add_(VALUE_MEAN)
        _raise_first_key(problem, q, k, math.log(problem.seq_kv) + 0.5)  # the mean of exp(z) is exp(1/2)
    elif distribution == "low":
        of_q, of_k = LOW.get(problem.dtype, LOW_WIDE)
        for tensor, number in ((q, of_q), (k, -of_k if problem.scale > 0 else of_k)):
            tensor.zero_()
            tensor[..., 0] = number
        v.add_(VALUE_MEAN)
    elif distribution == "zeros":
        for tensor in (q, k, v):
            tensor.zero_()


def _raise_first_key(problem: Problem, q: Tensor, k: Tensor, logit: float) -> list[int]:
    """Give the first key of every sequence that logit, in place; return their places.

    All queries have the same component in one direction, and the first key has only that component.
    """
    size = (logit / abs(problem.scale)) ** 0.5
    # In a latent cache, only the numbers of RoPE are those of the keys themselves.
    of_q, of_k = (problem.head_dim - cache.rope, cache.rank) if (cache := problem.latent) else (0, 0)
    q[..., of_q] = size
    k[..., of_k] = 0
    first = [keys.start for _, keys in problem.spans] if problem.requests else [0]
    k[:, :, first, problem.latent.rank if problem.latent else 0 :] = 0
    k[:, :, first, of_k] = size if problem.scale > 0 else -size
    return first


def _read(distribution: str, problem: Problem) -> dict[str, Tensor]:
    """The tensors of a safetensors file as float32."""
    import torch

    with _named("inputs"):
        if reason := objection(distribution, problem):
            raise ProblemError(f"{_path(distribution)}: {reason}")
        arrays = input_file.read(_path(distribution))
    return {name: torch.from_numpy(array.astype("float32")) for name, array in arrays.items()}


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch dtype that numbers of that format are stored in."""
    import torch

    narrow = {Dtype.FP16: torch.float16, Dtype.BF16: torch.bfloat16, Dtype.FP8_E4M3: torch.float8_e4m3fn}
    return narrow.get(dtype, torch.float32)


def digest(inputs: Inputs) -> str:
    """16 hex digits of a hash of the bytes, shapes and dtypes, on any device."""
    import torch

    state = hashlib.blake2b(digest_size=8)
    for tensor in (inputs.q, inputs.k, inputs.v, inputs.dout):
        state.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()
