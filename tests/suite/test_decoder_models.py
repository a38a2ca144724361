"""Layers by their number and weights of a config: published models and their published numbers of parameters."""

from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import SuiteError
from attnbench.suite.models import read_config
from attnbench.suite.models.decoder import Decoder, decoder_of
from attnbench.suite.models.layers import Layer

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 32, "max_position_embeddings": 8192, "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}  # fmt: skip
GPT_OSS_20B: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
    "num_local_experts": 32, "num_experts_per_tok": 4, "vocab_size": 201088, "sliding_window": 128, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "num_attention_heads": 128, "q_lora_rank": 1536, "vocab_size": 129280,
    "quantization_config": {"quant_method": "fp8"},
}  # fmt: skip


def parameters(decoder: Decoder) -> tuple[float, float]:
    """All, and those that one token uses, in thousand millions."""
    weights = decoder.weights
    every = weights.embedding + weights.dense + weights.experts * weights.expert
    used = weights.dense + weights.experts_per_token * weights.expert
    return every / 1e9, used / 1e9


@pytest.mark.parametrize(
    ("config", "every", "used"),
    [
        (LLAMA_8B, 8.03, 7.50),  # without the embedding
        (GPT_OSS_20B, 20.9, 3.6),  # https://huggingface.co/openai/gpt-oss-20b
        (DEEPSEEK_V3, 671.0, 37.0),  # https://arxiv.org/abs/2412.19437
        ({"model_type": "gpt2", "n_layer": 12, "vocab_size": 50257, "tie_word_embeddings": True}, 0.124, 0.124),
    ],
)
def test_weights_are_those_that_are_published(config: dict[str, Any], every: float, used: float) -> None:
    assert parameters(decoder_of(config)) == pytest.approx((every, used), rel=0.03)


def test_layers_of_each_kind_are_counted() -> None:
    kinds = {
        layer.kind: (layer.count, layer.window, layer.heads, layer.kv_heads) for layer in decoder_of(GPT_OSS_20B).layers
    }
    assert kinds == {Layer.SLIDING: (12, 128, 64, 8), Layer.FULL: (12, 0, 64, 8)}


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        ({"model_type": "gemma3_text", "num_hidden_layers": 34}, {Layer.SLIDING: 29, Layer.FULL: 5}),
        (
            {"model_type": "exaone4", "num_hidden_layers": 64, "sliding_window_pattern": "LLLG"},
            {Layer.SLIDING: 48, Layer.FULL: 16},
        ),
        (
            {"model_type": "gpt_neo", "num_layers": 24, "attention_types": [[["global", "local"], 12]]},
            {Layer.FULL: 12, Layer.SLIDING: 12},
        ),
        (
            {"model_type": "gpt_neo", "num_layers": 6, "attention_types": [[["global"], 4], [["local"], 2]]},
            {Layer.FULL: 4, Layer.SLIDING: 2},
        ),
        ({"model_type": "llama4_text", "num_hidden_layers": 48}, {Layer.CHUNKED: 36, Layer.FULL: 12}),
        ({"model_type": "jamba", "num_hidden_layers": 32}, {Layer.FULL: 4}),  # the others have no attention
    ],
)
def test_patterns_repeat_to_the_last_layer(config: dict[str, Any], counts: dict[Layer, int]) -> None:
    decoder = decoder_of({"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8, **config})
    assert {layer.kind: layer.count for layer in decoder.layers} == counts


def test_what_the_config_does_not_state_becomes_a_note() -> None:
    config = {name: value for name, value in LLAMA_8B.items() if name != "num_attention_heads"}
    assert decoder_of(config).notes == ("not in the file, so the defaults of 'llama': num_attention_heads=32",)


def test_weights_without_a_vocabulary_become_a_note() -> None:
    config = {name: value for name, value in LLAMA_8B.items() if name != "vocab_size"}
    assert decoder_of(config).notes == ("no vocab_size: the weights are counted without the embedding and the head",)


def test_latent_layers_cache_one_key() -> None:
    (layer,) = decoder_of(DEEPSEEK_V3).layers
    assert (layer.count, layer.head_dim, layer.head_dim_v, layer.latent) == (61, 192, 128, (576, 512))
    assert layer.cached_numbers == 576


def test_the_text_part_of_a_multimodal_model_is_taken() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "vocab_size": 262208}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16, "image_size": 896}
    decoder = decoder_of({"model_type": "gemma3", "vision_config": vision, "text_config": text})
    assert sum(layer.count for layer in decoder.layers) == 34


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bloom", "hidden_size": 4096, "num_hidden_layers": 4}, "no num_attention_heads .*: add it"),
        ({**LLAMA_8B, "num_hidden_layers": None}, "no num_hidden_layers .*: add it"),
        ({**LLAMA_8B, "num_hidden_layers": 0}, "num_hidden_layers=0 is not possible: use at least 1"),
        ({**LLAMA_8B, "vocab_size": 0}, "vocab_size=0 is not possible: use at least 1"),
        ({**LLAMA_8B, "intermediate_size": "14336"}, "intermediate_size='14336' is a string: use the number 14336"),
        ({"model_type": "bert", "hidden_size": 768}, "model_type='bert' has no part that generates text: use"),
        (
            {**LLAMA_8B, "model_type": "nemotron_h", "hybrid_override_pattern": "M-M"},
            "layers 0-2 of 3 have no attention",
        ),
        ({"model_type": "mamba", "hidden_size": 768}, "it is recurrent"),
        ({"model_type": "unheard_of", "num_attention_heads": 8}, "model_type='unheard_of' is unknown"),
        ({}, "no model_type"),
        ({**LLAMA_8B, "model_type": "llama", "layer_types": ["strange"]}, "layers 0 of 1 are of an unknown type"),
    ],
)
def test_a_config_without_a_decoder_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        decoder_of(config)


def test_a_config_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, message in (("[1]", "a list where fields were expected"), ("{", "not JSON")):
        path.write_text(text)
        with pytest.raises(SuiteError, match=f"{path}: .*{message}"):
            read_config(path)
    path.write_text('{"model_type": "llama"}')
    assert read_config(path) == {"model_type": "llama"}
    with pytest.raises(SuiteError, match=r"none.json: No such file"):
        read_config(tmp_path / "none.json")
