"""The parts of a config: one for a language model, several for a multimodal one, nested to any depth."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from attnbench.suite.models import types
from attnbench.suite.models.fields import HEADS
from attnbench.suite.models.types import Kind, ModelType

# Nested tables that are settings, not models.
_SETTINGS = frozenset({
    "attn_config", "ffn_config", "linear_attn_config", "quantization_config", "generation_config", "compression_config",
    "projector_config", "vq_config",
})  # fmt: skip
_NAMES = ("encoder", "decoder", "question_encoder", "generator")  # parts whose names do not end in `_config`
_MODALITY = re.compile(r"(text|llm|language|vision|image|video|audio|speech)_")
_DTYPE = ("torch_dtype", "dtype")


class Part(NamedTuple):
    """One part of a config that may have attention."""

    place: str  # where it is, as "thinker_config.text_config."
    type_name: str
    values: Mapping[str, object]
    bidirectional_prompt: bool = False

    @property
    def title(self) -> str:
        """How its tables are called, as "thinker text, "."""
        words = " ".join(name.removesuffix("_config") for name in self.place.split(".") if name)
        return f"{words}, " if words else ""


def parts_of(
    config: Mapping[str, object], type_name: str, place: str = "", dtype: object = None, *, prompt: bool = False
) -> Iterator[Part]:
    """Every part with attention of its own, with the dtype of the whole where it states none."""
    dtype = next((config[name] for name in _DTYPE if config.get(name)), dtype)
    model_type = types.table().get(type_name)
    nested = {name: value for name, value in config.items() if _is_part(name) and isinstance(value, Mapping)}
    values = {**config, "torch_dtype": dtype} if dtype else config
    if model_type is None:
        if not nested or any(name in config for name in HEADS):
            yield Part(place, type_name, values)
    elif model_type.kind is not Kind.COMPOSITE:
        inner = config.get(model_type.settings)
        values = {**inner, **values} if isinstance(inner, Mapping) else values
        yield Part(place, type_name, values, prompt)
        return
    elif model_type.text and "text_config" not in nested:
        yield Part(place, model_type.text, values)
    for name, value in nested.items():
        nested_type = _nested_type(name, value, type_name, model_type)
        if nested_type or name in _NAMES or _MODALITY.match(name) or any(field in value for field in HEADS):
            whole = model_type is not None and model_type.bidirectional_prompt
            yield from parts_of(value, nested_type, f"{place}{name}.", dtype, prompt=whole)


def _is_part(name: str) -> bool:
    return (name.endswith("_config") and name not in _SETTINGS) or name in _NAMES


def _nested_type(name: str, value: Mapping[str, object], parent: str, model_type: ModelType | None) -> str:
    """The model type of a part; published configs have some that transformers replaces, as the parent's own."""
    stated = value.get("model_type")
    known = stated in types.table() and stated != parent
    if model_type is not None and not known and name in model_type.parts:
        return model_type.parts[name]
    return str(stated or "")
