"""Local kernels in the format of Hugging Face's `kernels`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnbench import backends, cli
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import CaseRefusedError, kernels_hub
from attnbench.errors import UsageError
from attnbench.records.case import Case
from tests import oracle

SOURCE = """
import torch


def attention(q, k, v, is_causal=False, scale=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)


def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
    return attention(*(x.transpose(1, 2) for x in (q, k, v)), causal, softmax_scale).transpose(1, 2), None
"""
METADATA = {
    "name": "mine",
    "id": "mine",
    "version": 1,
    "license": "MIT",
    "python-depends": [],
    "backend": {"type": "cpu"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    built = tmp_path / "mine" / "build" / "torch-universal"
    built.mkdir(parents=True)
    (built / "__init__.py").write_text(SOURCE)
    (built / "metadata.json").write_text(json.dumps(METADATA))
    return tmp_path / "mine"


def parameters(function: Any) -> Any:
    return inspect.signature(function).parameters


def test_a_name_is_a_folder_and_a_function(folder):
    assert kernels_hub.parse(f"kernels:{folder}") == (folder, "")
    assert kernels_hub.parse(f"kernels:{folder}:attention") == (folder, "attention")
    name = f"kernels:{folder}:attention"
    assert not backends.is_file(name)
    assert backends.load(name).name == name


def test_a_folder_without_a_built_kernel_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"is no built kernel: it needs build/VARIANT/metadata.json"):
        kernels_hub.parse(f"kernels:{tmp_path}")
    assert cli.invoke(["run", "-b", "kernels:nowhere", "--seq", "64", "--dry-run"]) == 2
    assert "no folder 'nowhere' (try kernels:FOLDER:function)" in capsys.readouterr().err


def test_the_problem_is_passed_by_the_parameters_that_the_function_has():
    causal = Problem(seq_q=8, mask="causal")
    flash = parameters(lambda q, k, v, softmax_scale, causal: None)
    assert kernels_hub.arguments(flash, causal) == {"softmax_scale": causal.scale, "causal": True}
    plain = parameters(lambda q, k, v: None)
    assert kernels_hub.arguments(plain, Problem(seq_q=8)) == {}
    with pytest.raises(CaseRefusedError, match="no parameter for causal: is_causal, causal"):
        kernels_hub.arguments(plain, causal)
    with pytest.raises(CaseRefusedError, match="no parameter for scale: scale, softmax_scale, sm_scale"):
        kernels_hub.arguments(plain, Problem(seq_q=8, score=Score(scale=0.5)))


def test_a_kernel_without_the_function_names_those_that_it_has():
    module = SimpleNamespace(attend=len, _hidden=len)
    with pytest.raises(CaseRefusedError, match="attention or flash_attn_func or forward: it has attend"):
        kernels_hub.function_of(module, "")
    assert kernels_hub.function_of(module, "attend") is len


@pytest.mark.slow
@pytest.mark.parametrize("function", ["", ":attention", ":flash_attn_func"])
def test_a_local_kernel_is_loaded_without_a_network(folder, function, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("kernels")
    problem, name = Problem(seq_q=24, heads=2, mask="causal"), f"kernels:{folder}{function}"
    prepared = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu")
    qkv, _ = oracle.drawn(problem)
    out = prepared.call(*qkv)
    assert torch.allclose(out.double(), oracle.attend(problem, *qkv)[0], atol=1e-5)
