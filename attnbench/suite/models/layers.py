"""The kinds of layers of a model: full, with a window, in chunks, with cross-attention, or without attention."""

import itertools
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from attnbench.errors import SuiteError
from attnbench.suite.models.fields import LAYERS, Fields
from attnbench.suite.models.types import LayerRule, ModelType


class Layer(StrEnum):
    """What a layer attends to."""

    FULL = "full attention"
    SLIDING = "sliding window"
    CHUNKED = "chunks"
    CROSS = "cross-attention"
    NONE = "no attention"
    UNKNOWN = "unknown"


# Names of layers in published configs. `hybrid`: attention beside a recurrent layer.
_NAMES = {
    Layer.FULL: ("full_attention", "attention", "global", "full", "hybrid", "*", "G", "1"),
    Layer.SLIDING: ("sliding_attention", "sliding_window", "local", "L"),
    Layer.CHUNKED: ("chunked_attention",),
    Layer.CROSS: ("cross_attention",),
    Layer.NONE: ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "moe", "mlp", "M", "E", "-", "0"),
}
LAYER_OF = {name: layer for layer, names in _NAMES.items() for name in names}
ATTENTION = (Layer.FULL, Layer.SLIDING, Layer.CHUNKED)
_LISTS = ("layer_types", "layers_block_type", "attn_type_list")


def window(fields: Fields) -> int:
    """The tokens of a window, as the config counts them; 0 for none."""
    if fields.get("use_sliding_window") is False:
        fields.skip("sliding_window", "max_window_layers")
        return 0
    return fields.count("sliding_window", "attention_window_size", "window_size", "local_attention")


def layers_of(fields: Fields, model_type: ModelType) -> list[Layer]:
    """Each kind of attention layer once; the layers without attention become a note."""
    attention = [layer for layer in dict.fromkeys(_kinds(fields, model_type)) if layer in ATTENTION]
    if not attention:
        raise SuiteError("; ".join(fields.notes) or "no layer with attention")
    return attention


def layer_counts(fields: Fields, model_type: ModelType) -> dict[Layer, int]:
    """The number of layers of each kind, also of those without attention."""
    kinds = _kinds(fields, model_type)
    total = fields.needed(*LAYERS) if len(kinds) == 1 else fields.count(*LAYERS) or len(kinds)
    return Counter(itertools.islice(itertools.cycle(kinds), total))


def _kinds(fields: Fields, model_type: ModelType) -> list[Layer]:
    """The kinds of the layers in their order, which repeat where the config has more layers."""
    names = next((items for name in _LISTS if (items := fields.items(name))), None)
    fields.skip(model_type.layers_field, "max_window_layers", "hybrid_layer_ids")
    fields.positive(*LAYERS)
    if names is None:
        names = list(_names(fields, model_type))
    layers = [LAYER_OF.get(str(name), Layer.UNKNOWN) for name in names]
    if Layer.SLIDING in layers and not window(fields):
        layers = [Layer.FULL if layer is Layer.SLIDING else layer for layer in layers]
    unknown = sorted({str(name) for name in names if str(name) not in LAYER_OF})
    for layer, text in (
        (Layer.NONE, "have no attention"),
        (Layer.CROSS, "have cross-attention: not written"),
        (Layer.UNKNOWN, f"are of an unknown type ({', '.join(map(repr, unknown))}): not written"),
    ):
        if places := [index for index, other in enumerate(layers) if other is layer]:
            fields.note(f"layers {_ranges(places)} of {len(layers)} {text}")
    return layers


def _names(fields: Fields, model_type: ModelType) -> Iterable[str]:
    """The names of the layers by the rule of the model type; one of each kind where their number does not matter."""
    match model_type.layers:
        case LayerRule.SAME:
            return ["full_attention"]
        case LayerRule.WINDOW:
            return ["sliding_attention"]
        case LayerRule.PERIOD | LayerRule.PERIOD_FIRST:
            return _periodic(fields, model_type)
        case LayerRule.MAX_WINDOW_LAYERS:
            return _from_index(fields)
        case LayerRule.NAMED:
            raise fields.missing(*_LISTS)
        case LayerRule.NAMED_IF_WINDOW:
            if window(fields):
                raise fields.missing(*_LISTS)
            return ["full_attention"]
        case LayerRule.OFFSET:
            return _offset(fields)
        case LayerRule.INDEXES:
            return _indexes(fields, model_type)
        case LayerRule.CROSS:
            return _cross(fields)
        case LayerRule.LETTERS:
            return _letters(fields)
        case LayerRule.REPEATED:
            return _repeated(fields)
        case LayerRule.CYCLE:
            return _cycle(fields)


def _periodic(fields: Fields, model_type: ModelType) -> Iterable[str]:
    """`full_attention` once in each period; a list of the layers that are `other` (1) or full (0) comes first."""
    if model_type.other == "chunked_attention":
        if not fields.count("attention_chunk_size"):
            return ["full_attention"]
        if marks := fields.items("no_rope_layers"):
            return [model_type.other if mark else "full_attention" for mark in marks]
    period: object = fields.get(model_type.layers_field) if model_type.layers_field else None
    if isinstance(period, str):  # EXAONE 4: "LLLG"
        return period
    size = fields.count(model_type.layers_field) if period is not None else model_type.period
    if not size:
        return ["full_attention"]
    full = 0 if model_type.layers is LayerRule.PERIOD_FIRST else size - 1
    count = fields.count(*LAYERS) or size
    return ["full_attention" if index % size == full else model_type.other for index in range(count)]


def _from_index(fields: Fields) -> Iterable[str]:
    if not window(fields):
        return ["full_attention"]
    first = fields.count("max_window_layers")
    return ["sliding_attention" if index >= first else "full_attention" for index in range(fields.needed(*LAYERS))]


def _offset(fields: Fields) -> Iterable[str]:
    period, offset = fields.needed("attn_layer_period"), fields.count("attn_layer_offset")
    count = fields.count(*LAYERS) or period
    return ["full_attention" if index % period == offset else "linear_attention" for index in range(count)]


def _indexes(fields: Fields, model_type: ModelType) -> Iterable[str]:
    """Kimi Linear counts from 1 and nests the list."""
    nested = fields.get("linear_attn_config")
    if isinstance(nested, dict):
        places = [index - 1 for index in nested.get("full_attn_layers") or () if isinstance(index, int)]
    else:
        places = [index for index in fields.items(model_type.layers_field) or () if isinstance(index, int)]
    count = fields.needed(*LAYERS)
    if not places:
        raise SuiteError(f"no {fields.place}{model_type.layers_field or 'linear_attn_config'}")
    return ["full_attention" if index in places else model_type.other for index in range(count)]


def _cross(fields: Fields) -> Iterable[str]:
    places = fields.items("cross_attention_layers") or []
    count = fields.count(*LAYERS) or max((index for index in places if isinstance(index, int)), default=0) + 2
    return ["cross_attention" if index in places else "full_attention" for index in range(count)]


def _letters(fields: Fields) -> Iterable[str]:
    letters = fields.get("hybrid_override_pattern")
    if not isinstance(letters, str) or not letters:
        raise SuiteError(f"no {fields.place}hybrid_override_pattern (nor {', '.join(_LISTS)})")
    return letters


def _repeated(fields: Fields) -> Iterable[str]:
    """GPT-Neo: [[["global", "local"], 12]]."""
    names: list[str] = []
    for item in fields.items("attention_types") or [[["global", "local"], 1]]:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], list):
            raise fields.error("attention_types", "is not a list of [kinds, repetitions]")
        names += map(str, item[0] * (item[1] if isinstance(item[1], int) else 1))
    return names


def _cycle(fields: Fields) -> Iterable[str]:
    blocks = [str(block) for block in fields.items("block_types") or ()]
    count = fields.count(*LAYERS) or len(blocks)
    names = [blocks[index % len(blocks)] for index in range(count)]
    return ["sliding_attention" if name == "attention" else name for name in names]


def _ranges(places: list[int]) -> str:
    """0-2, 4, 6-7."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
