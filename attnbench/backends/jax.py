"""jax.nn.dot_product_attention, compiled by XLA for the CPU, forward and backward.

Arrays share the memory of our tensors, and are made again only where the address changes. The number of threads is that
of PJRT_NPROC, which the worker has from its start. https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.attention import dense_masks
from attnbench.attention.biases import Constant
from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, CaseRefusedError, Keywords, Layout, Limits, Output, Prepared, isa_objection
from attnbench.records.case import Case
from attnbench.records.result import Facts

if TYPE_CHECKING:
    from jax import Array
    from torch import Tensor

THREAD_NAME = "tf_XLAEigen"  # of the threads that compute, in /proc


def arguments(problem: Problem) -> Keywords:
    """The problem in the keywords of dot_product_attention; `mask` is True where a tensor is needed."""
    options: Keywords = {"scale": problem.scale, "is_causal": False}
    square, words = problem.seq_q == problem.seq_kv, problem.masking.words
    if dense_masks.sees_all(problem):
        return options
    if square and "causal" in words and words <= {"causal", "window"}:
        options["is_causal"] = True  # both are aligned to the top left
    elif not (square and words == {"window"}):
        return options | {"mask": True}
    if problem.window:
        left, right = problem.window
        options["local_window_size"] = (left, 0 if options["is_causal"] else right)
    return options


class Arrays:
    """Arrays in the memory of tensors, by name."""

    def __init__(self) -> None:
        self._arrays: dict[str, tuple[int, Tensor, Array]] = {}

    def of(self, name: str, tensor: Tensor) -> Array:
        """The array of a tensor; a new one only where the address differs. Raises CaseRefusedError if jax copied it."""
        import jax.numpy as jnp

        tensor = tensor.detach().contiguous()
        address = tensor.data_ptr()
        stored = self._arrays.get(name)
        if stored and stored[0] == address:
            return stored[2]
        array = jnp.from_dlpack(tensor)
        if array.unsafe_buffer_pointer() != address:
            raise CaseRefusedError(f"jax copies {name}: its memory is not aligned to 64 bytes")
        self._arrays[name] = address, tensor, array
        return array


def prepare(case: Case, _device: str) -> Prepared:
    """Compile the functions; the mask and the bias are arrays that do not change."""
    import jax

    problem, options = case.problem, arguments(case.problem)
    jax.config.update("jax_default_matmul_precision", "highest")
    if (precision := jax.config.jax_default_matmul_precision) != "highest":
        raise CaseRefusedError(f"jax does not keep the precision of products: {precision}")
    started = time.perf_counter()
    arrays, fixed = Arrays(), _constants(problem, options)
    mask_s = time.perf_counter() - started
    wants_lse = problem.returns is Returns.LSE
    options |= {"implementation": "xla", "return_residual": wants_lse}

    def attend(q: Array, k: Array, v: Array, fixed: dict[str, Array]) -> Array | tuple[Array, Array]:
        return jax.nn.dot_product_attention(q, k, v, **fixed, **options)

    forward = jax.jit(attend)
    first_s: list[float] = []

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        started = time.perf_counter()
        inputs = [arrays.of(name, tensor) for name, tensor in (("q", q), ("k", k), ("v", v))]
        result = jax.block_until_ready(forward(*inputs, fixed))
        if not first_s:
            first_s.append(time.perf_counter() - started)
        return (_tensor(result[0]), _tensor(result[1]).transpose(1, 2)) if wants_lse else _tensor(result)

    needs_grad = case.mode.needs_grad
    return Prepared(
        call=_differentiable(attend, fixed, arrays) if needs_grad else call,
        seconds={"mask_build": mask_s} if fixed else {},
        facts={"dense_mask": "mask" in fixed, "precision": precision, "denormals": "flushed", "telemetry": "off"},
        late_facts=lambda: _late_facts(first_s),
    )


def _constants(problem: Problem, options: Keywords) -> dict[str, Array]:
    """The mask and the bias that are passed as arrays."""
    import jax.numpy as jnp

    from attnbench.attention.inputs import torch_dtype

    tensors: dict[str, Tensor] = {"mask": dense_masks.visible(problem)} if options.pop("mask", False) else {}
    if isinstance(problem.bias, Constant):
        tensors["bias"] = problem.bias.dense_tensor(problem)[None].to(torch_dtype(problem.dtype))
    return {name: jnp.array(jnp.from_dlpack(tensor.contiguous())) for name, tensor in tensors.items()}


def _tensor(array: Array) -> Tensor:
    import torch

    tensor: Tensor = torch.utils.dlpack.from_dlpack(array)
    return tensor


def _differentiable(attend: Callable[..., Array], fixed: dict[str, Array], arrays: Arrays) -> Callable[..., Tensor]:
    """The call as a function of torch's autograd, with jax's own vector-Jacobian product as its backward pass."""
    import jax
    import torch

    forward = jax.jit(lambda q, k, v: jax.vjp(lambda *qkv: attend(*qkv, fixed), q, k, v))
    backward = jax.jit(lambda pullback, dout: pullback(dout))

    class XlaAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            inputs = [arrays.of(name, tensor) for name, tensor in (("q", q), ("k", k), ("v", v))]
            out, ctx.pullback = jax.block_until_ready(forward(*inputs))
            return _tensor(out)

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
            gradients = jax.block_until_ready(backward(ctx.pullback, arrays.of("dout", dout)))
            return tuple(map(_tensor, gradients))

    apply: Callable[..., Tensor] = XlaAttention.apply
    return apply


def computing_threads() -> int:
    """The threads of this process that compute for XLA; 0 where there is no /proc."""
    names = (comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm"))
    return sum(name == THREAD_NAME for name in names)


def _late_facts(first_s: list[float]) -> Facts:
    """The threads that the first call started. Raises CaseRefusedError if they are not as many as those of the arm."""
    import torch

    threads, wanted = computing_threads(), torch.get_num_threads()
    if threads and threads != wanted:
        raise CaseRefusedError(f"jax computes with {threads} threads, not {wanted}: set PJRT_NPROC={wanted}")
    return {"library_threads": threads or wanted, **({"compile_s": first_s[0]} if first_s else {})}


def scratch_bytes(case: Case) -> int:
    """Logits and weights of all pairs in fp32, a mask, and backward two more."""
    problem = case.problem
    pairs = problem.batch * problem.seq_q * problem.seq_kv
    tensors = 5 if case.mode.needs_grad else 3
    keys = 4 * problem.batch * problem.seq_kv * problem.heads * problem.head_dim * problem.dtype.bytes
    return tensors * 4 * pairs * problem.heads + pairs + keys


def _refuses(case: Case) -> list[str]:
    backward_of_lse = case.mode.needs_grad and case.problem.returns is Returns.LSE
    return ["backward with the lse unsupported"] if backward_of_lse else []


BACKENDS = {
    "jax": Backend(
        name="jax",
        summary="jax.nn.dot_product_attention, compiled by XLA",
        limits={
            "cpu": Limits(
                dtypes=frozenset({Dtype.FP32, Dtype.BF16}),
                features=dense_masks.MASKS | dense_masks.BIASES | {"gqa", "cross", "scale", "lse"},
                modes=frozenset(Mode),
            )
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch", "jax"),
        install="pip install jax==0.10.2",
        layout=Layout.BSHD,
        probe=isa_objection,
        refuses=_refuses,
        distributions=("jax",),
        versions={"jax": ((0, 10), (0, 12))},
        outside_torch=True,
        traps=(
            "fp16 ends in an error on a CPU",
            "is_causal is aligned to the top left: where seq_q differs from seq_kv the mask is an array",
            "a row that sees no key is the mean of the values",
            "denormal numbers are flushed to zero",
            "the threads follow PJRT_NPROC at the first use, and no flag of XLA",
            "the process needs hundreds of MB of data beside the tensors: RLIMIT_DATA must allow 800",
        ),
    )
}
