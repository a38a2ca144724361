"""The tables of one part: prefill and decode of a decoder, texts or images of an encoder, all three of a seq2seq."""

import itertools
from collections.abc import Iterator

from attnbench import units
from attnbench.errors import SuiteError
from attnbench.suite.models.fields import HEADS, LAYERS, LENGTH, Fields
from attnbench.suite.models.layers import Layer, layer_counts, layers_of, window
from attnbench.suite.models.shapes import Table, latent_cache, shape, t5, width_per_head
from attnbench.suite.models.types import Kind, ModelType

MAX_LENGTH = 32768  # tokens of a prompt
MIN_LENGTH = 128
MAX_SIDE = 1 << 16  # pixels


def tables_of(fields: Fields, model_type: ModelType, type_name: str) -> list[Table]:
    """The tables of a part. Raises SuiteError if they cannot be derived."""
    if model_type.reason:
        raise SuiteError(f"{fields.place}model_type={type_name!r}: {model_type.reason}")
    if model_type.note:
        fields.note(model_type.note)
    if fields.flag("add_cross_attention"):
        fields.note("add_cross_attention=true: its cross-attention to another model is not written")
    if model_type.kind is Kind.IMAGES:
        return [_images(fields, model_type)]
    if model_type.kind is Kind.SEQ2SEQ:
        return list(_seq2seq(fields, model_type))
    return list(_decoder(fields, model_type) if is_causal(fields, model_type) else _encoder(fields, model_type))


def is_causal(fields: Fields, model_type: ModelType) -> bool:
    """By model type, not by the head on top: a reward model of Llama is causal, BERT is not unless it is a decoder."""
    both_ways = fields.get("use_bidirectional_attention")
    if fields.get("is_causal") is False or both_ways is True or both_ways == "all":
        return False
    causal = [fields.flag(name) for name in ("is_decoder", "causal")]
    return model_type.kind is Kind.DECODER or any(causal)


def _decoder(fields: Fields, model_type: ModelType) -> Iterator[Table]:
    longest = _length(fields, model_type)
    if not model_type.generates:
        yield {"name": model_type.tokens, "seq": _range(longest), **shape(fields, model_type), "mask": "causal"}
        return
    layers = layers_of(fields, model_type)
    for layer in layers:
        keys = {**shape(fields, model_type, layer), **_number(fields, model_type, layer)}
        ending = f", {layer}" if len(layers) > 1 else ""
        prefills, mask, seen = _causal(fields, layer, longest)
        if model_type.bidirectional_prompt:
            prefills = [(_range(longest), "none")] if layer is layers[0] else []
        for lengths, prefill_mask in prefills:
            yield {"name": f"prefill{ending}", "seq": lengths, **keys, "mask": prefill_mask}
        yield {"name": f"decode{ending}", "seq_q": 1, "seq_kv": _range(seen), **keys, "mask": mask}
        if cache := latent_cache(fields):
            decode = {"seq_q": 1, "seq_kv": _range(seen), **keys, "kv": cache.text, "mask": mask}
            yield {"name": "decode, latent cache", **decode}


def _number(fields: Fields, model_type: ModelType, layer: Layer) -> dict[str, int]:
    """The key `layers` of a table: how many layers of the kind the model has, where the config states it."""
    count = layer_counts(fields, model_type)[layer] if fields.count(*LAYERS) else 0
    return {"layers": count} if count else {}


def _causal(fields: Fields, layer: Layer, longest: int) -> tuple[list[tuple[object, str]], str, int]:
    """Lengths and masks of prefill; the mask of decode, and the longest cache that its token can see."""
    if layer is Layer.SLIDING:
        # `sliding_window` counts the token itself: masking_utils.py of transformers.
        mask = f"causal+window:{window(fields) - 1}"
        return [(_range(longest), mask)], mask, longest
    if layer is not Layer.CHUNKED:
        return [(_range(longest), "causal")], "causal", longest
    chunk = fields.needed("attention_chunk_size")
    prefills: list[tuple[object, str]] = [(_range(min(chunk, longest)), "causal")]
    doubled = itertools.takewhile(lambda length: length < longest, (chunk * 2**n for n in itertools.count(1)))
    for length in [*doubled, *([longest] if longest > chunk else [])]:
        whole, rest = divmod(length, chunk)
        documents = "-".join([str(chunk)] * whole + [str(rest)]) if rest else str(whole)
        prefills.append((length, f"causal+document:{documents}"))
    return prefills, "causal", min(chunk, longest)


def _encoder(fields: Fields, model_type: ModelType) -> Iterator[Table]:
    longest = _length(fields, model_type)
    if masks := _longformer(fields):
        yield {"name": model_type.tokens, "seq": _range(longest), **shape(fields, model_type), "mask": masks}
        return
    layers = layers_of(fields, model_type)
    for layer in layers:
        keys = {**shape(fields, model_type, layer), **_number(fields, model_type, layer)}
        ending = f", {layer}" if len(layers) > 1 else ""
        # Half of the window on each side in modeling_modernbert.py and modeling_gemma3.py of transformers; the whole
        # where a config makes a decoder bidirectional: `sliding_window_bidirectional_overlay` in masking_utils.py.
        side = window(fields) if fields.get("is_causal") is False else window(fields) // 2
        masks = [f"window:{side}"] if layer is Layer.SLIDING else ["none", "padding:0.3"]
        yield {"name": model_type.tokens + ending, "seq": _range(longest), **keys, "mask": masks}


def _images(fields: Fields, model_type: ModelType) -> Table:
    """All patches of one image of the size in the config."""
    if not fields.get("image_size"):
        raise SuiteError(f"no {fields.place}image_size: the number of patches depends on the image")
    patches = 1
    for image, patch in zip(_sides(fields, "image_size"), _sides(fields, "patch_size"), strict=True):
        patches *= image // patch
    if not patches:
        raise fields.error("patch_size", "is larger than the image")
    extra = model_type.extra_tokens + fields.count("num_register_tokens") + fields.count("num_detection_tokens")
    return {"name": "images", "seq": patches + extra, **shape(fields, model_type), "mask": "none"}


def _sides(fields: Fields, name: str) -> list[int]:
    """Height and width of an image or a patch."""
    value = fields.get(name)
    sides = [side for side in (value if isinstance(value, list) else [value, value]) if isinstance(side, int)]
    if len(sides) != 2 or not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
        raise fields.error(name, "is no size in pixels")
    return sides


def _seq2seq(fields: Fields, model_type: ModelType) -> Iterator[Table]:
    """The self-attention of an encoder and of a decoder, and the cross-attention between them."""
    dtype = fields.dtype()
    sides = {side: {**_side(fields, side), **dtype} for side in ("encoder", "decoder")}
    source = _at_most(fields.needed(*LENGTH, "max_encoder_position_embeddings"))
    answer = _at_most(fields.needed("max_decoder_position_embeddings", "max_target_positions", *LENGTH))
    # T5 does not scale scores, and adds a bias by bucket of distance to self-attention.
    plain: Table = {} if model_type.scale is None else {"scale": model_type.scale}
    biased = plain | ({"bias": t5(fields)} if model_type.bias == "t5" else {})
    alone = fields.get("is_encoder_decoder") is False
    if alone:
        fields.note("is_encoder_decoder=false: only the self-attention of the decoder is written")
    elif fields.get("encoder_attention_type") not in (None, "full"):
        fields.note("encoder_attention_type: the encoder's blocks of attention are not written")
    else:
        mask = _longformer(fields) or ["none"]
        yield {"name": "encoder", "seq": _range(source), **sides["encoder"], "mask": mask, **biased}
    yield {"name": "decoder, itself", "seq": _range(answer), **sides["decoder"], "mask": "causal", **biased}
    if not alone:
        yield {
            "name": "decoder, the source", "seq_q": [1, min(answer, MIN_LENGTH)], "seq_kv": _range(source),
            **sides["decoder"], "mask": "none", **plain,
        }  # fmt: skip


def _longformer(fields: Fields) -> list[str]:
    """The masks of `attention_window`: one width, or one for each layer."""
    widths = fields.get("attention_window") if fields.has_default("attention_window") else None
    listed = widths if isinstance(widths, list) else [widths] if widths else []
    if not all(isinstance(width, int) and 0 < width < units.MAX_INTEGER and width % 2 == 0 for width in listed):
        raise fields.error("attention_window", "is no even number of tokens, nor a list of them")
    return [f"longformer:{width}" for width in dict.fromkeys(listed)]


def _side(fields: Fields, side: str) -> Table:
    heads = fields.needed(f"{side}_attention_heads", *HEADS)
    return {"heads": heads, "head_dim": fields.count("d_kv") or width_per_head(fields, heads)}


def _length(fields: Fields, model_type: ModelType) -> int:
    return _at_most(max(1, fields.needed(*LENGTH) - model_type.unused_positions))


def _at_most(length: int) -> int:
    return min(length, MAX_LENGTH)


def _range(longest: int) -> str | int:
    return f"{MIN_LENGTH}..{longest}" if longest > MIN_LENGTH else longest
