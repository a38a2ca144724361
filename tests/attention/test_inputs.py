"""Distributions of q, k and v."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from attnbench import cli
from attnbench.attention import input_file, inputs
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import ProblemError, UnknownNameError

torch = pytest.importorskip("torch")
PROBLEM = Problem(seq_q=96, seq_kv=128, batch=2, heads=4, kv_heads=2, head_dim=32, head_dim_v=48)


def logits(tensors: inputs.Inputs, problem: Problem = PROBLEM) -> torch.Tensor:
    """q k^T scale, in float64."""
    k = tensors.k.double().repeat_interleave(problem.heads // problem.kv_heads, dim=1)
    return tensors.q.double() @ k.transpose(2, 3) * problem.scale


@pytest.mark.parametrize("name", inputs.DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [dtype for dtype in Dtype if dtype is not Dtype.TF32])
def test_every_distribution_is_seeded_and_finite_in_every_dtype(name: str, dtype: Dtype) -> None:
    problem = Problem(seq_q=16, head_dim=32, dtype=dtype)
    first, again, other = (inputs.make(problem, seed, name) for seed in (1, 1, 2))
    assert inputs.digest(first) == inputs.digest(again) != inputs.digest(other)
    assert all(bool(t.float().isfinite().all()) for t in (first.q, first.k, first.v, first.dout))


def test_uniform_numbers_have_unit_variance_and_end_at_the_root_of_three() -> None:
    q = inputs.make(PROBLEM, 0, "uniform").q
    assert float(q.var()) == pytest.approx(1, abs=0.05)
    assert float(q.abs().max()) <= math.sqrt(3) + 1e-6
    assert float(q.abs().max()) > 1.7


def test_outlier_scales_one_channel() -> None:
    outlier, plain = inputs.make(PROBLEM, 3, "outlier"), inputs.make(PROBLEM, 3)
    for name in "qkv":
        ratio = (getattr(outlier, name) / getattr(plain, name)).flatten(0, 2)
        channels = (ratio.median(0).values - 100).abs() < 1
        assert int(channels.sum()) == 1
        assert float((ratio[:, ~channels] - 1).abs().max()) < 1e-6


def test_large_products_have_a_deviation_of_ten_thousand() -> None:
    products = logits(inputs.make(PROBLEM, 0, "large")) / PROBLEM.scale
    assert float(products.std()) == pytest.approx(1e4, rel=0.05)


def test_first_key_is_a_sink_with_a_small_value() -> None:
    tensors = inputs.make(PROBLEM, 0, "sink")
    sink = logits(tensors)
    assert float((sink[..., 0] - sink[..., 1:].mean(-1)).mean()) == pytest.approx(inputs.SINK, abs=0.5)
    assert float(sink.softmax(-1)[..., 0].mean()) > 0.99
    assert float(tensors.v[:, :, 0].abs().max()) < 0.1


def test_first_key_of_heavy_inputs_has_half_of_the_weight_and_values_are_about_four() -> None:
    tensors = inputs.make(PROBLEM, 0, "heavy")
    weights = logits(tensors).softmax(-1)
    assert float(weights[..., 0].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(weights[..., 1:].max()) < 0.3
    assert float(tensors.v.mean()) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3"])
@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_logits_of_low_inputs_are_equal_and_far_below_zero(dtype: str, scale: float) -> None:
    problem = msgspec.structs.replace(PROBLEM, dtype=dtype, score=Score(scale=scale))
    tensors = inputs.make(problem, 0, "low")
    low = logits(tensors, problem)
    assert float(low.max()) == float(low.min()) <= -(2**15) * abs(problem.scale)
    assert float(tensors.v.float().mean()) == pytest.approx(4, abs=0.1)


def test_a_full_verification_adds_inputs_that_suit_the_problem() -> None:
    assert inputs.stressing(PROBLEM, Mode.FWD) == ("peaked", "heavy", "low")
    assert inputs.stressing(PROBLEM, Mode.BWD) == ("peaked", "heavy")
    for special in ({"score": Score(bias="alibi")}, {"weighting": "sigmoid"}, {"kv_dtype": "int8:tensor"}):
        assert inputs.stressing(msgspec.structs.replace(PROBLEM, **special), Mode.FWD) == ("peaked",)


def test_zeros_have_a_normal_dout() -> None:
    tensors = inputs.make(PROBLEM, 0, "zeros")
    assert not any(bool(getattr(tensors, name).any()) for name in "qkv")
    assert bool(tensors.dout.any())


def write(path: Path, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A safetensors file of normal numbers."""
    from safetensors.torch import save_file

    tensors = {name: torch.randn(*shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(tensors, path)
    return tensors


SHAPES = {"q": (2, 4, 96, 32), "k": (2, 2, 128, 32), "v": (2, 2, 128, 48)}


def test_inputs_come_from_a_file(tmp_path: Path) -> None:
    written = write(tmp_path / "x.safetensors", **SHAPES)
    tensors = inputs.make(PROBLEM, 0, f"file:{tmp_path}/x.safetensors")
    assert all(torch.equal(getattr(tensors, name), written[name].float()) for name in "qkv")
    assert torch.equal(tensors.dout, inputs.make(PROBLEM, 0).dout)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({**SHAPES, "k": (2, 2, 64, 32)}, r"k is float16 \[2, 2, 64, 32\]; this case needs floats \[2, 2, 128, 32\]"),
        ({"q": (2, 4, 96, 32)}, "no tensor 'k'; it holds q"),
    ],
)
def test_error_names_the_wrong_tensor(tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    write(tmp_path / "x.safetensors", **shapes)
    with pytest.raises(ProblemError, match=message):
        inputs.make(PROBLEM, 0, f"file:{tmp_path}/x.safetensors")


def test_unknown_distributions_and_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="--inputs: no input distribution 'nomal'; did you mean 'normal'"):
        inputs.check("nomal", "--inputs")
    with pytest.raises(ProblemError, match="no such file"):
        inputs.check(f"file:{tmp_path}/none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    with pytest.raises(ProblemError, match="cannot be read"):
        inputs.make(PROBLEM, 0, f"file:{tmp_path}/bad.safetensors")


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float_of_torch_is_read_as_torch_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    width = torch.empty(0, dtype=dtype).element_size()
    every_byte = torch.arange(256, dtype=torch.uint8).repeat(6).reshape(2, 2, -1, 8 * width).view(dtype)
    tensor = torch.where(every_byte.double().isfinite(), every_byte.double(), 0.0).to(dtype)
    save_file({name: tensor.clone() for name in "qkv"}, tmp_path / "x.safetensors")
    read = input_file.read(tmp_path / "x.safetensors")["q"]
    assert torch.equal(torch.from_numpy(read.astype("float64")), tensor.double())


@pytest.mark.parametrize(
    ("dtype", "value"), [*((each, math.nan) for each in FLOATS), *((each, -math.inf) for each in FLOATS[:-1])]
)
def test_a_value_that_is_not_finite_is_named_with_its_index(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    from safetensors.torch import save_file

    tensors = {name: torch.zeros(*shape).to(dtype) for name, shape in SHAPES.items()}
    tensors["v"][1, 0, 5, 7] = torch.tensor(value).to(dtype)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        ProblemError, match=r"--inputs file:.*x.safetensors: v\[1, 0, 5, 7\] is (nan|-inf): inputs must"
    ):
        inputs.check(f"file:{tmp_path}/x.safetensors", "--inputs")


@pytest.mark.parametrize(("dtype", "fits"), [("fp32", True), ("bf16", True), ("fp16", False), ("fp8_e4m3", False)])
def test_values_beyond_the_range_of_the_dtype_do_not_fit(tmp_path: Path, dtype: str, fits: bool) -> None:
    from safetensors.torch import save_file

    save_file({name: torch.full(shape, 1e5) for name, shape in SHAPES.items()}, tmp_path / "x.safetensors")
    problem = msgspec.structs.replace(PROBLEM, dtype=Dtype(dtype))
    name = f"file:{tmp_path}/x.safetensors"
    assert (inputs.objection(name, problem) == "") == fits
    if not fits:
        with pytest.raises(ProblemError, match=r"q holds 1e\+05; the dtype of this case ends at"):
            inputs.make(problem, 0, name)


def test_a_file_that_fits_no_case_is_refused_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "x.safetensors", **SHAPES)
    option = ["--inputs", f"file:{tmp_path}/x.safetensors"]
    for command in ("run", "verify"):
        assert cli.invoke([command, "--seq", "64", "-b", "naive", *option]) == 2
        error = capsys.readouterr().err
        assert "--inputs file:" in error
        assert "fits no case: q is float16 [2, 4, 96, 32]; this case needs floats [1, 8, 64, 64]" in error
