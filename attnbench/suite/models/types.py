"""Model types of the transformers library: what their attention is, where a config does not say it.

The table is `types.toml`. Its values are those of `configuration_*.py` and `modeling_*.py` in
https://github.com/huggingface/transformers/tree/main/src/transformers/models.
"""

import difflib
import tomllib
from enum import StrEnum
from functools import cache
from importlib.resources import files

import msgspec

from attnbench.errors import SuiteError


class Kind(StrEnum):
    """What a model type computes."""

    DECODER = "decoder"  # causal
    ENCODER = "encoder"  # bidirectional
    IMAGES = "images"  # bidirectional, over the patches of one image
    SEQ2SEQ = "seq2seq"  # an encoder, a decoder, and cross-attention
    COMPOSITE = "composite"  # only its parts have attention
    REFUSED = "refused"


class LayerRule(StrEnum):
    """How the kinds of layers follow from the config, if it has no list of layer types."""

    SAME = "same"  # all layers see everything; a window in the config is not used
    WINDOW = "window"  # all layers have the window, if there is one
    PERIOD = "period"  # the last of every `period` layers is full, the others are `other`
    PERIOD_FIRST = "period-first"  # the first of every `period` layers is full
    MAX_WINDOW_LAYERS = "max_window_layers"  # layers from this index on have the window
    NAMED = "named"  # a list of layer types is needed
    NAMED_IF_WINDOW = "named-if-window"  # it is needed only where a window is switched on
    OFFSET = "attn_layer_offset"  # attention at i % attn_layer_period == attn_layer_offset
    INDEXES = "indexes"  # a list of the layers with attention
    CROSS = "cross_attention_layers"  # a list of the layers with cross-attention in its place
    LETTERS = "hybrid_override_pattern"  # one letter for each layer
    REPEATED = "attention_types"  # lists of kinds with their numbers of repetitions
    CYCLE = "block_types"  # a list that is repeated


class ModelType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one model type."""

    kind: Kind = Kind.REFUSED
    defaults: dict[str, int | bool | float | list[int | str]] = {}  # fields that a config may leave out
    layers: LayerRule = LayerRule.SAME
    period: int = 0  # layers
    layers_field: str = ""  # the field of the period or of the indexes
    other: str = "sliding_attention"  # the layers that are not full
    scale: float | None = None  # the factor on q.k
    scale_field: str = ""  # the field that is the factor
    root_field: str = ""  # the field whose inverse square root is the factor
    concatenated: int = 1  # hidden states side by side that attention reads; its scale is that of one
    softcap: str = ""  # the field of the cap on logits
    bias: str = ""
    sinks: bool = False
    tokens: str = "texts"  # what an encoder reads
    generates: bool = True  # a decoder that writes token by token
    extra_tokens: int = 0  # beside the patches of an image
    unused_positions: int = 0  # position embeddings that no token uses
    settings: str = ""  # a nested table whose fields belong to this part
    text: str = ""  # the model type of the fields beside nested parts
    parts: dict[str, str] = {}  # model types of nested parts that do not state theirs
    bidirectional_prompt: bool = False  # the text part sees its whole prompt
    note: str = ""
    reason: str = ""  # why it is refused


@cache
def table() -> dict[str, ModelType]:
    """Every known model type."""
    document = tomllib.loads((files(__package__) / "types.toml").read_text(encoding="utf-8"))
    return {
        name: msgspec.convert({"kind": kind, **entry}, ModelType)
        for kind, entries in document.items()
        for name, entry in entries.items()
    }


def unknown(name: object, place: str) -> SuiteError:
    """The error for a model type that is missing or not in the table."""
    hint = "set it to the model type of transformers whose attention it has, as 'llama'"
    if not name or not isinstance(name, str):
        return SuiteError(f"no {place}model_type, and fields alone do not say what is causal: {hint}")
    near = difflib.get_close_matches(name, table(), 1, 0.8)
    similar = f" (the most similar name is {near[0]!r})" if near else ""
    return SuiteError(f"{place}model_type={name!r} is unknown{similar}: {hint}")
