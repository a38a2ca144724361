"""Make a suite from a model's config.json, as the transformers library writes it. Nothing is downloaded."""

import json
from collections.abc import Iterator, Mapping

from attnbench.attention import biases
from attnbench.errors import SuiteError

HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")
LENGTH = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_source_positions")
PARTS = ("text_config", "vision_config", "encoder_config", "decoder_config", "audio_config")
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
GENERATES = ("ForCausalLM", "LMHeadModel")
LONGEST = 32768  # maximum number of tokens of a prompt
SHORTEST = 128


def suite_of(config: Mapping[str, object], source: str) -> str:
    """The text of a suite file. Raises SuiteError with the missing fields."""
    parts = {name: part for name in PARTS if isinstance(part := config.get(name), Mapping)}
    tables: list[dict[str, object]] = []
    if _first(config, HEADS) or config.get("encoder_attention_heads") or not parts:
        tables += _tables(config, "")
    for name, part in parts.items():
        tables += _tables({**part, "torch_dtype": part.get("torch_dtype", config.get("torch_dtype"))}, name)
    kind = config.get("model_type") or "model"
    lines = [f"title = {_quoted(f'Attention of {kind}, from its config.json')}", f"source = {_quoted(source)}"]
    for table in tables:
        lines += ["", "[[problem]]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _tables(config: Mapping[str, object], part: str) -> Iterator[dict[str, object]]:
    """Prefill and decode of a decoder, texts or images of an encoder, and all three of an encoder-decoder."""
    place = f"{part}." if part else ""
    title = f"{part.removesuffix('_config')}, " if part else ""
    if config.get("is_encoder_decoder"):
        yield from _both(config, place, title)
        return
    shape = _shape(config, place)
    if (image := config.get("image_size")) and (patch := config.get("patch_size")):
        yield {"name": f"{title}images", "seq": (_int(image) // _int(patch)) ** 2 + 1, **shape, "mask": "none"}
        return
    lengths, mask = _range(_length(config, place)), _mask(config)
    if not _is_causal(config):
        masks = [mask, "padding:0.3"] if mask == "none" else mask
        yield {"name": f"{title}texts", "seq": lengths, **shape, "mask": masks}
        return
    yield {"name": f"{title}prefill", "seq": lengths, **shape, "mask": mask}
    yield {"name": f"{title}decode", "seq_q": 1, "seq_kv": lengths, **shape, "mask": mask}


def _both(config: Mapping[str, object], place: str, title: str) -> Iterator[dict[str, object]]:
    """The self-attention of an encoder and of a decoder, and the cross-attention between them."""
    width = _needed(config, WIDTH, place)
    longest = _length(config, place)
    sides = {}
    for side in ("encoder", "decoder"):
        heads = config.get(f"{side}_attention_heads") or _needed(config, (f"{side}_attention_heads", *HEADS), place)
        head_dim = _int(config.get("d_kv") or width // _int(heads))
        sides[side] = {"heads": _int(heads), "head_dim": head_dim, **_dtype(config)}
    answer = _int(config.get("max_target_positions") or longest)
    # T5 does not scale scores, and adds a bias by bucket of distance to self-attention.
    plain = {"scale": 1} if config.get("relative_attention_num_buckets") else {}
    biased = plain | {"bias": _buckets(config)} if plain else {}
    yield {"name": f"{title}encoder", "seq": _range(longest), **sides["encoder"], "mask": "none", **biased}
    yield {"name": f"{title}decoder, itself", "seq": _range(answer), **sides["decoder"], "mask": "causal", **biased}
    yield {
        "name": f"{title}decoder, the source", "seq_q": [1, min(answer, SHORTEST)], "seq_kv": _range(longest),
        **sides["decoder"], "mask": "none", **plain,
    }  # fmt: skip


def _buckets(config: Mapping[str, object]) -> str:
    count = _int(config["relative_attention_num_buckets"])
    return biases.T5(buckets=count, distance=_int(config.get("relative_attention_max_distance") or 128)).text


def _shape(config: Mapping[str, object], place: str) -> dict[str, object]:
    heads = _needed(config, HEADS, place)
    shape: dict[str, object] = {"heads": heads}
    kv_heads = 1 if config.get("multi_query") else _first(config, KV_HEADS)
    latent = config.get("qk_nope_head_dim")
    if kv_heads and kv_heads != heads and not latent:
        shape["kv_heads"] = kv_heads
    if latent:  # keys of latent attention have one part with positions and one without
        shape["head_dim"] = _int(latent) + _int(config.get("qk_rope_head_dim") or 0)
        shape["head_dim_v"] = _int(config.get("v_head_dim") or latent)
    elif head_dim := config.get("head_dim"):
        shape["head_dim"] = _int(head_dim)
    else:
        width = _needed(config, WIDTH, place)
        if width % heads:
            raise SuiteError(f"{place}{WIDTH[0]}={width} is no multiple of {heads} heads, and there is no head_dim")
        shape["head_dim"] = width // heads
    if scalar := config.get("query_pre_attn_scalar"):
        shape["scale"] = _float(scalar) ** -0.5
    if cap := config.get("attn_logit_softcapping"):
        shape["softcap"] = _float(cap)
    if config.get("model_type") == "gpt_oss":
        shape["sinks"] = True
    attention = config.get("attn_config")
    if config.get("alibi") or (isinstance(attention, Mapping) and attention.get("alibi")):
        shape["bias"] = "alibi"
    return shape | _dtype(config)


def _dtype(config: Mapping[str, object]) -> dict[str, str]:
    name = str(config.get("torch_dtype") or config.get("dtype") or "")
    return {"dtype": DTYPES[name]} if name in DTYPES else {}


def _is_causal(config: Mapping[str, object]) -> bool:
    names = config.get("architectures")
    generates = isinstance(names, list) and any(str(name).endswith(GENERATES) for name in names)
    return bool(config.get("is_decoder")) or generates


def _mask(config: Mapping[str, object]) -> str:
    """The mask. `sliding_window` counts the token itself; Longformer has a list of widths, one per layer."""
    if widths := config.get("attention_window"):
        return f"longformer:{max(widths) if isinstance(widths, list) else _int(widths)}"
    if not _is_causal(config):
        return "none"
    window = config.get("sliding_window")
    return f"causal+window:{_int(window) - 1}" if window and config.get("use_sliding_window", True) else "causal"


def _length(config: Mapping[str, object], place: str) -> int:
    return min(_needed(config, LENGTH, place), LONGEST)


def _range(longest: int) -> str | int:
    return f"{SHORTEST}..{longest}" if longest > SHORTEST else longest


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    return next((_int(config[name], name) for name in names if config.get(name) is not None), 0)


def _needed(config: Mapping[str, object], names: tuple[str, ...], place: str) -> int:
    if value := _first(config, names):
        return value
    raise SuiteError(f"config.json has no {place}{names[0]} (nor {', '.join(names[1:])}): no suite can be made from it")


def _int(value: object, name: str = "config.json") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SuiteError(f"{name}: {value!r} is no count")
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SuiteError(f"config.json: {value!r} is no number")
    return float(value)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a basic string of TOML too
