"""Heads, head dimensions, scale, cap and bias of one kind of layer, as keys of a suite table."""

import math
from collections.abc import Mapping

from attnbench.attention import biases
from attnbench.attention.kv_cache import Latent
from attnbench.errors import SuiteError
from attnbench.suite.models.fields import HEADS, KV_HEADS, WIDTH, Fields
from attnbench.suite.models.layers import Layer
from attnbench.suite.models.types import ModelType

Table = dict[str, object]


def shape(fields: Fields, model_type: ModelType, layer: Layer = Layer.FULL) -> Table:
    """The keys of a layer, without lengths and mask."""
    heads = fields.needed(*HEADS)
    if _is_latent(fields):
        keys = _latent(fields, heads)
    else:
        kv_heads, head_dim = _kv_heads(fields, heads, layer), _head_dim(fields, model_type, heads, layer)
        if heads % kv_heads:
            raise SuiteError(f"{fields.place}{heads} heads are no multiple of {kv_heads} key-value heads")
        keys = {"heads": heads, **({"kv_heads": kv_heads} if kv_heads != heads else {}), "head_dim": head_dim}
        keys |= _scale(fields, model_type, head_dim)
    if model_type.softcap and (cap := fields.number(model_type.softcap)):
        keys["softcap"] = cap
    if model_type.sinks:
        keys["sinks"] = True
    return keys | _bias(fields, model_type, keys) | fields.dtype()


def latent_cache(fields: Fields) -> Latent | None:
    """The cache of latent attention, which has one vector for each token: what a step that decodes reads."""
    rank, rope = fields.count("kv_lora_rank"), fields.count("qk_rope_head_dim")
    return Latent(rank, rope) if rank and rope and _is_latent(fields) else None


def _is_latent(fields: Fields) -> bool:
    return fields.has_default("qk_nope_head_dim") and fields.count("qk_nope_head_dim") > 0


def _latent(fields: Fields, heads: int) -> Table:
    """Keys of latent attention have one part with positions and one without."""
    fields.skip("head_dim", *KV_HEADS)
    head_dim = fields.needed("qk_nope_head_dim") + fields.count("qk_rope_head_dim")
    head_dim_v = fields.count("v_head_dim") or width_per_head(fields, heads)
    keys: Table = {"heads": heads, "head_dim": head_dim, "head_dim_v": head_dim_v}
    scale = _latent_scale(fields)
    return keys | ({"scale": scale} if scale != 1 / math.sqrt(head_dim) else {})


def _latent_scale(fields: Fields) -> float:
    """YaRN changes the scale: `yarn_apply_mscale` in models/deepseek_v3/modeling_deepseek_v3.py of transformers."""
    scale = 1 / math.sqrt(fields.needed("qk_nope_head_dim") + fields.count("qk_rope_head_dim"))
    rope = fields.get("rope_scaling", "rope_parameters")
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type", "default")) == "default":
        return scale
    factor, weight = rope.get("factor", 1), rope.get("mscale_all_dim") or 0
    if not isinstance(factor, (int, float)) or not isinstance(weight, (int, float)):
        raise fields.error("rope_scaling", "has a factor or mscale_all_dim that is no number")
    stretch = 0.1 * float(weight) * math.log(factor) + 1 if factor > 1 else 1.0
    return scale * stretch * stretch


def _kv_heads(fields: Fields, heads: int, layer: Layer) -> int:
    """Falcon's `multi_query` has no effect in its new architecture; Gemma 4 has a number of its own for full layers."""
    if fields.has_default("multi_query") and fields.flag("multi_query") and not fields.flag("new_decoder_architecture"):
        fields.skip(*KV_HEADS)
        return 1
    count = fields.positive(*KV_HEADS) or heads
    if not fields.has_default("global_head_dim") or not fields.flag("attention_k_eq_v"):
        return count
    full = fields.count("num_global_key_value_heads")
    return full if full and layer is Layer.FULL else count


def _head_dim(fields: Fields, model_type: ModelType, heads: int, layer: Layer) -> int:
    if fields.has_default("global_head_dim") and layer is Layer.FULL:
        fields.skip("head_dim")
        return fields.needed("global_head_dim")
    if head_dim := fields.positive("head_dim", "attention_head_dim", "kv_channels"):
        return head_dim
    return model_type.concatenated * width_per_head(fields, heads)


def width_per_head(fields: Fields, heads: int) -> int:
    """The head dimension of a config that states none."""
    width = fields.needed(*WIDTH)
    if width % heads:
        raise SuiteError(f"{fields.place}{WIDTH[0]}={width} is no multiple of {heads} heads, and there is no head_dim")
    return width // heads


def _scale(fields: Fields, model_type: ModelType, head_dim: int) -> Table:
    """The key `scale`, where it is not 1 / sqrt(head_dim)."""
    scale = (head_dim / model_type.concatenated) ** -0.5
    if model_type.scale is not None:
        scale = model_type.scale
    elif model_type.scale_field == "key_multiplier":  # Falcon H1 multiplies keys
        scale *= fields.number("key_multiplier") or 1.0
    elif model_type.scale_field:
        scale = fields.number(model_type.scale_field) or scale
    elif model_type.root_field and (root := fields.number(model_type.root_field)):
        scale = root**-0.5
    if fields.get("scale_attn_weights") is False:
        scale = 1.0
    if fields.flag("scale_attn_by_inverse_layer_idx"):
        fields.note("scale_attn_by_inverse_layer_idx=true: written with the scale of layer 1; layer n divides it by n")
    if fields.flag("attn_temperature_tuning"):
        fields.note("attn_temperature_tuning=true: some layers scale queries by position: not written")
    return {"scale": scale} if scale != head_dim**-0.5 else {}


def _bias(fields: Fields, model_type: ModelType, keys: Table) -> Table:
    """The key `bias`, and for Falcon the scale that applies to it too."""
    kind = fields.get("position_embedding_type")
    if str(kind).startswith("relative"):
        raise fields.error("position_embedding_type", "adds products with learned vectors by distance: not supported")
    if model_type.bias == "t5":
        return {"bias": t5(fields)}
    if model_type.bias == "alibi of mpt":
        _check_mpt(fields)
        return {"bias": "alibi"}
    if model_type.bias == "alibi of falcon" and fields.flag("alibi"):
        # The scale applies to the sum: FalconAttention.forward in models/falcon/modeling_falcon.py of transformers.
        return {"scale": 1.0, "temperature": math.sqrt(float(str(keys["head_dim"]))), "bias": "alibi"}
    return {"bias": "alibi"} if model_type.bias == "alibi" else {}


def _check_mpt(fields: Fields) -> None:
    """Refuse what transformers ignores and llm-foundry, which trained the models, does not."""
    expected = {"alibi": True, "attn_type": "multihead_attention", "alibi_bias_max": 8, "prefix_lm": False}
    for name, value in expected.items():
        if fields.get(name) not in (None, value):
            raise fields.error(name, f"is not supported in attn_config: only {value!r} is")


def t5(fields: Fields) -> str:
    """T5's bias by buckets of distance."""
    buckets = fields.needed("relative_attention_num_buckets")
    distance = fields.count("relative_attention_max_distance") or 128
    if buckets < 4 or distance <= buckets // 2:
        raise fields.error("relative_attention_num_buckets", f"with distances to {distance} is no bias of T5")
    return biases.T5(buckets=buckets, distance=distance).text
