"""Fields of one part of a config: spellings, defaults of the model type, and what was read."""

import re
from collections.abc import Mapping

from attnbench import units
from attnbench.errors import SuiteError

# Spellings of one field, of which a config has at most one.
HEADS = (
    "num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads", "encoder_attention_heads",
)  # fmt: skip
KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "kv_n_heads")
WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "n_embed", "emb_dim", "embed_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LENGTH = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_source_positions",
    "model_max_length",
)  # fmt: skip
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}

# Fields that change attention. One that no reader used is reported.
_RELEVANT = re.compile(
    r".*(sliding|window|alibi|sinks?$|attn_logit|query_pre_attn|relative_attention|position_bias|softmax_scale"
    r"|scale_attn|attn_scale|attention_multiplier|key_multiplier|attn_temperature|cross_attention|bidirectional"
    r"|is_causal|index_topk|sparse_attention|sparse_attn|global_attn|local_attention|block_types|layers_block_type"
    r"|hybrid|per_layer_config).*|layer_types|is_decoder|multi_query|attention_chunk_size|attention_types?|attn_types?|(kv|q)_lora_rank|qk_(nope|rope)_head_dim"
    r"|(num_)?global_(key_value_heads|head_dim)|prefix_lm"
    + "".join(rf"|{name}" for name in (*KV_HEADS, "head_dim"))
)  # fmt: skip
_NUMBER = re.compile(r"[+-]?\d[\d_]*(\.\d*)?([eE][+-]?\d+)?")
_NO_EFFECT = frozenset({"max_window_layers", "cross_attention_hidden_size", "q_lora_rank", "attention_bias"})


class Fields:
    """The fields of one part; it remembers which of them were read, and what was taken from the defaults."""

    def __init__(self, values: Mapping[str, object], defaults: Mapping[str, object], place: str) -> None:
        self.values, self.place = values, place
        self.notes: list[str] = []
        self._defaults = defaults
        self._read: set[str] = set()
        self._from_defaults: dict[str, object] = {}

    def get(self, *names: str) -> object:
        """The value of the first name that is not null; a default only where no name is present."""
        self._read_all(names)
        present = [name for name in names if name in self.values]
        if present:
            return next((self.values[name] for name in present if self.values[name] is not None), None)
        name = next((name for name in names if name in self._defaults), None)
        if name is None:
            return None
        self._from_defaults[name] = self._defaults[name]
        return self._defaults[name]

    def has_default(self, name: str) -> bool:
        """Whether the model type has the field: its name may mean nothing in another type."""
        return name in self._defaults

    def count(self, *names: str) -> int:
        """A number of heads, tokens or layers; 0 if there is none."""
        value = self.get(*names)
        if value is None or value is False:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= units.MAX_INTEGER:
            raise self.error(self._present(names), "is no count: use a whole number, as 32")
        return value

    def positive(self, *names: str) -> int:
        """A count that cannot be 0 where it is stated; 0 if there is none."""
        value = self.count(*names)
        if self.get(*names) == 0:
            raise self.error(self._present(names), "is not possible: use at least 1")
        return value

    def needed(self, *names: str) -> int:
        """A count that must be there."""
        if value := self.positive(*names):
            return value
        raise self.missing(*names)

    def _present(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if self.values.get(name) is not None), names[0])

    def missing(self, *names: str) -> SuiteError:
        """An error that names the spellings of a field that must be there."""
        others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
        return SuiteError(f"no {self.place}{names[0]}{others}: add it to the file")

    def number(self, name: str) -> float | None:
        """A number, or None."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(name, "is no number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A switch; false if there is none."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, "is neither true nor false")
        return bool(value)

    def items(self, name: str) -> list[object] | None:
        """A list that is not empty, or None."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(name, "is no list")
        return value or None

    def note(self, text: str) -> None:
        """Report something about this part, once."""
        line = f"{self.place.removesuffix('.')}: {text}" if self.place else text
        if line not in self.notes:
            self.notes.append(line)

    def error(self, name: str, text: str) -> SuiteError:
        """An error that names the field and its value."""
        return SuiteError(f"{self.place}{name}={self.values.get(name)!r} {text}")

    def dtype(self) -> dict[str, str]:
        """The key `dtype` of a table, if the config states one that attnbench has."""
        value = self.get("torch_dtype", "dtype")
        name = str(value).removeprefix("torch.")
        if value is not None and name not in DTYPES:
            self.note(f"dtype={value!r} is not interpreted: the tables have no dtype")
        return {"dtype": DTYPES[name]} if name in DTYPES else {}

    def skip(self, *names: str) -> None:
        """Mark fields as read that have no effect in this model."""
        self._read_all(names)

    def _read_all(self, names: tuple[str, ...]) -> None:
        """Record that fields were read. Raises SuiteError for a number in quotes."""
        self._read.update(names)
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
                raise self.error(name, f"is a string: use the number {value.strip()}")

    def add_remarks(self, type_name: str) -> None:
        """Note the defaults that were used, and the relevant fields that were not."""
        used = {name: value for name, value in self._from_defaults.items() if not isinstance(value, bool)}
        if used:
            listed = ", ".join(f"{name}={value}" for name, value in used.items())
            self.note(f"not in the file, so the defaults of {type_name!r}: {listed}")
        for name, value in self.values.items():
            unread = name not in self._read and name not in _NO_EFFECT and _RELEVANT.fullmatch(name)
            if unread and value not in (None, False, 0, [], {}, ""):
                shown = repr(value) if len(repr(value)) < 60 else "..."
                self.note(f"{name}={shown} is not interpreted for model_type {type_name!r}")
        if "auto_map" in self.values:
            self.note(f"auto_map names code beside the weights; the tables follow {type_name!r} in transformers")
