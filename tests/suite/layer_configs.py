"""Configs of models whose layers differ: windows, chunks, and layers without attention."""

from __future__ import annotations

from tests.suite.configs import BERT, FULL, LLAMA_8B, SLIDING, Case, decoder, everything, local, texts

LAYERS = {
    "mistral: all layers have the window": Case(
        {"model_type": "mistral", **LLAMA_8B, "sliding_window": 4096},
        decoder("h32/8 d128", "128..8192", "causal+window:4095"),
    ),
    "mistral without a window": Case(
        {"model_type": "mistral", **LLAMA_8B, "sliding_window": None}, decoder("h32/8 d128", "128..8192")
    ),
    "mixtral": Case({"model_type": "mixtral", **LLAMA_8B, "sliding_window": None}, decoder("h32/8 d128", "128..8192")),
    "phi 3": Case(
        {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32,
         "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "sliding_window": 2047},
        decoder("h32 d96", "128..4096", "causal+window:2046"),
    ),
    "starcoder 2": Case(
        {"model_type": "starcoder2", "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 2,
         "max_position_embeddings": 16384, "sliding_window": 4096},
        decoder("h24/2 d128", "128..16384", "causal+window:4095"),
    ),
    "qwen 2.5, whose window is switched off": Case(
        {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
         "max_position_embeddings": 32768, "max_window_layers": 28, "sliding_window": 131072,
         "use_sliding_window": False},
        decoder("h28/4 d128", "128..32768"),
    ),
    "qwen 3": Case(
        {"model_type": "qwen3", "hidden_size": 1024, "head_dim": 128, "num_attention_heads": 16,
         "num_key_value_heads": 8, "max_position_embeddings": 40960, "sliding_window": None,
         "use_sliding_window": False},
        decoder("h16/8 d128", "128..32768"),
    ),
    "gemma 2: every second layer, as its code has it": Case(
        {"model_type": "gemma2", "hidden_size": 3584, "head_dim": 256, "num_attention_heads": 16,
         "num_key_value_heads": 8, "max_position_embeddings": 8192, "sliding_window": 4096,
         "query_pre_attn_scalar": 144, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        [*local("h16/8 d256 scale=0.0833333 softcap=50", "128..8192", 4095),
         *everything("h16/8 d256 scale=0.0833333 softcap=50", "128..8192")],
    ),
    "gpt-oss: a list of layer types, and sinks": Case(
        {"model_type": "gpt_oss", "hidden_size": 2880, "head_dim": 64, "num_attention_heads": 64,
         "num_key_value_heads": 8, "max_position_embeddings": 4096, "sliding_window": 128,
         "layer_types": [SLIDING, FULL] * 12},
        [*local("h64/8 d64 sinks", "128..4096", 127), *everything("h64/8 d64 sinks", "128..4096")],
    ),
    "cohere 2: sliding_window_pattern": Case(
        {"model_type": "cohere2", **LLAMA_8B, "head_dim": 128, "num_hidden_layers": 32, "sliding_window": 4096,
         "sliding_window_pattern": 4},
        [*local("h32/8 d128", "128..8192", 4095), *everything("h32/8 d128", "128..8192")],
    ),
    "exaone 4: sliding_window_pattern of letters": Case(
        {"model_type": "exaone4", **LLAMA_8B, "sliding_window": 4096, "sliding_window_pattern": "LLLG"},
        [*local("h32/8 d128", "128..8192", 4095), *everything("h32/8 d128", "128..8192")],
    ),
    "exaone 4 of 1.2b: no window": Case(
        {"model_type": "exaone4", **LLAMA_8B, "sliding_window": None, "sliding_window_pattern": None,
         "layer_types": [FULL] * 30},
        decoder("h32/8 d128", "128..8192"),
    ),
    "llama 4: a list of the layers with chunks": Case(
        {"model_type": "llama4_text", **LLAMA_8B, "head_dim": 128, "attention_chunk_size": 4096,
         "no_rope_layers": [1, 1], "attn_temperature_tuning": False},
        ["prefill: 128..4096 h32/8 d128 causal", "prefill: 8192 h32/8 d128 causal+document:2",
         "decode: 1x128..4096 h32/8 d128 causal"],
    ),
    "llama 4 without chunks": Case(
        {"model_type": "llama4_text", **LLAMA_8B, "head_dim": 128, "attention_chunk_size": None,
         "attn_temperature_tuning": False},
        decoder("h32/8 d128", "128..8192"),
    ),
    "exaone 4: a pattern without a period": Case(
        {"model_type": "exaone4", **LLAMA_8B, "sliding_window": None, "sliding_window_pattern": 0},
        decoder("h32/8 d128", "128..8192"),
    ),
    "olmo 3: three of four": Case(
        {"model_type": "olmo3", **LLAMA_8B, "sliding_window": 4096},
        [*local("h32/8 d128", "128..8192", 4095), *everything("h32/8 d128", "128..8192")],
    ),
    "qwen 2: layers from max_window_layers on": Case(
        {"model_type": "qwen2", **LLAMA_8B, "num_hidden_layers": 28, "use_sliding_window": True,
         "sliding_window": 4096, "max_window_layers": 14},
        [*everything("h32/8 d128", "128..8192"), *local("h32/8 d128", "128..8192", 4095)],
    ),
    "qwen 2: no layer from max_window_layers on": Case(
        {"model_type": "qwen2", **LLAMA_8B, "num_hidden_layers": 28, "use_sliding_window": True,
         "sliding_window": 4096, "max_window_layers": 28},
        decoder("h32/8 d128", "128..8192"),
    ),
    "qwen 2 without use_sliding_window, which is false by default": Case(
        {"model_type": "qwen2", **LLAMA_8B, "sliding_window": 4096, "max_window_layers": 0},
        decoder("h32/8 d128", "128..8192"),
    ),
    "gpt-neo: attention_types, window_size, no scale": Case(
        {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 12]], "hidden_size": 2048, "num_heads": 16,
         "num_layers": 24, "window_size": 256, "max_position_embeddings": 2048},
        [*everything("h16 d128 scale=1", "128..2048"), *local("h16 d128 scale=1", "128..2048", 255)],
    ),
    "modernbert: a modulus; half of the window on each side": Case(
        {"model_type": "modernbert", **BERT, "num_hidden_layers": 22, "global_attn_every_n_layers": 3,
         "local_attention": 128, "position_embedding_type": "absolute"},
        ["texts, full attention: 128..512 h12 d64 none,padding:0.3",
         "texts, sliding window: 128..512 h12 d64 window:64"],
    ),
    "embeddinggemma: bidirectional": Case(
        {"model_type": "gemma3_text", "hidden_size": 768, "num_attention_heads": 3, "num_key_value_heads": 1,
         "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512, "max_position_embeddings": 2048,
         "use_bidirectional_attention": True, "layer_types": [*[SLIDING] * 5, FULL] * 4},
        ["texts, sliding window: 128..2048 h3/1 d256 window:256",
         "texts, full attention: 128..2048 h3/1 d256 none,padding:0.3"],
    ),
    "qwen 2 trained to embed": Case(
        {"model_type": "qwen2", **LLAMA_8B, "is_causal": False}, texts("h32/8 d128", "128..8192")
    ),
    "mistral trained to embed: the window is on each side": Case(
        {"model_type": "mistral", **LLAMA_8B, "is_causal": False, "sliding_window": 4096},
        ["texts: 128..8192 h32/8 d128 window:4096"],
    ),
    "cwm: the first of four layers is full": Case(
        {"model_type": "cwm", **LLAMA_8B, "head_dim": 128, "sliding_window": 8192, "num_hidden_layers": 64},
        [*everything("h32/8 d128", "128..8192"), *local("h32/8 d128", "128..8192", 8191)],
    ),
    "jamba: attention at an offset in each period": Case(
        {"model_type": "jamba", **LLAMA_8B, "num_hidden_layers": 16, "attn_layer_period": 8, "attn_layer_offset": 4},
        decoder("h32/8 d128", "128..8192"), ("layers 0-3, 5-11, 13-15 of 16 have no attention",),
    ),
    "qwen 3 next: full_attention_interval": Case(
        {"model_type": "qwen3_next", **LLAMA_8B, "head_dim": 256, "num_hidden_layers": 8, "full_attention_interval": 4},
        decoder("h32/8 d256", "128..8192"), ("layers 0-2, 4-6 of 8 have no attention",),
    ),
    "granite 4: mamba and attention": Case(
        {"model_type": "granitemoehybrid", **LLAMA_8B, "attention_multiplier": 0.0078125, "layer_types":
         ["mamba", "mamba", "attention", "mamba"], "position_embedding_type": "nope"},
        decoder("h32/8 d128 scale=0.0078125", "128..8192"), ("layers 0-1, 3 of 4 have no attention",),
    ),
    "nemotron h: letters": Case(
        {"model_type": "nemotron_h", **LLAMA_8B, "head_dim": 128, "hybrid_override_pattern": "M-M*-"},
        decoder("h32/8 d128", "128..8192"), ("layers 0-2, 4 of 5 have no attention",),
    ),
    "lfm 2: the layers with attention": Case(
        {"model_type": "lfm2", **LLAMA_8B, "num_hidden_layers": 6, "full_attn_idxs": [2, 5]},
        decoder("h32/8 d128", "128..8192"), ("layers 0-1, 3-4 of 6 have no attention",),
    ),
    "kimi linear: the layers with latent attention, counted from 1": Case(
        {"model_type": "kimi_linear", "hidden_size": 2304, "num_attention_heads": 32, "num_key_value_heads": 32,
         "head_dim": 72, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
         "model_max_length": 4096, "num_hidden_layers": 4, "linear_attn_config": {"full_attn_layers": [4]}},
        [*decoder("h32 d192 dv128", "128..4096"),
         "decode, latent cache: 1x128..4096 h32 d192 dv128 kv=latent:512+64 causal"],
        ("layers 0-2 of 4 have no attention",),
    ),
    "minimax: one number for each layer": Case(
        {"model_type": "minimax", **LLAMA_8B, "attn_type_list": [0, 0, 0, 1]}, decoder("h32/8 d128", "128..8192"),
        ("layers 0-2 of 4 have no attention",),
    ),
    "recurrent gemma: a cycle of blocks": Case(
        {"model_type": "recurrent_gemma", "hidden_size": 2560, "num_attention_heads": 10, "num_key_value_heads": 1,
         "num_hidden_layers": 8, "block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 2048,
         "max_position_embeddings": 8192},
        decoder("h10/1 d256", "128..8192", "causal+window:2047"), ("layers 0-1, 3-4, 6-7 of 8 have no attention",),
    ),
    "zamba 2: heads of two hidden states, with the scale of one": Case(
        {"model_type": "zamba2", "hidden_size": 2048, "num_attention_heads": 32,
         "num_key_value_heads": 32, "layers_block_type": ["mamba", "hybrid"], "max_position_embeddings": 4096},
        decoder("h32 d128 scale=0.125", "128..4096"), ("layers 0 of 2 have no attention",),
    ),
    "a layer type that nobody knows": Case(
        {"model_type": "qwen3", **LLAMA_8B, "head_dim": 128, "layer_types": [FULL, "strange", FULL]},
        decoder("h32/8 d128", "128..8192"), ("layers 1 of 3 are of an unknown type ('strange')",),
    ),
}  # fmt: skip
