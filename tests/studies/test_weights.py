"""Weights as pictures: figures against their definitions, the table of the docs, and the readers of other tools."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from attnbench import cli
from attnbench.attention import inputs
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import ProblemError
from attnbench.report.charts import attention_weights, rendering
from attnbench.studies import weights as study
from tests import definitions


def test_figures_of_a_head_are_those_of_its_definition() -> None:
    problem = Problem(seq_q=12, seq_kv=15, heads=4, kv_heads=2, head_dim=8, mask="causal", score=Score(bias="alibi"))
    seen = study.look(problem)
    tensors = inputs.make(problem, 0)
    _, _, weights = definitions.attend(problem, tensors.q, tensors.k, tensors.v)
    np.testing.assert_allclose(seen.weights, weights[0], atol=1e-12)
    for head, figures in enumerate(seen.heads()):
        entropies, firsts, tops, far = [], [], [], []
        for i, row in enumerate(weights[0, head]):
            entropies.append(-sum(w * math.log(w) for w in row if w > 0))
            firsts.append(max(row))
            tops.append(sum(sorted(row)[-study.TOP :]))
            far.append(sum(w * abs(j - (i + 3)) for j, w in enumerate(row)))
        assert figures.entropy == pytest.approx(np.mean(entropies))
        assert figures.most == pytest.approx(np.mean([math.log(i + 4) for i in range(12)]))
        assert figures.first == pytest.approx(np.mean(firsts))
        assert figures.top == pytest.approx(np.mean(tops))
        assert figures.sink == pytest.approx(weights[0, head, :, 0].mean())
        assert figures.distance == pytest.approx(np.mean(far))


def test_a_raster_keeps_the_mass() -> None:
    seen = study.look(Problem(seq_q=50, seq_kv=33, heads=1, mask="none"))
    pooled = seen.pooled(0, 8)
    assert pooled.shape == (8, 8)
    edges = [np.linspace(0, n, 9).astype(int) for n in (50, 33)]
    areas = np.diff(edges[0])[:, None] * np.diff(edges[1])[None, :]
    assert (pooled * areas).sum() == pytest.approx(50)


def test_the_collapse_without_a_scale() -> None:
    """Figures of docs/mechanisms.md: mean entropy of 256 keys, normal inputs, most 5.545."""
    known = {16: (1.92, 5.07), 64: (0.74, 5.05), 256: (0.31, 5.05), 1024: (0.12, 5.05)}
    for row in study.collapse():
        assert row.unscaled == pytest.approx(known[row.head_dim][0], abs=0.06)
        assert row.scaled == pytest.approx(known[row.head_dim][1], abs=0.03)


def test_weights_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["viz", "causal", "--weights", "--seq", "16", "--heads", "2", "--inputs", "sink"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "head 0"
    assert lines[1].rstrip() == "██"
    assert sum(line.startswith(("0  ", "1  ")) for line in lines) == 2
    assert "100.0 %" in lines[-2]


@pytest.mark.parametrize("format_", rendering.FORMATS)
def test_a_picture_in_every_format(tmp_path: Path, format_: str) -> None:
    file = tmp_path / f"weights.{format_}"
    assert cli.invoke(["viz", "causal", "--weights", "--seq", "32", "-o", str(file)]) == 0
    assert file.read_bytes().startswith({"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}[format_])
    collapse = tmp_path / f"collapse.{format_}"
    assert cli.invoke(["viz", "--collapse", "-o", str(collapse)]) == 0


def test_a_chart_has_a_panel_for_each_head_and_no_more_than_it_draws() -> None:
    seen = study.look(Problem(seq_q=8, heads=10, mask="none"))
    figure = attention_weights.figure(seen)
    assert len(figure.panels) == attention_weights.MAX_HEADS
    assert figure.left_out == "the first 8 of 10 heads"
    assert len(attention_weights.figure(study.look(Problem(seq_q=8, heads=1, mask="none"))).panels) == 1


def test_the_users_own_queries_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    file = tmp_path / "mine.safetensors"
    held = {"q": torch.zeros(1, 2, 5, 8), "k": torch.randn(1, 2, 7, 8), "v": torch.randn(1, 2, 7, 8)}
    safetensors.save_file(held, file)
    assert cli.invoke(["viz", "--weights", "--inputs", f"file:{file}"]) == 0
    out = capsys.readouterr().out
    assert "h2 q5 kv7 d8" in out
    assert f"{math.log(7):.2f}" in out.splitlines()[-3]  # equal weights: the entropy is the most that is possible
    safetensors.save_file({"q": held["q"]}, file)
    with pytest.raises(ProblemError, match="no tensor 'k'"):
        study.shape_of(file)
    safetensors.save_file({**held, "k": torch.zeros(7, 8)}, file)
    with pytest.raises(ProblemError, match=r"k is \[7, 8\]"):
        study.shape_of(file)


def test_tensorboard_histogram_has_values_and_step(tmp_path: Path) -> None:
    """Article 0 calls `add_histogram(tag=, data=)`, which has neither values nor a step."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert cli.invoke(["viz", "causal", "--weights", "--heads", "3", "--to", "tensorboard", "-o", str(tmp_path)]) == 0
    seen = reader.EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    seen.Reload()
    expected = study.look(Problem(seq_q=128, heads=3, mask="causal"))
    histograms = seen.Histograms("weights/by_head")
    assert [event.step for event in histograms] == [0, 1, 2]
    assert sum(histograms[0].histogram_value.bucket) == 128 * 128
    assert histograms[1].histogram_value.sum == pytest.approx(128)
    entropies = [event.value for event in seen.Scalars("weights/entropy")]
    assert entropies == pytest.approx([head.entropy for head in expected.heads()], rel=1e-6)
    (image,) = seen.Images("weights")
    pillow = pytest.importorskip("PIL.Image")
    assert pillow.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)


def test_wandb_is_offline_and_holds_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    assert cli.invoke(["viz", "causal", "--weights", "--heads", "2", "--to", "wandb", "-o", str(tmp_path)]) == 0
    (picture,) = tmp_path.rglob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--to", "tensorbord"], "tensorboard"),
        (["--to", "tensorboard"], "needs --weights"),
        (["--weights", "--head", "9"], "heads 0 to 3"),
        (["--weights", "--heads", "2,4"], "--heads: not an integer: '2,4'"),
        (["--weights", "--seq", "64k"], "weights are too many"),
        (["--weights", "--inputs", "norml"], "normal"),
    ],
)
def test_slips_are_named(options: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["viz", *options]) == 2
    assert hint in capsys.readouterr().err
