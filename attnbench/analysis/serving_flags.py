"""Where a backend is chosen in vLLM, sglang and transformers: what they call the libraries that attnbench measures."""

from collections.abc import Iterator

import msgspec

# vLLM 0.32, the same in commits 0033bf03 of vllm/v1/attention/backends/registry.py (AttentionBackendEnum) and 021ebc5d
# of vllm/config/attention.py. FLASHINFER_MLA calls other kernels than flashinfer:mla (those of TensorRT-LLM).
_VLLM = {
    "flash-attn:2": "FLASH_ATTN --attention-config.flash_attn_version 2",
    "flash-attn:3": "FLASH_ATTN --attention-config.flash_attn_version 3",
    "flash-attn:4": "FLASH_ATTN --attention-config.flash_attn_version 4",
    "flashinfer": "FLASHINFER",
    "flex": "FLEX_ATTENTION",
}
# sglang 0.5.23: srt/arg_groups/choices.py (ATTENTION_BACKEND_CHOICES), srt/layers/attention/attention_registry.py.
# torch_native calls scaled_dot_product_attention once per request (srt/layers/attention/torch_native_backend.py).
_SGLANG = {
    "flash-attn:3": "fa3",
    "flash-attn:4": "fa4",
    "flashinfer": "flashinfer",
    "flashinfer:mla": "flashinfer",  # srt/layers/attention/flashinfer_mla_backend.py
    "flex": "flex_attention",
    "sdpa": "torch_native",
}
# transformers 5.24: modeling_utils.py (AttentionInterface); docs/source/en/attention_interface.md has sdpa_kernel too.
_TRANSFORMERS = {
    "naive": "eager",
    "sdpa": "sdpa",
    "flex": "flex_attention",
    "flash-attn:2": "flash_attention_2",
    "flash-attn:3": "flash_attention_3",
    "flash-attn:4": "flash_attention_4",
}
_SDPA_KERNELS = {
    "sdpa:math": "MATH",
    "sdpa:flash": "FLASH_ATTENTION",
    "sdpa:efficient": "EFFICIENT_ATTENTION",
    "sdpa:cudnn": "CUDNN_ATTENTION",
}

# The versions that the names above are of, by engine.
VERSIONS = {"vLLM": "0.32", "sglang": "0.5.23", "transformers": "5.24"}
BY_PHASE = "sglang"  # the engine that takes a backend for prefill and one for decoding


class EngineSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What to set in one library."""

    engine: str
    setting: str = ""  # a flag or an argument; empty: there is none
    note: str = ""  # why there is none, and what would do


def settings(single: str | None, decode: str | None, prefill: str | None) -> list[EngineSetting]:
    """The settings for the best single backend and, in sglang, for the best of each phase; None: no backend."""
    return [
        *(_vllm(single) if single else ()),
        *(_sglang(decode, prefill) if decode or prefill else ()),
        *(_transformers(single) if single else ()),
    ]


def _vllm(backend: str) -> Iterator[EngineSetting]:
    note = f'vLLM has no flag for {backend}: register_backend(AttentionBackendEnum.CUSTOM, "module.Class") adds one.'
    flag = _VLLM.get(backend)
    yield (
        EngineSetting(engine="vLLM", setting=f"--attention-backend {flag}")
        if flag
        else EngineSetting(engine="vLLM", note=note)
    )


def _sglang(decode: str | None, prefill: str | None) -> Iterator[EngineSetting]:
    """A mixed step uses the prefill backend (srt/layers/attention/hybrid_attn_backend.py)."""
    phases = {"prefill": prefill, "decode": decode}
    flags = [f"--{phase}-attention-backend {_SGLANG[name]}" for phase, name in phases.items() if name in _SGLANG]
    unknown = dict.fromkeys(name for name in phases.values() if name and name not in _SGLANG)
    note = ""
    if unknown:
        note = f"sglang has no flag for {' and '.join(unknown)}: @register_attention_backend(name) adds one."
    yield EngineSetting(engine="sglang", setting=" ".join(flags), note=note)


def _transformers(backend: str) -> Iterator[EngineSetting]:
    name, note = _TRANSFORMERS.get(backend), ""
    if backend in _SDPA_KERNELS:
        name, note = "sdpa", f"Call the model within sdpa_kernel(SDPBackend.{_SDPA_KERNELS[backend]})."
    if not name:
        note = (
            f"transformers has no name for {backend}: AttentionInterface.register and AttentionMaskInterface.register, "
            "under one name, add one."
        )
    yield EngineSetting(engine="transformers", setting=f'attn_implementation="{name}"' if name else "", note=note)
