"""Attention by a table: the right backend, the right output, and SDPA where there is none."""

import logging
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from attnbench.analysis.rows import rows_of
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.dispatch import Table, attention, call_site, calls, load
from attnbench.dispatch import table as table_module
from attnbench.errors import StoreError
from attnbench.records.result import Status
from attnbench.studies.recommend import dispatch
from tests.dispatch.tables import choice, here, measured_on, table
from tests.golden.made import measured, refused

SMALL = Problem(seq_q=16, heads=2, head_dim=16)
FASTER = {"naive": 1.0, "sdpa:flash": 2.0}


def tensors(problem: Problem, dtype: torch.dtype = torch.float32, gradients: bool = False) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = (
        (problem.heads, problem.seq_q, problem.head_dim),
        (problem.kv_heads, problem.seq_kv, problem.head_dim),
        (problem.kv_heads, problem.seq_kv, problem.head_dim_v),
    )
    return tuple(torch.randn(problem.batch, *shape, dtype=dtype, requires_grad=gradients) for shape in shapes)


def expected(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None = None) -> Tensor:
    """The formula in float64, causal aligned to the last query and key."""
    q, k, v = (tensor.double() for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        rows, keys = logits.shape[-2:]
        hidden = torch.ones(rows, keys, dtype=torch.bool).triu(keys - rows + 1)
        logits = logits.masked_fill(hidden, float("-inf"))
    return logits.softmax(-1) @ v


def chosen(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.messages[-1].partition(": ")[2]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="attnbench.dispatch")


ON_A_CPU = ("naive", "sdpa", "sdpa:math", "sdpa:flash")
SHAPES = {
    "square": SMALL,
    "decode": Problem(seq_q=1, seq_kv=33, heads=2, head_dim=16),
    "chunk": Problem(seq_q=7, seq_kv=33, heads=2, head_dim=16),
    "grouped": Problem(seq_q=16, heads=4, kv_heads=2, head_dim=16, batch=2),
}


@pytest.mark.parametrize("name", ON_A_CPU)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_of_a_cpu_computes_what_the_formula_does(name, causal, shape, caplog) -> None:
    problem = msgspec.structs.replace(SHAPES[shape], mask="causal" if causal else "none")
    made = table(choice(problem, {name: 1.0}))
    q, k, v = tensors(problem)
    for scale in (None, 0.3):
        out = attention(q, k, v, causal=causal, scale=scale, table=made)
        torch.testing.assert_close(out.double(), expected(q, k, v, causal, scale), atol=1e-5, rtol=1e-5)
        assert chosen(caplog).startswith(f"{name}, 1.00x the fastest, measured as ")


@pytest.mark.parametrize("name", ON_A_CPU)
def test_gradients_are_those_of_the_formula(name, caplog) -> None:
    made = table(choice(SMALL, {name: 1.0}, mode=Mode.FWD_BWD))
    q, k, v = tensors(SMALL, gradients=True)
    weights = torch.randn(1, 2, 16, 16)
    right = torch.autograd.grad((expected(q, k, v, False) * weights).sum(), (q, k, v))
    for computed, wanted in zip(
        torch.autograd.grad((attention(q, k, v, table=made) * weights).sum(), (q, k, v)), right, strict=True
    ):
        torch.testing.assert_close(computed, wanted.float(), atol=1e-5, rtol=1e-5)
    assert chosen(caplog).startswith(f"{name}, ")


def test_the_fastest_of_the_nearest_problem_is_called(caplog) -> None:
    long = Problem(seq_q=256, heads=2, head_dim=16)
    made = table(choice(SMALL, FASTER), choice(long, {"naive": 9.0, "sdpa:flash": 1.0}))
    for seq, name in ((16, "naive"), (20, "naive"), (200, "sdpa:flash"), (256, "sdpa:flash")):
        q = torch.ones(1, 2, seq, 16)
        attention(q, q, q, table=made)
        assert chosen(caplog).startswith(f"{name}, ")


def test_a_decision_is_logged_and_made_once_for_a_key(caplog) -> None:
    made = table(choice(SMALL, FASTER))
    q, k, v = tensors(SMALL)
    for _ in range(3):
        attention(q, k, v, table=made)
    assert len(caplog.messages) == len(made.calls) == 1
    attention(q, k, v, table=made, scale=0.5)
    assert len(caplog.messages) == len(made.calls) == 2


def test_the_tokens_of_a_decode_are_one_line_at_level_info(caplog) -> None:
    near, far = Problem(seq_q=1, seq_kv=64, heads=2, head_dim=16), Problem(seq_q=1, seq_kv=2**14, heads=2, head_dim=16)
    made = table(choice(near, FASTER), choice(far, {"sdpa:flash": 1.0}))
    q = torch.ones(1, 2, 1, 16)
    for keys in range(64, 80):
        k = torch.ones(1, 2, keys, 16)
        attention(q, k, k, table=made)
        attention(q, k, k, table=made, scale=0.5)
        attention(q.double(), k.double(), k.double(), table=made)
    shown = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert shown == [
        "b1 h2 q1 kv64 d16 none fp32 fwd: naive, 1.00x the fastest, measured as b1 h2 q1 kv64 d16 none fp32 fwd",
        "b1 h2 q1 kv64 d16 none float64 fwd: falls back to SDPA: float64 is not measured",
    ]
    assert len(caplog.messages) == len(made.calls) == 48


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"causal": True}, "no fp32 problem with mask causal was measured on cpu; the table has none"),
        ({"dtype": torch.bfloat16}, "no bf16 problem was measured on cpu; the table has fp32"),
        ({"dtype": torch.float64}, "float64 is not measured"),
        ({"gradients": True}, "no fp32 problem with mask none of mode fwd_bwd was measured on cpu; the table has fwd"),
    ],
)
def test_another_mask_dtype_or_gradient_falls_back_with_its_reason(options, reason, caplog) -> None:
    causal = options.pop("causal", False)
    q, k, v = tensors(SMALL, **options)
    out = attention(q, k, v, causal=causal, table=table(choice(SMALL, FASTER)))
    torch.testing.assert_close(out.double(), expected(q, k, v, causal), atol=2e-2, rtol=2e-2)
    assert chosen(caplog) == f"falls back to SDPA: {reason}"


def test_a_decode_counts_as_unmasked_and_a_far_shape_as_not_measured(caplog) -> None:
    made = table(choice(msgspec.structs.replace(SMALL, mask="causal"), FASTER))
    attention(torch.ones(1, 2, 1, 16), *tensors(SMALL)[1:], causal=True, table=made)
    reason = "no fp32 problem with mask none (a single causal query counts as that) was measured on cpu"
    assert chosen(caplog) == f"falls back to SDPA: {reason}; the table has causal"
    far = torch.ones(1, 2, 1000, 16)
    attention(far, far, far, causal=True, table=made)
    reason = "no fp32 problem with mask causal of mode fwd within 4 octaves was measured on cpu"
    assert chosen(caplog) == f"falls back to SDPA: {reason}"


def test_the_label_of_a_call_has_its_own_dtype(caplog) -> None:
    attention(*tensors(SMALL, dtype=torch.float64), table=table(choice(SMALL, FASTER)))
    assert caplog.messages[-1].startswith("b1 h2 q16 kv16 d16 none float64 fwd: ")


@pytest.mark.parametrize("with_table", [False, True])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"q": 1}, "q is of type int: must be a tensor"),
        ({"v": None}, "v is of type NoneType: must be a tensor"),
        ({"scale": "x"}, "scale='x': must be a number or None"),
        ({"scale": [1]}, r"scale=\[1\]: must be a number"),
        ({"causal": "yes"}, "causal='yes': must be True or False"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(with_table, changed, words) -> None:
    arguments = {**dict(zip("qkv", tensors(SMALL), strict=True)), **changed}
    with pytest.raises(TypeError, match=words):
        attention(**arguments, table=table(choice(SMALL, FASTER)) if with_table else None)


def test_a_table_is_given_by_its_path_and_read_once(tmp_path, caplog) -> None:
    path = written(tmp_path)
    for name in (str(path), path, str(path)):
        attention(*tensors(SMALL), table=name)
        assert chosen(caplog).startswith("naive, ")
    path.unlink()
    attention(*tensors(SMALL), table=str(path))
    with pytest.raises(TypeError, match="table is of type int: must be a Table, or the path of its file"):
        attention(*tensors(SMALL), table=3)


def test_strides_and_autocast_fall_back(caplog) -> None:
    made = table(choice(SMALL, FASTER))
    q, k, v = tensors(SMALL)
    turned = q.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(attention(turned, k, v, table=made), attention(q, k, v, table=made))
    assert "falls back to SDPA: the last stride of q, k or v is not 1" in caplog.text
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v, table=made).dtype == torch.bfloat16
    assert chosen(caplog) == "falls back to SDPA: torch.autocast casts the inputs of SDPA"


def test_a_backend_that_refuses_or_is_not_callable_leaves_the_next_one(caplog) -> None:
    ranked = {"flash-attn:3": 1.0, "ggml": 1.5, "sdpa:math": 2.0, "naive": 3.0}
    attention(*tensors(SMALL), table=table(choice(SMALL, ranked)))
    assert chosen(caplog).startswith("sdpa:math, 2.00x the fastest, measured as")
    assert "; not flash-attn:3: runs on cuda, not on cpu" in chosen(caplog)
    assert "; not ggml: attnbench calls it only in its own processes" in chosen(caplog)


def test_a_kernel_that_raises_leaves_the_next_one(monkeypatch, caplog) -> None:
    def broken(site: calls.Site) -> calls.Call:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            raise RuntimeError("no kernel\nimage")

        return call

    monkeypatch.setitem(calls._BUILDERS, "sdpa:math", broken)
    q, k, v = tensors(SMALL)
    made = table(choice(SMALL, {"sdpa:math": 1.0, "naive": 2.0}))
    torch.testing.assert_close(attention(q, k, v, table=made), calls.sdpa(q, k, v, False, None))
    assert chosen(caplog).endswith("; not sdpa:math: no kernel image")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status.INCORRECT, {8: "sdpa:flash", 16: "sdpa:flash", 24: "sdpa:flash", 32: "sdpa:flash", 64: "sdpa:flash"}),
        (Status.UNSUPPORTED, {8: "sdpa:math", 16: "sdpa:math", 24: "sdpa:flash", 32: "sdpa:flash", 64: "sdpa:flash"}),
    ],
)
def test_a_backend_that_was_wrong_or_unsupported_is_not_called(status, expected, caplog) -> None:
    """From the results of a run to the call: sdpa:math was the fastest where it ran, and ended so from q32 on."""
    results = []
    for seq in (8, 16, 32, 64):
        problem = Problem(seq_q=seq, heads=2, head_dim=16)
        results += [measured(problem, "naive", 4e-5), measured(problem, "sdpa:flash", 2e-5)]
        fastest = measured(problem, "sdpa:math", 1e-5)
        results.append(fastest if seq < 32 else refused(problem, "sdpa:math", status, "a reason"))
    loaded = Table(dispatch(rows_of(results), origin=measured_on(here())))
    for seq, name in expected.items():
        q = torch.ones(1, 2, seq, 16)
        attention(q, q, q, table=loaded)
        assert chosen(caplog).startswith(f"{name}, ")


def test_flex_is_compiled_for_a_bounded_number_of_shapes(monkeypatch, caplog) -> None:
    monkeypatch.setattr(calls, "_compiled", {Problem(seq_q=seq) for seq in range(1, 9)})
    attention(*tensors(SMALL), table=table(choice(SMALL, {"flex": 1.0, "naive": 2.0})))
    assert "naive" in chosen(caplog)
    assert "; not flex: it was compiled for 8 shapes, and torch compiles no more" in chosen(caplog)


def test_the_kept_decisions_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(table_module, "MAX_KEYS", 3)
    made = table(choice(SMALL, FASTER))
    for keys in range(16, 24):
        k = torch.ones(1, 2, keys, 16)
        attention(torch.ones(1, 2, 16, 16), k, k, table=made)
        assert 1 <= len(made.calls) <= 3


def test_settings_of_the_process_stay_as_they_are() -> None:
    from torch.backends import cuda

    torch.set_float32_matmul_precision("medium")
    try:
        before = cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()
        for name in ON_A_CPU:
            attention(*tensors(SMALL), table=table(choice(SMALL, {name: 1.0})))
        assert (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()) == before
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_empty_tensors_are_sdpas() -> None:
    q, k = torch.ones(1, 2, 0, 16), torch.ones(1, 2, 8, 16)
    assert attention(q, k, k, table=table(choice(SMALL, FASTER))).shape == (1, 2, 0, 16)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 16, 16), (1, 2, 16, 16), (1, 2, 16, 16)), r"q has shape \[2, 16, 16\]: must be \[batch, heads"),
        (((1, 2, 16, 16), (1, 2, 16, 8), (1, 2, 16, 16)), "the head_dim of q and k"),
        (((1, 2, 16, 16), (1, 2, 16, 16), (1, 2, 15, 16)), "heads and seq of k and v must be equal"),
        (((1, 3, 16, 16), (1, 2, 16, 16), (1, 2, 16, 16)), "heads=3 is not a multiple of kv_heads=2"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(shapes, words) -> None:
    with pytest.raises(Exception, match=words):
        attention(*(torch.ones(shape) for shape in shapes), table=table(choice(SMALL, FASTER)))


def test_the_dtypes_of_q_k_and_v_are_equal() -> None:
    q, k, v = tensors(SMALL)
    with pytest.raises(ValueError, match=r"v is torch.float16 on cpu: must be as q, torch.float32 on cpu"):
        attention(q, k, v.half(), table=table(choice(SMALL, FASTER)))


def written(folder: Path) -> Path:
    made = table(choice(SMALL, FASTER))
    (folder / "table.json").write_bytes(msgspec.json.encode(made.stored))
    return folder / "table.json"


def test_a_loaded_table_is_used(tmp_path, caplog) -> None:
    made = load(written(tmp_path))
    assert isinstance(made, Table)
    attention(*tensors(SMALL), table=made)
    assert chosen(caplog).startswith("naive, ")


def test_without_a_table_that_of_the_environment_is_used(tmp_path, monkeypatch, caplog) -> None:
    q, k, v = tensors(SMALL)
    for path, count in ((None, 0), (str(written(tmp_path)), 1)):
        call_site._table_of_environment.cache_clear()
        monkeypatch.delenv("ATTNBENCH_DISPATCH", raising=False)
        if path:
            monkeypatch.setenv("ATTNBENCH_DISPATCH", path)
        out = attention(q, k, v)
        torch.testing.assert_close(out.double(), expected(q, k, v, False), atol=1e-5, rtol=1e-5)
        assert len(caplog.messages) == count
    call_site._table_of_environment.cache_clear()
    monkeypatch.setenv("ATTNBENCH_DISPATCH", "none.json")
    with pytest.raises(StoreError, match=r"none\.json cannot be read"):
        attention(q, k, v)


@pytest.mark.slow
def test_under_compile_it_is_sdpa_in_one_graph() -> None:
    made = table(choice(SMALL, FASTER))
    q, k, v = tensors(SMALL)
    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v, causal=True, table=made), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(q, k, v), calls.sdpa(q, k, v, True, None))
    assert made.calls == {}


def test_halves_are_dispatched(caplog) -> None:
    problem = msgspec.structs.replace(SMALL, dtype=Dtype.BF16)
    attention(*tensors(SMALL, torch.bfloat16), table=table(choice(problem, FASTER)))
    assert chosen(caplog).startswith("naive, ")


def test_importing_it_loads_neither_torch_nor_the_command_line() -> None:
    heavy = {"torch", "triton", "typer", "rich", "transformers", "pandas"}
    program = f"import sys, attnbench.dispatch; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"
