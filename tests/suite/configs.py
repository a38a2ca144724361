"""Configs of published model types, and the tables that their suites have.

The fields are those of the published config.json; the expected attention is that of `modeling_*.py` in
https://github.com/huggingface/transformers/tree/main/src/transformers/models, and of the papers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
LLAMA_8B = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}
BERT = {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 512}
VIT = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 224, "patch_size": 16}


class Case(NamedTuple):
    """A config, the tables of its suite in short, and fragments of its notes, one for each."""

    config: dict[str, Any]
    tables: list[str]
    notes: tuple[str, ...] = ()


def decoder(shape: str, length: str, mask: str = "causal", name: str = "", kind: str = "") -> list[str]:
    """Prefill and decode."""
    kind = f", {kind}" if kind else ""
    return [f"{name}prefill{kind}: {length} {shape} {mask}", f"{name}decode{kind}: 1x{length} {shape} {mask}"]


def local(shape: str, length: str, window: int, name: str = "") -> list[str]:
    """Layers with a window of `window` keys beside the token itself."""
    return decoder(shape, length, f"causal+window:{window}", name, "sliding window")


def everything(shape: str, length: str, name: str = "") -> list[str]:
    """Layers that see everything, beside others."""
    return decoder(shape, length, "causal", name, "full attention")


def texts(shape: str, length: str, name: str = "") -> list[str]:
    return [f"{name}texts: {length} {shape} none,padding:0.3"]


def short(table: dict[str, Any]) -> str:
    """A table as one line, with everything that it holds but the number of its layers, which test_models.py checks."""
    table = dict(table)
    table.pop("layers", None)
    name, heads, mask = table.pop("name"), table.pop("heads"), table.pop("mask")
    if "seq" in table:
        length = str(table.pop("seq"))
    else:
        queries = table.pop("seq_q")
        listed = ",".join(map(str, queries)) if isinstance(queries, list) else queries
        length = f"{listed}x{table.pop('seq_kv')}"
    kv_heads = f"/{table.pop('kv_heads')}" if "kv_heads" in table else ""
    words = [f"{name}:", length, f"h{heads}{kv_heads}", f"d{table.pop('head_dim')}"]
    words += [f"dv{table.pop('head_dim_v')}"] if "head_dim_v" in table else []
    words += [f"kv={table.pop('kv')}"] if "kv" in table else []
    words += [f"{key}={table.pop(key):.6g}" for key in ("scale", "softcap", "temperature") if key in table]
    words += [f"bias={table.pop('bias')}"] if "bias" in table else []
    words += ["sinks"] if table.pop("sinks", False) else []
    words += [table.pop("dtype")] if "dtype" in table else []
    assert not table
    return " ".join([*words, mask if isinstance(mask, str) else ",".join(mask)])


DECODERS = {
    "gpt2": Case(
        {"model_type": "gpt2", "n_head": 12, "n_embd": 768, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257},
        decoder("h12 d64", "128..1024"),
    ),
    "a reward model of llama": Case(
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], **LLAMA_8B},
        decoder("h32/8 d128", "128..8192"),
    ),
    "a base model of llama": Case(
        {"model_type": "llama", "architectures": ["LlamaModel"], **LLAMA_8B}, decoder("h32/8 d128", "128..8192")
    ),
    "no architectures": Case(
        {"model_type": "llama", "architectures": None, **LLAMA_8B}, decoder("h32/8 d128", "128..8192")
    ),
    "dtype in place of torch_dtype": Case(
        {"model_type": "llama", **LLAMA_8B, "dtype": "bfloat16"}, decoder("h32/8 d128 bf16", "128..8192")
    ),
    "a dtype that attnbench lacks": Case(
        {"model_type": "llama", **LLAMA_8B, "dtype": "float8_e4m3fn"}, decoder("h32/8 d128", "128..8192"),
        ("dtype='float8_e4m3fn' is not interpreted",),
    ),
    "llama, which uses no window": Case(
        {"model_type": "llama", **LLAMA_8B, "sliding_window": 4096}, decoder("h32/8 d128", "128..8192"),
        ("sliding_window=4096 is not interpreted for model_type 'llama'",),
    ),
    "code beside the weights": Case(
        {"model_type": "llama", **LLAMA_8B, "auto_map": {"AutoModel": "modeling.Mine"}},
        decoder("h32/8 d128", "128..8192"), ("auto_map names code beside the weights",),
    ),
    "falcon 7b, one key head": Case(
        {"model_type": "falcon", "alibi": False, "hidden_size": 4544, "num_attention_heads": 71, "multi_query": True,
         "new_decoder_architecture": False},
        decoder("h71/1 d64", "128..2048"), ("defaults of 'falcon': max_position_embeddings=2048",),
    ),
    "falcon 40b, whose new architecture ignores multi_query": Case(
        {"model_type": "falcon", "alibi": False, "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8,
         "multi_query": True, "new_decoder_architecture": True, "max_position_embeddings": 2048},
        decoder("h128/8 d64", "128..2048"),
    ),
    "falcon rw, whose scale applies to alibi too": Case(
        {"model_type": "falcon", "alibi": True, "hidden_size": 2048, "num_attention_heads": 32, "multi_query": False,
         "new_decoder_architecture": False, "max_position_embeddings": 2048},
        decoder("h32 d64 scale=1 temperature=8 bias=alibi", "128..2048"),
    ),
    "bloom": Case(
        {"model_type": "bloom", "n_embed": 14336, "n_head": 112, "n_layer": 70, "seq_length": 2048},
        decoder("h112 d128 bias=alibi", "128..2048"),
    ),
    "mpt": Case(
        {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "max_seq_len": 2048,
         "attn_config": {"alibi": True, "softmax_scale": 0.25, "attn_type": "multihead_attention"}},
        decoder("h32 d128 scale=0.25 bias=alibi", "128..2048"),
    ),
    "dbrx": Case(
        {"model_type": "dbrx", "d_model": 6144, "n_heads": 48, "max_seq_len": 32768,
         "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "model_type": ""}, "ffn_config": {"moe_num_experts": 16}},
        decoder("h48/8 d128", "128..32768"),
    ),
    "starcoder, one key head": Case(
        {"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_positions": 8192, "multi_query": True},
        decoder("h48/1 d128", "128..8192"),
    ),
    "granite, with a scale of its own": Case(
        {"model_type": "granite", **LLAMA_8B, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22},
        decoder("h32/8 d128 scale=0.0078125", "128..8192"),
    ),
    "gpt-2 with scales by layer": Case(
        {"model_type": "gpt2", "n_head": 16, "n_embd": 1024, "n_positions": 1024,
         "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": True},
        decoder("h16 d64", "128..1024"), ("scale_attn_by_inverse_layer_idx=true",),
    ),
    "gpt-2 without a scale": Case(
        {"model_type": "gpt2", "n_head": 16, "n_embd": 1024, "n_positions": 1024, "scale_attn_weights": False},
        decoder("h16 d64 scale=1", "128..1024"),
    ),
    "falcon h1, which multiplies its keys": Case(
        {"model_type": "falcon_h1", "hidden_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 2,
         "head_dim": 64, "key_multiplier": 0.5, "max_position_embeddings": 4096},
        decoder("h8/2 d64 scale=0.0625", "128..4096"), ("every layer has a recurrent branch",),
    ),
    "deepseek v3: expanded keys, a latent cache, and the scale of YaRN": Case(
        {"model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128,
         "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
         "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0},
         "max_position_embeddings": 4096, "torch_dtype": "bfloat16"},
        # (0.1 ln 40 + 1)^2 / sqrt(192)
        [*decoder("h128 d192 dv128 scale=0.135234 bf16", "128..4096"),
         "decode, latent cache: 1x128..4096 h128 d192 dv128 kv=latent:512+64 scale=0.135234 bf16 causal"],
    ),
    "minicpm 3, whose values have the width of a head": Case(
        {"model_type": "minicpm3", "hidden_size": 2560, "num_attention_heads": 40, "num_key_value_heads": 40,
         "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "max_position_embeddings": 4096},
        [*decoder("h40 d96 dv64", "128..4096"),
         "decode, latent cache: 1x128..4096 h40 d96 dv64 kv=latent:256+32 causal"],
    ),
    "command r": Case(
        {"model_type": "cohere", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 64,
         "max_position_embeddings": 8192, "model_max_length": 131072, "torch_dtype": "float16"},
        decoder("h64 d128 fp16", "128..8192"),
    ),
    "gpt-j": Case(
        {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_positions": 2048, "rotary_dim": 64},
        decoder("h16 d256", "128..2048"),
    ),
    "gpt-neox": Case(
        {"model_type": "gpt_neox", "hidden_size": 6144, "num_attention_heads": 64, "max_position_embeddings": 2048,
         "rotary_pct": 0.25, "torch_dtype": "float16"},
        decoder("h64 d96 fp16", "128..2048"),
    ),
    "opt": Case({"model_type": "opt", **BERT, "ffn_dim": 3072}, decoder("h12 d64", "128..512")),
    "deepseek v2 lite": Case(
        {"model_type": "deepseek_v2", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
         "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "q_lora_rank": None,
         "max_position_embeddings": 163840},
        [*decoder("h16 d192 dv128", "128..32768"),
         "decode, latent cache: 1x128..32768 h16 d192 dv128 kv=latent:512+64 causal"],
    ),
    "bert as a decoder": Case({"model_type": "bert", **BERT, "is_decoder": True}, decoder("h12 d64", "128..512")),
}  # fmt: skip

ENCODERS = {
    "bert": Case({"model_type": "bert", "architectures": ["BertForMaskedLM"], **BERT}, texts("h12 d64", "128..512")),
    "distilbert": Case(
        {"model_type": "distilbert", "dim": 768, "n_heads": 12, "max_position_embeddings": 512},
        texts("h12 d64", "128..512"),
    ),
    "roberta, two of whose positions are no tokens": Case(
        {"model_type": "roberta", **BERT, "max_position_embeddings": 514}, texts("h12 d64", "128..512")
    ),
    "mpnet: the buckets of T5 with the usual scale": Case(
        {"model_type": "mpnet", **BERT, "max_position_embeddings": 514, "relative_attention_num_buckets": 32},
        texts("h12 d64 bias=t5", "128..512"),
    ),
    "longformer": Case(
        {"model_type": "longformer", **BERT, "max_position_embeddings": 4098, "attention_window": [256, 256, 512]},
        ["texts: 128..4096 h12 d64 longformer:256,longformer:512"],
    ),
    "xlm": Case(
        {"model_type": "xlm", "emb_dim": 2048, "n_heads": 16, "max_position_embeddings": 512, "causal": False},
        texts("h16 d128", "128..512"),
    ),
    "vit": Case({"model_type": "vit", **VIT}, ["images: 197 h12 d64 none"]),
    "siglip, without a class token": Case({"model_type": "siglip_vision_model", **VIT}, ["images: 196 h12 d64 none"]),
    "deit, with two tokens more": Case({"model_type": "deit", **VIT}, ["images: 198 h12 d64 none"]),
    "dinov2 with registers": Case(
        {"model_type": "dinov2_with_registers", **VIT, "num_register_tokens": 4}, ["images: 201 h12 d64 none"]
    ),
    "yolos: a wide image and detection tokens": Case(
        {"model_type": "yolos", **VIT, "image_size": [512, 864], "num_detection_tokens": 100},
        ["images: 1829 h12 d64 none"],
    ),
}  # fmt: skip

SEQ2SEQ = {
    "bart": Case(
        {"model_type": "bart", "is_encoder_decoder": True, "d_model": 1024, "encoder_attention_heads": 16,
         "decoder_attention_heads": 16, "max_position_embeddings": 1024},
        ["encoder: 128..1024 h16 d64 none", "decoder, itself: 128..1024 h16 d64 causal",
         "decoder, the source: 1,128x128..1024 h16 d64 none"],
    ),
    "whisper": Case(
        {"model_type": "whisper", "is_encoder_decoder": True, "d_model": 512, "encoder_attention_heads": 8,
         "decoder_attention_heads": 8, "max_source_positions": 1500, "max_target_positions": 448},
        ["encoder: 128..1500 h8 d64 none", "decoder, itself: 128..448 h8 d64 causal",
         "decoder, the source: 1,128x128..1500 h8 d64 none"],
    ),
    "t5": Case(
        {"model_type": "t5", "is_encoder_decoder": True, "d_model": 512, "num_heads": 6, "d_kv": 64, "n_positions": 512,
         "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        ["encoder: 128..512 h6 d64 scale=1 bias=t5 none", "decoder, itself: 128..512 h6 d64 scale=1 bias=t5 causal",
         "decoder, the source: 1,128x128..512 h6 d64 scale=1 none"],
    ),
    "t5 without an encoder": Case(
        {"model_type": "t5", "is_encoder_decoder": False, "d_model": 512, "num_heads": 6, "d_kv": 64,
         "n_positions": 512, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        ["decoder, itself: 128..512 h6 d64 scale=1 bias=t5 causal"],
        ("only the self-attention of the decoder is written",),
    ),
    "led": Case(
        {"model_type": "led", "d_model": 768, "encoder_attention_heads": 12, "decoder_attention_heads": 12,
         "max_encoder_position_embeddings": 16384, "max_decoder_position_embeddings": 1024,
         "attention_window": [1024] * 6},
        ["encoder: 128..16384 h12 d64 longformer:1024", "decoder, itself: 128..1024 h12 d64 causal",
         "decoder, the source: 1,128x128..16384 h12 d64 none"],
    ),
    "longt5, whose encoder attends by blocks": Case(
        {"model_type": "longt5", "d_model": 768, "num_heads": 12, "d_kv": 64, "n_positions": 4096,
         "encoder_attention_type": "local", "local_radius": 127, "relative_attention_num_buckets": 32,
         "relative_attention_max_distance": 128},
        ["decoder, itself: 128..4096 h12 d64 scale=1 bias=t5 causal",
         "decoder, the source: 1,128x128..4096 h12 d64 scale=1 none"],
        ("encoder_attention_type: the encoder's blocks of attention are not written",),
    ),
}  # fmt: skip
