"""What survey articles on attention write, held against the float64 reference: docs/articles.md has the findings.

Every test is named after a row there (F1 to F14) or after a slip in published code.
"""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path

import msgspec
import pytest
import torch

from attnbench import backends
from attnbench.attention import cost, inputs, masks, scopes
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.attention.terms import Grid
from attnbench.errors import UnknownNameError
from attnbench.records.case import Case
from attnbench.worker.reference_outputs import differentiable
from tests import reference

ODD = Problem(seq_q=5, seq_kv=7, heads=3, head_dim=4, head_dim_v=6)  # all sizes differ: nothing fits by accident


def drawn(problem: Problem, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    shapes = (
        (problem.heads, problem.seq_q, problem.head_dim),
        (problem.kv_heads, problem.seq_kv, problem.head_dim),
        (problem.kv_heads, problem.seq_kv, problem.head_dim_v),
    )
    q, k, v = (torch.randn(problem.batch, *shape, generator=source, dtype=torch.float64) for shape in shapes)
    return q, k, v


def weights(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.einsum("bhid,bhjd->bhij", q, k).mul(scale).softmax(-1)


def test_f2_f3_softmax_of_scaled_products_times_v() -> None:
    q, k, v = drawn(ODD)
    exact = torch.einsum("bhij,bhjd->bhid", weights(q, k, 4**-0.5), v)
    torch.testing.assert_close(reference.attend(ODD, q, k, v).out, exact)


def test_f4_f5_it_is_v_that_is_summed() -> None:
    """Not k, as one article has it: the output is linear in v, and k does more than scale it."""
    q, k, v = drawn(ODD)
    _, _, other = drawn(ODD, seed=1)
    both = reference.attend(ODD, q, k, 2 * v + 3 * other).out
    apart = 2 * reference.attend(ODD, q, k, v).out + 3 * reference.attend(ODD, q, k, other).out
    torch.testing.assert_close(both, apart)
    assert not torch.allclose(reference.attend(ODD, q, 2 * k, v).out, 2 * reference.attend(ODD, q, k, v).out)


def test_f6_a_causal_softmax_runs_over_past_keys_too() -> None:
    """Summing j <= i is right only with weights that sum to 1 over these j; a later key changes nothing."""
    problem = Problem(seq_q=6, heads=1, head_dim=4, mask="causal")
    q, k, v = drawn(problem)
    ones = torch.ones_like(v)
    torch.testing.assert_close(reference.attend(problem, q, k, ones).out, ones)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[..., 4:, :], changed_v[..., 4:, :] = 9.0, 9.0
    before, after = reference.attend(problem, q, k, v).out, reference.attend(problem, q, changed_k, changed_v).out
    torch.testing.assert_close(before[..., :4, :], after[..., :4, :])
    assert not torch.allclose(before[..., 4:, :], after[..., 4:, :])


@pytest.mark.parametrize(
    ("width", "unscaled", "scaled"), [(16, 1.92, 5.07), (64, 0.74, 5.05), (256, 0.31, 5.05), (1024, 0.12, 5.05)]
)
def test_f7_without_the_scale_weights_collapse(width: int, unscaled: float, scaled: float) -> None:
    """Mean entropy in nats over 256 keys, of at most 5.545: the table of docs/articles.md."""

    def entropy(scale: float) -> float:
        outputs = []
        for seed in range(4):
            source = torch.Generator().manual_seed(seed)
            q, k = (torch.randn(1, 1, 256, width, generator=source, dtype=torch.float64) for _ in range(2))
            p = weights(q, k, scale)
            outputs.append(float(torch.special.entr(p).sum(-1).mean()))
        return sum(outputs) / len(outputs)

    assert entropy(1.0) == pytest.approx(unscaled, abs=0.05)
    assert entropy(width**-0.5) == pytest.approx(scaled, abs=0.02)


def test_f8_weights_have_a_row_for_each_query_and_a_column_for_each_key() -> None:
    """Not the rows of two matrices one beside the other."""
    q, k, _ = drawn(ODD)
    assert weights(q, k, 0.5).shape == (1, 3, 5, 7)


def test_f9_the_worked_example_by_outer_product() -> None:
    """Three queries and keys of width 1: q (.5, .5, .5), k (.8, .1, .1), v (.3, .7, .8)."""
    q, k, v = (
        torch.tensor(values, dtype=torch.float64).reshape(1, 1, 3, 1)
        for values in ((0.5, 0.5, 0.5), (0.8, 0.1, 0.1), (0.3, 0.7, 0.8))
    )
    rows = weights(q, k, 1.0)[0, 0]
    for row in rows:
        assert row.tolist() == pytest.approx([0.415, 0.292, 0.292], abs=6e-4)
    problem = Problem(seq_q=3, heads=1, head_dim=1, score=Score(scale=1.0))
    assert reference.attend(problem, q, k, v).out.flatten().tolist() == pytest.approx([0.563] * 3, abs=6e-4)


def test_f9_the_concatenation_that_the_article_prints_cannot_be_multiplied_as_it_says() -> None:
    """Its softmax of three rows of two is printed as three by three; the rows it would give are these."""
    printed = torch.tensor([[0.5, 0.8], [0.5, 0.1], [0.5, 0.1]], dtype=torch.float64).softmax(-1)
    assert printed.shape == (3, 2)
    assert printed[0].tolist() == pytest.approx([0.426, 0.574], abs=6e-4)
    assert printed[1].tolist() == pytest.approx([0.599, 0.401], abs=6e-4)


def test_f10_heads_are_put_side_by_side_and_not_summed() -> None:
    q, k, v = drawn(ODD)
    out = reference.attend(ODD, q, k, v).out
    order = [2, 0, 1]
    moved = reference.attend(ODD, q[:, order], k[:, order], v[:, order]).out
    torch.testing.assert_close(moved, out[:, order])


def test_f13_f14_work_grows_with_the_square_of_the_length_and_not_with_the_number_of_heads() -> None:
    """At a fixed width of the model; neither O(d^3 + d^2 n) nor O(n^3)."""

    def work(seq: int, heads: int, width: int = 512) -> int:
        return cost.flops(Problem(seq_q=seq, heads=heads, head_dim=width // heads), Mode.FWD)

    assert work(2048, 8) == 4 * work(1024, 8)
    assert work(1024, 8) == work(1024, 16) == work(1024, 1)
    assert work(1024, 8, 1024) == 2 * work(1024, 8)


# -- slips in published code -------------------------------------------------------------------------------------------


def test_row_without_keys_is_zero() -> None:
    """A row that is masked as a whole is NaN in a plain softmax."""
    problem = Problem(seq_q=4, seq_kv=2, heads=1, head_dim=4, mask="causal")
    actual = reference.attend(problem, *drawn(problem))
    assert (actual.out[..., :2, :] == 0).all()
    assert (actual.lse[..., :2] == -math.inf).all()
    assert actual.out.isfinite().all()


def test_swapped_transpose_fails_unless_square() -> None:
    """v transposed in place of k: the shapes refuse it, where sequence and width differ."""
    q, _, v = drawn(ODD)
    with pytest.raises(RuntimeError):
        q @ v.transpose(-2, -1)
    square = Problem(seq_q=4, heads=1, head_dim=4)
    a, b, c = drawn(square)
    wrong = (a @ c.transpose(-2, -1) * 0.5).softmax(-1) @ b
    assert wrong.shape == reference.attend(square, a, b, c).out.shape
    assert not torch.allclose(wrong, reference.attend(square, a, b, c).out)


def test_mask_changes_the_output() -> None:
    """A mask that is an argument and never used."""
    problem = Problem(seq_q=6, heads=1, head_dim=4)
    q, k, v = drawn(problem)
    plain = reference.attend(problem, q, k, v).out
    for text in ("causal", "window:1", "prefix:2", "document:2", "padding:0.3", "dilated:2", "longformer:2"):
        masked = reference.attend(Problem(seq_q=6, heads=1, head_dim=4, mask=text), q, k, v).out
        assert not torch.allclose(masked, plain), text


def test_softmax_is_over_keys() -> None:
    """Over positions of the query the weights of one query would not sum to 1."""
    q, k, v = drawn(ODD)
    ones = torch.ones_like(v)
    torch.testing.assert_close(reference.attend(ODD, q, k, ones).out, torch.ones(1, 3, 5, 6, dtype=torch.float64))
    over_queries = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-2)
    assert not torch.allclose(over_queries.sum(-1), torch.ones(1, 3, 5, dtype=torch.float64))


def test_weights_multiply_as_a_matrix() -> None:
    """An elementwise product of weights and values needs equal shapes, and is something else where it has them."""
    square = Problem(seq_q=4, heads=1, head_dim=4)
    q, k, v = drawn(square)
    assert not torch.allclose(weights(q, k, 0.5) * v, reference.attend(square, q, k, v).out)


def test_integer_mask_is_refused_with_its_shape() -> None:
    from attnbench import kernels

    q = torch.zeros(2, 1, 8, 16)
    with pytest.raises(ValueError, match=r"mask is torch.int64 \[2, 8\].*must be bool \[2, 1, 8, 8\]"):
        kernels.attention(q, q, q, mask=torch.ones(2, 8, dtype=torch.int64))


def test_unknown_key_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'left'"):
        masks.parse("window:lef=3").check(Grid(1, 4, 4))


def test_token_ids_are_not_vectors() -> None:
    """Integer ids go through an embedding first; a user's own inputs that hold ids are refused by name and shape."""
    from attnbench.errors import ProblemError

    ids = torch.randint(100, (2, 5))
    with pytest.raises(RuntimeError, match="dtype"):
        torch.nn.Linear(5, 4)(ids)
    vectors = torch.nn.Embedding(100, 4)(ids)
    assert torch.nn.Linear(4, 4)(vectors).shape == (2, 5, 4)
    safetensors = pytest.importorskip("safetensors.torch")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.safetensors"
        held = {name: torch.randint(100, (1, 3, size, 4)) for name, size in zip("qk", (5, 7), strict=True)}
        safetensors.save_file({**held, "v": torch.randn(1, 3, 7, 6)}, file)
        with pytest.raises(ProblemError, match=r"q is int64 \[1, 3, 5, 4\]; use float64"):
            inputs.make(ODD, 0, f"file:{file}")


def test_fused_backends_refuse_weights() -> None:
    """No `get_weights`, no `get_attention_scores`: what never held the weights says so, and gives the lse instead."""
    problem = msgspec.structs.replace(ODD, head_dim_v=4, returns="weights")
    for name in backends.names():
        kinds = backends.load(name).limits
        for kind in kinds:
            case = Case(problem=problem, backend=name)
            refused = any("weights besides the output" in why for why in backends.load(name).objections(case, kind))
            assert refused == (name not in ("naive", "sdpa:math", "ort:attention"))
    for name in ("flex", "flash-attn:2", "triton"):
        assert "lse" in backends.load(name).limits["cuda"].features


def test_returned_weights_are_weights() -> None:
    """Not the context under their name: [.., seq_q, seq_kv], rows that sum to 1, and out is their product with v."""
    problem = msgspec.structs.replace(ODD, mask="causal", returns="weights", dtype="fp32")
    q, k, v = (tensor.float() for tensor in drawn(problem))
    for name in ("naive", "sdpa:math"):
        out, weights = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu").call(q, k, v)
        assert weights.shape == (1, 3, 5, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3, 5))
        torch.testing.assert_close(weights @ v, out)
        assert (weights.triu(7 - 5 + 1) == 0).all()


def test_decoder_takes_target_then_memory() -> None:
    """Swapped, they fail by their lengths, or compute something else: the output has the length of the target."""
    problem = Problem(seq_q=5, seq_kv=7, heads=2, head_dim=4, scope="layer:2")
    target, memory = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (5, 7))
    core = differentiable(msgspec.structs.replace(problem, scope="core"), exact=True, sequence=0)
    inner = scopes.self_attention(problem)
    assert inner is not None
    exact = differentiable(inner, exact=True, sequence=0)
    out = scopes.apply(problem, dict(scopes.matrices(problem)), core, exact, target, memory, memory)
    assert out.shape == target.shape
    changed = scopes.apply(problem, dict(scopes.matrices(problem)), core, exact, target, memory + 1, memory)
    assert not torch.allclose(out, changed)
    later = target.clone()
    later[:, :, -1] += 1  # the target is causal in itself: nothing before its last token changes
    moved = scopes.apply(problem, dict(scopes.matrices(problem)), core, exact, later, memory, memory)
    torch.testing.assert_close(moved[:, :, :-1], out[:, :, :-1])
    with pytest.raises(RuntimeError):
        scopes.apply(problem, dict(scopes.matrices(problem)), core, exact, memory, target, target)


def test_layer_count_is_obeyed() -> None:
    """Six layers are six times the work and six sets of weights; one article's code builds one and calls it six."""
    single, six = (Problem(seq_q=6, heads=2, head_dim=4, scope=f"layer:{count}") for count in (1, 6))
    assert cost.flops(six, Mode.FWD) == 6 * cost.flops(single, Mode.FWD)
    assert len(dict(scopes.matrices(six))) == 6 * len(dict(scopes.matrices(single)))
    matrices = {tuple(matrix.flatten().tolist()) for matrix in dict(scopes.matrices(six)).values()}
    assert len(matrices) == len(dict(scopes.matrices(six)))


def test_docs_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The corrected code of docs/articles.md, piece by piece, in the order in which it stands there."""
    text = (Path(__file__).parent.parent / "docs" / "articles.md").read_text()
    pieces = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(pieces) >= 3
    names: dict[str, object] = {}
    for piece in pieces:
        exec(compile(piece, "docs/articles.md", "exec"), names)
    assert "loss" in capsys.readouterr().out
