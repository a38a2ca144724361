"""The tensors that a problem is measured and verified on, made on the CPU from a seed.

Every arm makes its own inputs from the same seed, and their digests prove that they are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.attention.problem import Dtype, KvDtype, Problem
from attnbench.errors import ProblemError, UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PEAKED_DEVIATION = 8.0  # of the logits: exp(8) apart, so that a few keys carry almost all the weight
OUTLIER = 100.0  # times the other channels
LARGE = 1e4  # standard deviation of q.k
FP8_MOST = 448.0
SINK = 12.0  # the logit of the first key, above all others

FILE = "file:"
DISTRIBUTIONS: dict[str, str] = {
    "normal": "independent, standard normal",
    "peaked": f"normal, q so wide that logits have a standard deviation of {PEAKED_DEVIATION:g}",
    "uniform": "independent, uniform, mean 0, variance 1",
    "outlier": f"normal, one channel of q, k and v times {OUTLIER:g}, as language models have them (arXiv 2208.07339)",
    "large": f"normal, q so wide that q.k has a standard deviation of {LARGE:g}",
    "sink": f"normal, the logit of the first key {SINK:g} above the others and its value near 0 (arXiv 2309.17453)",
    "zeros": "q, k and v all zero; dout normal",
}


@dataclass(frozen=True)
class Inputs:
    """What a call is given, contiguous, in the dtype of the problem.

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v]; dout: [batch, heads, seq_q, head_dim_v], in the dtype of the output.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor


def make(problem: Problem, seed: int, distribution: str = "normal") -> Inputs:
    """Inputs on the CPU. With `lengths`, tokens beyond the end of a sequence are zero.

    `file:x.safetensors` holds q, k, v and, for gradients, dout, in the shapes of the problem and in any float dtype.
    Raises UnknownNameError for no distribution, ProblemError for a file that does not fit.
    """
    import torch

    check(distribution)
    p = problem
    shapes = {
        "q": (p.batch, p.heads, p.seq_q, p.head_dim),
        "k": (p.batch, p.kv_heads, p.seq_kv, p.head_dim),
        "v": (p.batch, p.kv_heads, p.seq_kv, p.head_dim_v),
        "dout": (p.batch, p.heads, p.seq_q, p.head_dim_v),
    }
    generator = torch.Generator().manual_seed(seed)
    # Drawn in float32 and cast, so that all dtypes round the same numbers.
    drawn = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    if distribution.startswith(FILE):
        drawn |= _read(Path(distribution.removeprefix(FILE)), shapes)
    else:
        _shape(drawn, problem, distribution, generator)
    for tensor in drawn.values():
        for b, length in enumerate(problem.lengths):
            tensor[b, :, length:] = 0
    for name in "kv":
        drawn[name] = stored(drawn[name], p.kv_dtype)
    if p.dtype is Dtype.FP8_E4M3:  # beyond its range the cast would make NaN of a number
        for name in "qkv":
            drawn[name].clamp_(-FP8_MOST, FP8_MOST)
    dtypes = dict.fromkeys("qkv", torch_dtype(p.dtype)) | {"dout": torch_dtype(p.dtype.out)}
    return Inputs(**{name: tensor.to(dtypes[name]).contiguous() for name, tensor in drawn.items()})


def stored(tensor: Tensor, kv_dtype: KvDtype) -> Tensor:
    """What is read back of keys or values kept in that format, with one scale for each token and head.

    [..., width] -> the same. int8 is symmetric, from -127 to 127; fp8_e4m3 is scaled to the whole of its range.
    """
    import torch

    if kv_dtype is KvDtype.SAME:
        return tensor
    most = 127.0 if kv_dtype is KvDtype.INT8 else FP8_MOST
    scale = tensor.abs().amax(-1, keepdim=True).clamp_min(1e-30) / most
    kept = tensor / scale
    rounded = kept.round() if kv_dtype is KvDtype.INT8 else kept.to(torch.float8_e4m3fn).float()
    return rounded * scale


def check(distribution: str, where: str = "") -> None:
    """Raise UnknownNameError or ProblemError if this is no distribution, or a file that is not there."""
    if distribution.startswith(FILE):
        if not Path(distribution.removeprefix(FILE)).is_file():
            said = f"{where or 'inputs'}: {distribution}: no such file"
            raise ProblemError(f"{said}; it should be a safetensors file with the tensors q, k, v and dout")
    elif distribution not in DISTRIBUTIONS:
        names = (*DISTRIBUTIONS, f"{FILE}x.safetensors")
        raise UnknownNameError("input distribution", distribution, names, where=where)


def _shape(drawn: dict[str, Tensor], problem: Problem, distribution: str, generator: torch.Generator) -> None:
    """Turn normal numbers into those of a distribution, in place."""
    import torch

    q, k, v = drawn["q"], drawn["k"], drawn["v"]
    per_unit = abs(problem.scale) * problem.head_dim**0.5  # standard deviation of a logit, with q and k at 1
    if distribution == "peaked" and per_unit:
        q.mul_(PEAKED_DEVIATION / per_unit)
    elif distribution == "uniform":
        for tensor in drawn.values():
            tensor.uniform_(-(3**0.5), 3**0.5, generator=generator)
    elif distribution == "outlier":
        for tensor in (q, k, v):
            channel = int(torch.randint(tensor.shape[3], (1,), generator=generator))
            tensor[..., channel].mul_(OUTLIER)
    elif distribution == "large":
        q.mul_(LARGE / problem.head_dim**0.5)
    elif distribution == "sink" and problem.scale:
        # Every query has a share along one direction, and the first key lies in that direction alone.
        size = (SINK / abs(problem.scale)) ** 0.5
        q[..., 0] = size
        k[..., 0] = 0
        k[:, :, 0] = 0
        k[:, :, 0, 0] = size if problem.scale > 0 else -size
        v[:, :, 0] *= 0.01
    elif distribution == "zeros":
        for tensor in (q, k, v):
            tensor.zero_()


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a safetensors file as float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        held = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ProblemError(f"inputs {FILE}{path}: cannot be read: {error}") from error
    found = {}
    for name, shape in shapes.items():
        if name not in held and name == "dout":
            continue
        if name not in held:
            raise ProblemError(f"inputs {FILE}{path}: no tensor {name!r}; it holds {', '.join(sorted(held)) or 'none'}")
        if tuple(held[name].shape) != shape or not held[name].is_floating_point():
            have = f"{str(held[name].dtype).removeprefix('torch.')} {list(held[name].shape)}"
            raise ProblemError(f"inputs {FILE}{path}: {name} is {have}; this case needs floats {list(shape)}")
        found[name] = held[name].float()
    return found


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch dtype in which numbers of that format are stored."""
    import torch

    return {
        Dtype.FP32: torch.float32,
        Dtype.TF32: torch.float32,
        Dtype.FP16: torch.float16,
        Dtype.BF16: torch.bfloat16,
        Dtype.FP8_E4M3: torch.float8_e4m3fn,
    }[dtype]


def digest(inputs: Inputs) -> str:
    """16 hex digits of the bytes, shapes and dtypes, wherever the tensors lie."""
    import torch

    state = hashlib.blake2b(digest_size=8)
    for tensor in (inputs.q, inputs.k, inputs.v, inputs.dout):
        state.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()
