"""The kinds of layers of a model: full, with a window, in chunks, with cross-attention, or without attention."""

from collections.abc import Callable, Iterable
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


# Names of layers in published configs. `hybrid`: attention beside a recurrent layer.
_NAMES = {
    Layer.FULL: ("full_attention", "attention", "global", "full", "hybrid", "*", "G"),
    Layer.SLIDING: ("sliding_attention", "sliding_window", "local", "L"),
    Layer.CHUNKED: ("chunked_attention",),
    Layer.CROSS: ("cross_attention",),
    Layer.NONE: ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "moe", "mlp", "M", "E", "-"),
}
LAYER_OF = {name: layer for layer, names in _NAMES.items() for name in names}
_LISTS = ("layer_types", "layers_block_type")


def window(fields: Fields) -> int:
    """The tokens of a window, as the config counts them; 0 for none."""
    if fields.get("use_sliding_window") is False:
        fields.skip("sliding_window", "max_window_layers")
        return 0
    return fields.count("sliding_window", "attention_window_size", "window_size", "local_attention")


def layers_of(fields: Fields, model_type: ModelType) -> list[Layer]:
    """Each kind of attention layer once; the layers without attention become a note."""
    names = next((items for name in _LISTS if (items := fields.items(name))), None)
    fields.skip(*LAYERS, model_type.layers_field, "attn_layer_offset", "attn_layer_period", "max_window_layers")
    if names is None:
        names = list(_RULES[model_type.layers](fields, model_type))
    layers = [_layer(fields, str(name)) for name in names]
    if Layer.SLIDING in layers and not window(fields):
        layers = [Layer.FULL if layer is Layer.SLIDING else layer for layer in layers]
    for layer, text in ((Layer.NONE, "have no attention"), (Layer.CROSS, "have cross-attention, which is not written")):
        if places := [index for index, other in enumerate(layers) if other is layer]:
            fields.notes.append(f"{fields.place or 'config.json: '}layers {_ranges(places)} of {len(layers)} {text}")
    attention = [layer for layer in dict.fromkeys(layers) if layer not in (Layer.NONE, Layer.CROSS)]
    if not attention:
        raise SuiteError(f"config.json: {fields.place or 'the model '}has no layer with attention")
    return attention


def _layer(fields: Fields, name: str) -> Layer:
    if name not in LAYER_OF:
        raise SuiteError(f"config.json: {fields.place}layer type {name!r} is unknown; there are {', '.join(LAYER_OF)}")
    return LAYER_OF[name]


def _same(fields: Fields, model_type: ModelType) -> Iterable[str]:
    return ["full_attention"]


def _windowed(fields: Fields, model_type: ModelType) -> Iterable[str]:
    return ["sliding_attention"]


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


def _from_index(fields: Fields, model_type: ModelType) -> Iterable[str]:
    if not window(fields):
        return ["full_attention"]
    first = fields.count("max_window_layers")
    return ["sliding_attention" if index >= first else "full_attention" for index in range(fields.needed(*LAYERS))]


def _named(fields: Fields, model_type: ModelType) -> Iterable[str]:
    fields.needed(*_LISTS)
    return []


def _named_if_window(fields: Fields, model_type: ModelType) -> Iterable[str]:
    return _named(fields, model_type) if window(fields) else ["full_attention"]


def _offset(fields: Fields, model_type: ModelType) -> Iterable[str]:
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
        raise SuiteError(f"config.json has no {fields.place}{model_type.layers_field or 'linear_attn_config'}")
    return ["full_attention" if index in places else model_type.other for index in range(count)]


def _cross(fields: Fields, model_type: ModelType) -> Iterable[str]:
    places = fields.items("cross_attention_layers") or []
    count = fields.count(*LAYERS) or max((index for index in places if isinstance(index, int)), default=0) + 2
    return ["cross_attention" if index in places else "full_attention" for index in range(count)]


def _letters(fields: Fields, model_type: ModelType) -> Iterable[str]:
    letters = fields.get("hybrid_override_pattern")
    if not isinstance(letters, str) or not letters:
        raise SuiteError(f"config.json has no {fields.place}hybrid_override_pattern (nor {', '.join(_LISTS)})")
    return letters


def _repeated(fields: Fields, model_type: ModelType) -> Iterable[str]:
    """GPT-Neo: [[["global", "local"], 12]]."""
    names: list[str] = []
    for item in fields.items("attention_types") or [[["global", "local"], 1]]:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], list):
            raise fields.error("attention_types", "is not a list of [kinds, repetitions]")
        names += map(str, item[0])
    return names


def _cycle(fields: Fields, model_type: ModelType) -> Iterable[str]:
    blocks = [str(block) for block in fields.items("block_types") or ()]
    count = fields.count(*LAYERS) or len(blocks)
    names = [blocks[index % len(blocks)] for index in range(count)]
    return ["sliding_attention" if name == "attention" else name for name in names]


_RULES: dict[LayerRule, Callable[[Fields, ModelType], Iterable[str]]] = {
    LayerRule.SAME: _same,
    LayerRule.WINDOW: _windowed,
    LayerRule.PERIOD: _periodic,
    LayerRule.PERIOD_FIRST: _periodic,
    LayerRule.MAX_WINDOW_LAYERS: _from_index,
    LayerRule.NAMED: _named,
    LayerRule.NAMED_IF_WINDOW: _named_if_window,
    LayerRule.OFFSET: _offset,
    LayerRule.INDEXES: _indexes,
    LayerRule.CROSS: _cross,
    LayerRule.LETTERS: _letters,
    LayerRule.REPEATED: _repeated,
    LayerRule.CYCLE: _cycle,
}


def _ranges(places: list[int]) -> str:
    """0-2, 4, 6-7."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
