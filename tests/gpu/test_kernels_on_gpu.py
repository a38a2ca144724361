"""The in-house kernels on a GPU: every configuration of the tables against float64, and the same bits every time."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.attention import inputs, reference
from attnbench.attention.problem import Problem
from attnbench.kernels.tables import KEYS, Cut, Kernel, shipped, users
from attnbench.kernels.tiling import PASSES, PATHS, Path, Tiling, family

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.gpu

REPEATS = 20
DTYPES = {"half": "bf16", "fp32": "fp32"}
SHAPES: dict[str, dict[str, Any]] = {
    "none": {"seq_q": 500, "seq_kv": 700, "mask": "none"},
    "causal": {"seq_q": 700, "seq_kv": 500, "mask": "causal"},
    "window": {"seq_q": 640, "seq_kv": 640, "mask": "causal+window:100"},
    "document": {"seq_q": 640, "seq_kv": 640, "mask": "causal+document:7"},
}


def arch() -> str:
    major, minor = torch.cuda.get_device_capability(0)
    return f"sm_{major}{minor}"


def entries() -> list[tuple[tuple[str, ...], Cut]]:
    """Configurations for this GPU; a name stands for all of them where there is no GPU to ask."""
    if not torch.cuda.is_available():
        return [(("no GPU",), Cut(block_q=16, block_kv=16, warps=4, stages=1))]
    here = (arch(), family(arch()))
    table = shipped() | users()
    return [(key, cut) for key, cut in table.items() if key[1] in here and key[2] in DTYPES and len(key) == KEYS]


def tiling_of(kernel: Kernel, cut: Cut) -> Tiling:
    sizes = {"block_q": cut.block_q, "block_kv": cut.block_kv, "warps": cut.warps, "stages": cut.stages}
    return Tiling(path=PATHS[kernel].value, splits=3 if kernel is Kernel.DECODE else 1, **sizes)


def near(found: Any, exact: Any, dtype: Any, plain: Any) -> None:
    """The rule of FlashAttention: twice the error of the plain formula in the same dtype."""
    error = (found.double().cpu() - exact).abs().max()
    bound = 2 * (plain.double() - exact).abs().max() + 8 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
    assert error <= bound


def grid() -> list[Any]:
    """Every configuration with the masks that it is for; all masks at one width, as each takes seconds to compile."""
    found = []
    for key, cut in entries():
        for shape in SHAPES:
            kernel, _, dtype, width, mask = key if len(key) == KEYS else ("", "", "half", "128", "any")
            plain = shape == ("none" if mask == "none" else "causal") or (shape == "none" and mask == "any")
            everything = width == "128" and dtype == "half" and kernel != "decode" and mask != "none"
            if (plain and (dtype == "half" or shape == "causal")) or everything:
                found.append(pytest.param(key, cut, shape, id=f"{'-'.join(key)}-{shape}"))
    return found


@pytest.mark.parametrize(("key", "cut", "shape"), grid())
def test_every_configuration_is_right_and_gives_the_same_bits(key: tuple[str, ...], cut: Cut, shape: str) -> None:
    from attnbench import kernels

    kernel, dtype, width = Kernel(key[0]), DTYPES[key[2]], int(key[3])
    fields = dict(SHAPES[shape])
    if kernel is Kernel.DECODE:
        fields["seq_q"] = 5
    problem = Problem(batch=2, heads=4, kv_heads=2, head_dim=width, dtype=dtype, **fields)
    made = inputs.make(problem, seed=0)
    q, k, v = (tensor.cuda().requires_grad_() for tensor in (made.q, made.k, made.v))
    # A call asks for the cut of a pass; the cut says by which path.
    options: dict[str, Any] = {"cuts": {PASSES[kernel]: tiling_of(kernel, cut)}}
    results = []
    for _ in range(REPEATS):
        with torch.set_grad_enabled(kernel.startswith("backward")):
            out = kernels.attention(q, k, v, mask=problem.mask if problem.mask != "none" else None, **options)
            gradients = torch.autograd.grad(out, (q, k, v), made.dout.cuda()) if out.requires_grad else ()
        results.append((out.detach(), *gradients))
    near(results[0][0], reference.attend(problem, made.q, made.k, made.v).out, q.dtype,
         reference.yardstick(problem, made.q, made.k, made.v).out)  # fmt: skip
    if len(results[0]) > 1:
        exact = reference.gradients(problem, made.q, made.k, made.v, made.dout)
        plain = reference.yardstick_gradients(problem, made.q, made.k, made.v, made.dout)
        for found, true, rough in zip(results[0][1:], exact, plain, strict=True):
            near(found, true, q.dtype, rough)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_pages_give_what_one_piece_gives() -> None:
    from attnbench import kernels

    torch.manual_seed(0)
    batch, heads, kv_heads, width, page, pages = 8, 32, 8, 128, 16, 64
    q = torch.randn(batch, heads, 1, width, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(batch, kv_heads, page * pages, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    table = torch.randperm(batch * pages, device="cuda").reshape(batch, pages).to(torch.int32)
    lengths = torch.randint(1, page * pages, (batch,), device="cuda", dtype=torch.int32)
    paged = []
    for whole in (k, v):
        cache = torch.full((batch * pages, page, kv_heads, width), float("nan"), device="cuda", dtype=whole.dtype)
        cache[table.flatten().long()] = whole.transpose(1, 2).reshape(batch * pages, page, kv_heads, width)
        paged.append(cache)
    one = kernels.decode(q, k, v, kv_lengths=lengths)
    assert torch.equal(kernels.decode(q, *paged, kv_lengths=lengths, page_table=table), one)


def test_more_keys_than_2_to_the_31_numbers() -> None:
    from attnbench import kernels

    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    heads, seq, width = 130, 2**17, 128
    k = torch.randn(1, heads, seq, width, device="cuda", dtype=torch.bfloat16)
    assert k.numel() > 2**31
    q = torch.randn(1, heads, 1, width, device="cuda", dtype=torch.bfloat16)
    for path in Path:
        out = kernels.attention(q, k, k, path=path.value)
        weights = torch.softmax(q[:, -1].float() @ k[:, -1].float().mT * width**-0.5, -1)
        torch.testing.assert_close(out[:, -1].float(), weights @ k[:, -1].float(), rtol=2e-2, atol=2e-2)


def test_a_small_step_is_right_at_every_padded_width() -> None:
    from attnbench import kernels

    for width in (16, 40, 41, 80, 96, 192, 256):
        problem = Problem(seq_q=130, seq_kv=200, batch=1, heads=2, head_dim=width, dtype="bf16", mask="causal")
        made = inputs.make(problem, seed=1)
        out = kernels.attention(made.q.cuda(), made.k.cuda(), made.v.cuda(), causal=True)
        exact, plain = (make(problem, made.q, made.k, made.v).out for make in (reference.attend, reference.yardstick))
        near(out, exact, torch.bfloat16, plain)
