"""Configs of published model types: every table that a suite gets, and what is said about the rest."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from attnbench import suite
from attnbench.attention.choices import Dtype
from attnbench.errors import SuiteError
from attnbench.suite import Impossible, models
from attnbench.suite.models import types
from attnbench.suite.models.fields import Fields
from attnbench.suite.models.layers import LAYER_OF, Layer, layers_of
from attnbench.suite.models.types import LayerRule
from tests.suite.configs import BERT, DECODERS, ENCODERS, LLAMA_8B, SEQ2SEQ, VIT, short
from tests.suite.layer_configs import LAYERS
from tests.suite.nested_configs import PARTS

CASES = DECODERS | LAYERS | ENCODERS | SEQ2SEQ | PARTS


@pytest.mark.parametrize("name", CASES)
def test_a_config_gives_the_published_attention(name: str) -> None:
    case = CASES[name]
    suite_text = models.suite_of(case.config, "a test")
    assert sorted(map(short, tomllib.loads(suite_text.text)["problem"])) == sorted(case.tables)
    assert len(suite_text.notes) == len(case.notes)
    for note, fragment in zip(suite_text.notes, case.notes, strict=True):
        assert fragment in note
        assert f"# {note}\n" in suite_text.text  # the file says it too


REFUSED = {
    "mamba": ({"model_type": "mamba", "hidden_size": 768}, "model_type='mamba': it is recurrent"),
    "rwkv": ({"model_type": "rwkv", "hidden_size": 768}, "model_type='rwkv': it is recurrent"),
    "fnet": ({"model_type": "fnet", "hidden_size": 768}, "Fourier transforms"),
    "deberta": ({"model_type": "deberta-v2", **BERT, "relative_attention": True}, "disentangled attention"),
    "xlnet": ({"model_type": "xlnet", "n_head": 12, "d_model": 768}, "two streams"),
    "swin": ({"model_type": "swin", "num_heads": [3, 6, 12, 24], "window_size": 7}, "see the suite swin-t"),
    "beit": ({"model_type": "beit", **VIT}, "a learned bias for each pair of patches"),
    "wav2vec2": ({"model_type": "wav2vec2", "hidden_size": 768, "num_attention_heads": 12}, "states no length"),
    "deepseek v3.2": ({"model_type": "deepseek_v32", "index_topk": 2048}, "keys that an indexer selects"),
    "big bird": ({"model_type": "big_bird", **BERT, "attention_type": "block_sparse"}, "see the mask bigbird"),
    "baichuan": ({"model_type": "baichuan", **BERT}, "7B has rotary positions and 13B ALiBi"),
    "bert with relative positions": (
        {"model_type": "bert", **BERT, "position_embedding_type": "relative_key"},
        "position_embedding_type='relative_key' adds products with learned vectors",
    ),
    "mpt without alibi": (
        {"model_type": "mpt", "d_model": 64, "n_heads": 8, "max_seq_len": 99, "attn_config": {"alibi": False}},
        "alibi=False is not supported in attn_config",
    ),
    "mt5, which states no length": (
        {"model_type": "mt5", "d_model": 768, "num_heads": 12, "d_kv": 64}, "no max_position_embeddings (nor",
    ),
    "layers of one kind without attention": (
        {"model_type": "nemotron_h", **LLAMA_8B, "hybrid_override_pattern": "M-M"}, "layers 0-2 of 3 have no attention",
    ),
    "a hybrid without its list": (
        {"model_type": "granitemoehybrid", **LLAMA_8B}, "no layer_types (nor layers_block_type",
    ),
    "a window that is no number": (
        {"model_type": "mistral", **LLAMA_8B, "sliding_window": "4k"}, "sliding_window='4k' is no count: use a whole",
    ),
    "a window without its list of layers": (
        {"model_type": "smollm3", **LLAMA_8B, "use_sliding_window": True, "sliding_window": 4096},
        "no layer_types (nor layers_block_type",
    ),
    "a list that is no list": (
        {"model_type": "gpt_oss", **LLAMA_8B, "layer_types": "full_attention"},
        "layer_types='full_attention' is no list",
    ),
    "indexes of no layer": (
        {"model_type": "bamba", **LLAMA_8B, "num_hidden_layers": 4, "attn_layer_indices": []}, "no attn_layer_indices",
    ),
    "kinds of layers without their repetitions": (
        {"model_type": "gpt_neo", "attention_types": [["global", "local"]]},
        "attention_types=[['global', 'local']] is not a list of [kinds, repetitions]",
    ),
    "a patch larger than the image": (
        {"model_type": "vit", **VIT, "patch_size": 256}, "patch_size=256 is larger than the image",
    ),
    "an image of no size": ({"model_type": "vit", **VIT, "image_size": "big"}, "image_size='big' is no size in pixels"),
    "a size in quotes": (
        {"model_type": "vit", **VIT, "image_size": "224"}, "image_size='224' is a string: use the number 224",
    ),
    "a count of layers in quotes": (
        {"model_type": "llama", **LLAMA_8B, "num_hidden_layers": "32"},
        "num_hidden_layers='32' is a string: use the number 32",
    ),
    "a count of heads in quotes": (
        {"model_type": "llama", **LLAMA_8B, "num_attention_heads": "32"},
        "num_attention_heads='32' is a string: use the number 32",
    ),
    "no layer": (
        {"model_type": "llama", **LLAMA_8B, "num_hidden_layers": 0},
        "num_hidden_layers=0 is not possible: use at least 1",
    ),
    "no head": (
        {"model_type": "llama", **LLAMA_8B, "num_attention_heads": 0},
        "num_attention_heads=0 is not possible: use at least 1",
    ),
    "no key head": (
        {"model_type": "llama", **LLAMA_8B, "num_key_value_heads": 0},
        "num_key_value_heads=0 is not possible: use at least 1",
    ),
    "no head dimension": (
        {"model_type": "llama", **LLAMA_8B, "head_dim": 0}, "head_dim=0 is not possible: use at least 1",
    ),
    "a part of a head": (
        {"model_type": "llama", **LLAMA_8B, "num_attention_heads": 32.0},
        "num_attention_heads=32.0 is no count: use a whole number",
    ),
    "a window that has no middle": (
        {"model_type": "longformer", **BERT, "attention_window": [512, 511]},
        "attention_window=[512, 511] is no even number of tokens",
    ),
    "a scale that is no number": (
        {"model_type": "gemma2", **LLAMA_8B, "query_pre_attn_scalar": "a"}, "query_pre_attn_scalar='a' is no number",
    ),
    "a scale in quotes": (
        {"model_type": "gemma2", **LLAMA_8B, "query_pre_attn_scalar": "2.5e2"}, "is a string: use the number 2.5e2",
    ),
    "a factor that is no number": (
        {"model_type": "deepseek_v3", **LLAMA_8B, "rope_scaling": {"type": "yarn", "factor": "40"}},
        "has a factor or mscale_all_dim that is no number",
    ),
    "too few buckets": (
        {"model_type": "t5", "n_positions": 512, "relative_attention_num_buckets": 2},
        "relative_attention_num_buckets=2 with distances to 128 is no bias of T5",
    ),
    "a switch that is no switch": (
        {"model_type": "falcon", **LLAMA_8B, "alibi": "yes"}, "alibi='yes' is neither true nor false",
    ),
    "key heads that do not divide": (
        {"model_type": "llama", **LLAMA_8B, "num_key_value_heads": 5}, "32 heads are no multiple of 5 key-value heads",
    ),
    "an unknown model type": (
        {"model_type": "lama", **LLAMA_8B}, "model_type='lama' is unknown (the most similar name is 'llama')",
    ),
    "no model type": (LLAMA_8B, "no model_type"),
    "a whole without parts": ({"model_type": "llava"}, "model_type='llava' has no part with attention"),
    "a part without a model type": (
        {"model_type": "mine", "text_config": {"hidden_size": 8}}, "no text_config.model_type",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_cannot_be_read_is_refused_with_the_reason(name: str) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(SuiteError) as caught:
        models.suite_of(config, "a test")
    assert reason in str(caught.value)


@pytest.mark.parametrize("shipped", ["clip", "gemma2-9b", "gpt-oss"])
def test_a_config_has_the_masks_of_the_shipped_suite(shipped: str) -> None:
    config = {"clip": PARTS["clip: causal texts, and the dtype of the whole"],
              "gemma2-9b": LAYERS["gemma 2: every second layer, as its code has it"],
              "gpt-oss": LAYERS["gpt-oss: a list of layer types, and sinks"]}[shipped].config  # fmt: skip
    tables = tomllib.loads(models.suite_of(config, "a test").text)["problem"]
    masks = {mask for table in suite.load(shipped).tables for mask in table.axes["mask"]}
    assert {table["mask"] for table in tables} == masks


def test_every_known_model_type_makes_a_valid_suite_or_is_refused(tmp_path: Path) -> None:
    """With the defaults alone, and a length where there is none."""
    file = tmp_path / "made.toml"
    refused = set()
    for name in types.table():
        try:
            suite_text = models.suite_of({"model_type": name, "max_position_embeddings": 512}, "a test")
        except SuiteError:
            refused.add(name)
            continue
        file.write_text(suite_text.text)
        cells = suite.expand(suite.load(str(file)), kind="cpu", dtype=Dtype.FP32)
        assert not [cell.reason for cell in cells if isinstance(cell, Impossible)]
    assert refused >= {name for name, entry in types.table().items() if entry.kind is types.Kind.REFUSED}
    assert {"llama", "bert", "clip_vision_model", "t5", "qwen2_vl"}.isdisjoint(refused)


LAYERED = (LayerRule.PERIOD, LayerRule.PERIOD_FIRST, LayerRule.MAX_WINDOW_LAYERS, LayerRule.OFFSET, LayerRule.CYCLE)


@cache
def published_configs(layered: bool) -> dict[str, Any]:
    """The config of each known model type with attention, as transformers makes it without any field.

    `layered`: only of those whose kinds of layers follow a rule. The import of all takes seconds.
    """
    mapping = pytest.importorskip("transformers").CONFIG_MAPPING
    table = types.table()
    known = (name for name, entry in table.items() if entry.kind is not types.Kind.REFUSED)
    # Making the docstrings of the classes takes most of the time of their imports.
    with patch("transformers.utils.auto_docstring", lambda kind=None, **_: kind or (lambda each: each)):
        return {
            name: mapping[name]()
            for name in known
            if name in mapping and (not layered or table[name].layers in LAYERED)
        }


@pytest.mark.parametrize(("layered", "fewest"), [(True, 20), pytest.param(False, 150, marks=pytest.mark.slow)])
def test_the_defaults_are_those_of_transformers(layered: bool, fewest: int) -> None:
    configs = published_configs(layered=layered)
    assert len(configs) > fewest
    for name, config in configs.items():
        values = type(config).default_config_fields()
        for field, value in types.table()[name].defaults.items():
            if field in values and value is not False:
                default = values[field]
                assert (name, field, list(default) if isinstance(default, tuple) else default) == (name, field, value)


def test_the_kinds_of_layers_are_those_of_transformers() -> None:
    configs = published_configs(layered=True)
    assert len(configs) > 20
    for name, config in configs.items():
        published, model_type = config.layer_types, types.table()[name]
        layers = layers_of(Fields({"num_hidden_layers": len(published)}, model_type.defaults, ""), model_type)
        kinds = dict.fromkeys(LAYER_OF[layer] for layer in published)
        assert (name, layers) == (name, [layer for layer in kinds if layer is not Layer.NONE])
