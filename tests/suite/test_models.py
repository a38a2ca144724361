"""Suites made of the config.json of models: fields as the transformers library writes them, shapes as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli, suite
from attnbench.attention.problem import Dtype, Mode, Problem
from attnbench.errors import SuiteError
from attnbench.records.case import problem_label
from attnbench.suite import Cell, models

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip
CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": (LLAMA, ["b1 h32/8 q8192 kv8192 d128 causal bf16", "b1 h32/8 q1 kv8192 d128 causal bf16"]),
    "gpt2": (
        {"architectures": ["GPT2LMHeadModel"], "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257},
        ["b1 h12 q1024 kv1024 d64 causal fp32", "b1 h12 q1 kv128 d64 causal fp32"],
    ),
    "bert": (
        {"architectures": ["BertForMaskedLM"], "num_attention_heads": 12, "hidden_size": 768,
         "max_position_embeddings": 512},
        ["b1 h12 q512 kv512 d64 none fp32", "b1 h12 q128 kv128 d64 padding:0.3 fp32"],
    ),
    "mistral": (
        {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 4096, "max_position_embeddings": 32768},
        ["b1 h32/8 q32768 kv32768 d128 causal+window:4095 bf16"],
    ),
    "qwen2, whose window is switched off": (
        {**LLAMA, "sliding_window": 4096, "use_sliding_window": False}, ["b1 h32/8 q8192 kv8192 d128 causal bf16"],
    ),
    "gemma 2": (
        {**LLAMA, "num_attention_heads": 16, "head_dim": 256, "hidden_size": 3584, "query_pre_attn_scalar": 256,
         "attn_logit_softcapping": 50.0},
        ["b1 h16/8 q128 kv128 d256 causal bf16 softcap=50 scale=0.0625"],
    ),
    "falcon, one key head for all": (
        {"architectures": ["FalconForCausalLM"], "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True,
         "max_position_embeddings": 2048},
        ["b1 h71/1 q2048 kv2048 d64 causal fp32"],
    ),
    "deepseek": (
        {**LLAMA, "num_attention_heads": 128, "num_key_value_heads": 128, "qk_nope_head_dim": 128,
         "qk_rope_head_dim": 64, "v_head_dim": 128},
        ["b1 h128 q128 kv128 d192 dv128 causal bf16"],
    ),
    "longformer": (
        {"num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 4098, "attention_window": [512]},
        ["b1 h12 q4098 kv4098 d64 longformer:512 fp32"],
    ),
    "bart": (
        {"is_encoder_decoder": True, "d_model": 1024, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
         "max_position_embeddings": 1024},
        ["b1 h16 q1024 kv1024 d64 none fp32", "b1 h16 q128 kv128 d64 causal fp32", "b1 h16 q1 kv1024 d64 none fp32"],
    ),
    "t5": (
        {"is_encoder_decoder": True, "d_model": 512, "num_heads": 6, "d_kv": 64, "n_positions": 512,
         "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        ["b1 h6 q512 kv512 d64 none fp32 bias=t5 scale=1", "b1 h6 q128 kv512 d64 none fp32 scale=1"],
    ),
    "gpt-oss": (
        {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_attention_heads": 64,
         "num_key_value_heads": 8, "head_dim": 64, "hidden_size": 2880, "max_position_embeddings": 4096,
         "torch_dtype": "bfloat16", "sliding_window": 128},
        ["b1 h64/8 q4096 kv4096 d64 causal+window:127 bf16 sinks=True"],
    ),
    "bloom with alibi": (
        {"architectures": ["BloomForCausalLM"], "n_head": 8, "hidden_size": 512, "seq_length": 2048, "alibi": True},
        ["b1 h8 q2048 kv2048 d64 causal fp32 bias=alibi"],
    ),
    "whisper": (
        {"is_encoder_decoder": True, "d_model": 512, "encoder_attention_heads": 8, "decoder_attention_heads": 8,
         "max_source_positions": 1500, "max_target_positions": 448},
        ["b1 h8 q1500 kv1500 d64 none fp32", "b1 h8 q448 kv448 d64 causal fp32"],
    ),
    "vit": (
        {"num_attention_heads": 12, "hidden_size": 768, "image_size": 224, "patch_size": 16},
        ["b1 h12 q197 kv197 d64 none fp32"],
    ),
    "clip": (
        {"torch_dtype": "float16",
         "text_config": {"num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 77},
         "vision_config": {"num_attention_heads": 16, "hidden_size": 1024, "image_size": 224, "patch_size": 14}},
        ["b1 h12 q77 kv77 d64 none fp16", "b1 h16 q257 kv257 d64 none fp16"],
    ),
}  # fmt: skip


def problems(config: dict[str, Any], folder: Path) -> list[Problem]:
    file = folder / "made.toml"
    file.write_text(models.suite_of(config, "a test"))
    cells = list(suite.expand(suite.load(str(file)), kind="cpu", dtype=Dtype.FP32))
    return [cell.problem for cell in cells if isinstance(cell, Cell)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_makes_the_published_shapes(name: str, tmp_path: Path) -> None:

    config, wanted = CONFIGS[name]
    labels = [problem_label(one, Mode.FWD).replace(" fwd", "") for one in problems(config, tmp_path)]
    found = {" ".join(sorted(one.split())) for one in labels}
    assert {" ".join(sorted(one.split())) for one in wanted} <= found


def test_config_reader_keeps_vocab_and_length_apart(tmp_path: Path) -> None:
    """An article's Embedding(max_len) took one for the other: no length comes from the vocabulary."""
    lengths = {one.seq_kv for one in problems(LLAMA, tmp_path)}
    assert max(lengths) == 8192
    assert 128256 not in lengths


WRONG = {
    "no heads": ({"hidden_size": 768}, "config.json has no num_attention_heads (nor n_head"),
    "no width": ({"num_attention_heads": 12, "max_position_embeddings": 9}, "has no hidden_size (nor n_embd"),
    "no length": ({"num_attention_heads": 12, "hidden_size": 768}, "has no max_position_embeddings (nor n_positions"),
    "lists": ({"num_heads": [3, 6], "hidden_size": 96, "max_position_embeddings": 9}, "num_heads: [3, 6] is no count"),
    "uneven": (
        {"num_attention_heads": 7, "hidden_size": 768, "max_position_embeddings": 9}, "768 is no multiple of 7 heads",
    ),
    "a part": ({"text_config": {"hidden_size": 8}}, "has no text_config.num_attention_heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_config_without_its_fields_says_which(name: str) -> None:
    config, said = WRONG[name]
    with pytest.raises(SuiteError) as caught:
        models.suite_of(config, "a test")
    assert said in str(caught.value)


def test_the_command_writes_a_file_that_it_finds_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, made = tmp_path / "config.json", tmp_path / "mine.toml"
    config.write_text(json.dumps(LLAMA | {"model_type": 'a "quoted"\nname'}))
    assert cli.invoke(["suite", "from-config", str(config), "-o", str(made)]) == 0
    assert cli.invoke(["suite", "validate", str(made), "quick"]) == 0
    assert f"{made}: ok, 14 problems" in capsys.readouterr().out
    assert suite.load(str(made)).title == 'Attention of a "quoted"\nname, from its config.json'
    assert suite.load(str(made)).source == "config.json"
    assert cli.invoke(["suite", "show", str(made)]) == 0
    assert "b1 h32/8 q1 kv8192 d128 causal bf16 fwd  decode" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "said"), [("[]", "a list where"), ("{", "not JSON"), (None, "No such file")])
def test_a_file_that_is_no_config_is_named(
    tmp_path: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    if text is not None:
        config.write_text(text)
    assert cli.invoke(["suite", "from-config", str(config)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(config) in error


def test_validate_names_every_slip_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, mask = tmp_path / "key.toml", tmp_path / "mask.toml"
    key.write_text("[[problem]]\nsek = 5\n")
    mask.write_text('[[problem]]\nseq_q = 4\nseq_kv = 8\nmask = "bigbird"\n')
    assert cli.invoke(["suite", "validate", str(key), str(mask), "quick"]) == 2
    said = capsys.readouterr()
    assert "no key 'sek'; did you mean 'seq'?" in said.err
    assert "needs seq_q == seq_kv" in said.err
    assert "quick: ok" in said.out


def test_the_schema_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["suite", "schema"]) == 0
    assert "seq_kv" in json.dumps(json.loads(capsys.readouterr().out))
