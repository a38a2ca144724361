"""Suites made of the config.json of models: fields as the transformers library writes them, shapes as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli, suite
from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.errors import SuiteError
from attnbench.suite import Cell, models

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip


def problems(config: dict[str, Any], folder: Path) -> list[Problem]:
    file = folder / "made.toml"
    file.write_text(models.suite_of(config, "a test").text)
    cells = list(suite.expand(suite.load(str(file)), kind="cpu", dtype=Dtype.FP32))
    return [cell.problem for cell in cells if isinstance(cell, Cell)]


def test_config_reader_keeps_vocab_and_length_apart(tmp_path: Path) -> None:
    """An article's Embedding(max_len) took one for the other: no length comes from the vocabulary."""
    lengths = {problem.seq_kv for problem in problems(LLAMA, tmp_path)}
    assert max(lengths) == 8192
    assert 128256 not in lengths


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LLAMA, {"causal": 0}), (LLAMA | {"num_hidden_layers": 32}, {"causal": 32}),
        (
            LLAMA | {"model_type": "mistral", "sliding_window": 128, "num_hidden_layers": 3,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            {"causal": 1, "causal+window:127": 2},
        ),
    ],
)  # fmt: skip
def test_tables_state_the_layers_of_their_kind(config: dict[str, Any], layers: dict[str, int], tmp_path: Path) -> None:
    file = tmp_path / "made.toml"
    file.write_text(models.suite_of(config, "a test").text)
    cells = suite.expand(suite.load(str(file)), kind="cpu", dtype=Dtype.FP32)
    assert {cell.problem.mask: cell.layers for cell in cells if isinstance(cell, Cell)} == layers


def test_a_number_of_layers_below_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "made.toml"
    file.write_text("[[problem]]\nseq = 64\nlayers = 0\n")
    with pytest.raises(SuiteError, match=r"problem\[0\].layers: 0: at least 1 layer"):
        suite.load(str(file))


WRONG = {
    "no heads": ({"hidden_size": 768, "seq_length": 9}, "no num_attention_heads (nor n_head"),
    "no width": ({"num_attention_heads": 12, "seq_length": 9}, "no hidden_size (nor n_embd"),
    "no length": ({"num_attention_heads": 12, "hidden_size": 768}, "no max_position_embeddings (nor n_positions"),
    "null": ({"num_attention_heads": None, "hidden_size": 768, "seq_length": 9}, "no num_attention_heads"),
    "lists": ({"num_heads": [3, 6], "hidden_size": 96, "seq_length": 9}, "num_heads=[3, 6] is no count"),
    "uneven": ({"n_head": 7, "hidden_size": 768, "seq_length": 9}, "768 is no multiple of 7 heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_config_without_its_fields_says_which(name: str) -> None:
    config, message = WRONG[name]
    with pytest.raises(SuiteError) as caught:
        models.suite_of({"model_type": "bloom", **config}, "a test")  # bloom has no defaults
    assert message in str(caught.value)


def test_the_command_writes_a_file_that_it_finds_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, written = tmp_path / "config.json", tmp_path / "mine.toml"
    config.write_text(json.dumps(LLAMA))
    command = ["suite", "from-config", str(config), "-o", str(written), "--source", 'a "quoted"\nplace']
    assert cli.invoke(command) == 0
    assert cli.invoke(["suite", "validate", str(written), "quick"]) == 0
    assert f"{written}: ok, 14 problems" in capsys.readouterr().out
    assert suite.load(str(written)).title == "Attention of llama, from its config.json"
    assert suite.load(str(written)).source == 'a "quoted"\nplace'
    assert cli.invoke(["suite", "show", str(written)]) == 0
    assert "b1 h32/8 q1 kv8192 d128 causal bf16 fwd  decode" in capsys.readouterr().out


def test_the_command_says_what_it_did_not_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA | {"sliding_window": 4096}))
    assert cli.invoke(["suite", "from-config", str(config)]) == 0
    output = capsys.readouterr()
    note = "sliding_window=4096 is not interpreted for model_type 'llama'"
    assert output.err == f"attnbench: note: {note}\n"
    assert output.out.startswith(f"# {note}\n")
    assert 'source = "config.json"' in output.out


def test_a_refused_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "other.json"
    config.write_text(json.dumps(LLAMA | {"model_type": "lama"}))
    assert cli.invoke(["suite", "from-config", str(config)]) == 2
    assert f"{config}: model_type='lama' is unknown" in capsys.readouterr().err


def test_a_name_in_a_note_cannot_end_the_comment(tmp_path: Path) -> None:
    config = {"model_type": "mine", "text_config": LLAMA, "a\nb_config": {"model_type": "mamba"}}
    assert {problem.heads for problem in problems(config, tmp_path)} == {32}


@pytest.mark.parametrize(("text", "message"), [("[]", "a list where"), ("{", "not JSON"), (None, "No such file")])
def test_a_file_that_is_no_config_is_named(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    if text is not None:
        config.write_text(text)
    assert cli.invoke(["suite", "from-config", str(config)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(config) in error


def test_validate_names_every_slip_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, mask = tmp_path / "key.toml", tmp_path / "mask.toml"
    key.write_text("[[problem]]\nsek = 5\n")
    mask.write_text('[[problem]]\nseq_q = 4\nseq_kv = 8\nmask = "bigbird"\n')
    assert cli.invoke(["suite", "validate", str(key), str(mask), "quick"]) == 2
    captured = capsys.readouterr()
    assert "no key 'sek'; did you mean 'seq'?" in captured.err
    assert "needs seq_q == seq_kv" in captured.err
    assert "quick: ok" in captured.out


def test_the_schema_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["suite", "schema"]) == 0
    assert "seq_kv" in json.dumps(json.loads(capsys.readouterr().out))
