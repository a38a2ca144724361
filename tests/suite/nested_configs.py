"""Configs of multimodal models, whose parts are nested."""

from __future__ import annotations

from tests.suite.configs import FULL, LLAMA_8B, SLIDING, VIT, Case, decoder, everything, local

CLIP_VISION = {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "num_attention_heads": 16,
               "patch_size": 14}  # fmt: skip
SIGLIP_VISION = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16,
                 "patch_size": 14, "image_size": 224}  # fmt: skip

PARTS = {
    "clip: causal texts, and the dtype of the whole": Case(
        {"model_type": "clip", "torch_dtype": "float16",
         "text_config": {"num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 77},
         "vision_config": {"num_attention_heads": 16, "hidden_size": 1024, "image_size": 224, "patch_size": 14}},
        ["text, texts: 77 h12 d64 fp16 causal", "vision, images: 257 h16 d64 fp16 none"],
    ),
    "siglip: bidirectional texts": Case(
        {"model_type": "siglip", "dtype": "float32",
         "text_config": {"model_type": "siglip_text_model", "num_attention_heads": 12, "hidden_size": 768,
                         "max_position_embeddings": 64},
         "vision_config": SIGLIP_VISION},
        ["text, texts: 64 h12 d64 fp32 none,padding:0.3", "vision, images: 256 h16 d72 fp32 none"],
    ),
    "llava 1.5, whose text part leaves out what is usual": Case(
        {"model_type": "llava", "torch_dtype": "float16",
         "text_config": {"model_type": "llama", "max_position_embeddings": 4096}, "vision_config": CLIP_VISION},
        [*decoder("h32 d128 fp16", "128..4096", name="text, "), "vision, images: 577 h16 d64 fp16 none"],
        ("text_config: not in the file, so the defaults of 'llama': num_attention_heads=32, hidden_size=4096",),
    ),
    "gemma 3 4b: five of six layers have a window": Case(
        {"model_type": "gemma3", "torch_dtype": "bfloat16",
         "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
                         "sliding_window": 1024, "max_position_embeddings": 8192},
         "vision_config": SIGLIP_VISION | {"image_size": 896}},
        [*local("h8/4 d256 bf16", "128..8192", 1023, "text, "), *everything("h8/4 d256 bf16", "128..8192", "text, "),
         "vision, images: 4096 h16 d72 bf16 none"],
        ("tokens of one image see each other in both directions",
         "num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256"),
    ),
    "gemma 3n: no scale; two parts cannot be read": Case(
        {"model_type": "gemma3n",
         "text_config": {"model_type": "gemma3n_text", "hidden_size": 2048, "num_attention_heads": 8,
                         "num_key_value_heads": 2, "head_dim": 256, "sliding_window": 512,
                         "layer_types": [*[SLIDING] * 4, FULL] * 6, "max_position_embeddings": 4096},
         "audio_config": {"model_type": "gemma3n_audio", "conf_num_attention_heads": 8},
         "vision_config": {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc"}},
        [*local("h8/2 d256 scale=1", "128..4096", 511, "text, "),
         *everything("h8/2 d256 scale=1", "128..4096", "text, ")],
        ("audio_config.model_type='gemma3n_audio': it adds relative positions",
         "vision_config.model_type='gemma3n_vision': it is a convolutional network"),
    ),
    "gemma 4: its full layers have other heads": Case(
        {"model_type": "gemma4",
         "text_config": {"model_type": "gemma4_text", "hidden_size": 5376, "num_attention_heads": 32,
                         "num_key_value_heads": 16, "num_global_key_value_heads": 4, "head_dim": 256,
                         "global_head_dim": 512, "attention_k_eq_v": True, "sliding_window": 1024,
                         "layer_types": [*[SLIDING] * 5, FULL], "max_position_embeddings": 4096}},
        [*local("h32/16 d256 scale=1", "128..4096", 1023, "text, "),
         *everything("h32/4 d512 scale=1", "128..4096", "text, ")],
        ("tokens of one image see each other in both directions",),
    ),
    "paligemma: the prompt is seen in both directions": Case(
        {"model_type": "paligemma",
         "text_config": {"model_type": "gemma", "hidden_size": 2048, "num_attention_heads": 8,
                         "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 4096},
         "vision_config": SIGLIP_VISION},
        ["text, prefill: 128..4096 h8/1 d256 none", "text, decode: 1x128..4096 h8/1 d256 causal",
         "vision, images: 256 h16 d72 none"],
    ),
    "qwen2-vl: text fields beside a vision part with the model type of the whole": Case(
        {"model_type": "qwen2_vl", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
         "max_position_embeddings": 32768, "max_window_layers": 28, "sliding_window": 32768,
         "use_sliding_window": False, "torch_dtype": "bfloat16",
         "vision_config": {"model_type": "qwen2_vl", "embed_dim": 1280, "num_heads": 16, "patch_size": 14}},
        decoder("h28/4 d128 bf16", "128..32768"),
        ("vision_config.model_type='qwen2_vl_vision': the number of patches depends on the image",),
    ),
    "qwen2.5-omni: parts of parts": Case(
        {"model_type": "qwen2_5_omni", "torch_dtype": "bfloat16", "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "text_config": {"model_type": "qwen2_5_omni_text", "hidden_size": 3584, "num_attention_heads": 28,
                            "num_key_value_heads": 4, "max_position_embeddings": 32768, "use_sliding_window": False},
            "audio_config": {"model_type": "qwen2_5_omni_audio_encoder", "encoder_attention_heads": 20}}},
        decoder("h28/4 d128 bf16", "128..32768", name="thinker text, "),
        ("thinker_config.audio_config.model_type='qwen2_5_omni_audio_encoder'",),
    ),
    "qwen2-audio": Case(
        {"model_type": "qwen2_audio", "text_config": {"model_type": "qwen2", **LLAMA_8B},
         "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 1280, "encoder_attention_heads": 20,
                          "max_source_positions": 1500}},
        [*decoder("h32/8 d128", "128..8192", name="text, "), "audio, frames: 128..1500 h20 d64 none,padding:0.3"],
    ),
    "a part without attention": Case(
        {"model_type": "llava", "text_config": {"model_type": "llama", **LLAMA_8B},
         "resampler_config": {"hidden_size": 4096}},
        decoder("h32/8 d128", "128..8192", name="text, "),
    ),
    "llama 4: chunks of 8192 in three of four layers": Case(
        {"model_type": "llama4",
         "text_config": {"model_type": "llama4_text", "attention_chunk_size": 8192, "head_dim": 128,
                         "hidden_size": 5120, "max_position_embeddings": 20000, "num_attention_heads": 40,
                         "num_hidden_layers": 48, "num_key_value_heads": 8, "no_rope_layers": [],
                         "no_rope_layer_interval": 4, "attn_temperature_tuning": True},
         "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 1408, "image_size": 336,
                           "patch_size": 14, "num_attention_heads": 16}},
        ["text, prefill, chunks: 128..8192 h40/8 d128 causal",
         "text, prefill, chunks: 16384 h40/8 d128 causal+document:2",
         "text, prefill, chunks: 20000 h40/8 d128 causal+document:8192-8192-3616",
         "text, decode, chunks: 1x128..8192 h40/8 d128 causal",
         *everything("h40/8 d128", "128..20000", "text, "), "vision, images: 577 h16 d88 none"],
        ("text_config: attn_temperature_tuning=true",),
    ),
    "llama 3.2 vision: cross-attention in some layers": Case(
        {"model_type": "mllama",
         "text_config": {"model_type": "mllama_text_model", **LLAMA_8B, "num_hidden_layers": 10,
                         "cross_attention_layers": [3, 8]},
         "vision_config": {"model_type": "mllama_vision_model", "attention_heads": 16}},
        decoder("h32/8 d128", "128..8192", name="text, "),
        ("layers 3, 8 of 10 have cross-attention: not written", "'mllama_vision_model': it attends to padded tiles"),
    ),
    "an image that is described in words": Case(
        {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit", **VIT},
         "decoder": {"model_type": "gpt2", "n_head": 12, "n_embd": 768, "n_positions": 1024,
                     "add_cross_attention": True}},
        ["encoder, images: 197 h12 d64 none", *decoder("h12 d64", "128..1024", name="decoder, ")],
        ("decoder: add_cross_attention=true",),
    ),
    "an unknown whole of known parts": Case(
        {"model_type": "internvl_chat", "torch_dtype": "bfloat16",
         "llm_config": {"model_type": "internlm2", **LLAMA_8B}, "quantization_config": {"bits": 4},
         "vision_config": {"model_type": "intern_vit_6b", "hidden_size": 1024, "num_attention_heads": 16,
                           "image_size": 448, "patch_size": 14}},
        [*decoder("h32/8 d128 bf16", "128..8192", name="llm, "), "vision, images: 1025 h16 d64 bf16 none"],
        ("model_type='internvl_chat' is unknown: its parts are read",),
    ),
    "a part that cannot be read beside one that can": Case(
        {"model_type": "internvl", "text_config": {"model_type": "llama", **LLAMA_8B},
         "vision_config": {"model_type": "internvl_vision", "num_attention_heads": 7, "image_size": [448, 448]}},
        decoder("h32/8 d128", "128..8192", name="text, "),
        ("not written: vision_config.hidden_size=1024 is no multiple of 7 heads",),
    ),
}  # fmt: skip
