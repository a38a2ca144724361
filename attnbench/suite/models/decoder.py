"""The layers of a language model that generates text, and the size of its weights, from its config.json."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from attnbench.attention.choices import Dtype
from attnbench.errors import SuiteError
from attnbench.suite.models import types
from attnbench.suite.models.fields import WIDTH, Fields
from attnbench.suite.models.layers import ATTENTION, Layer, layer_counts, window
from attnbench.suite.models.parts import parts_of
from attnbench.suite.models.problems import is_causal
from attnbench.suite.models.shapes import Table, latent_cache, shape
from attnbench.suite.models.types import Kind, ModelType

# Bytes of a weight by the `quant_method` of a config; mxfp4 has 8 bits more for 32 numbers.
_QUANTIZED_BYTES = {"fp8": 1.0, "fbgemm_fp8": 1.0, "awq": 0.5, "gptq": 0.5, "mxfp4": 0.53125}


class DecoderLayer(msgspec.Struct, frozen=True, kw_only=True):
    """The attention of the layers of one kind."""

    kind: Layer
    count: int  # layers
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    window: int = 0  # keys that a query sees at most, its own with them; 0: all
    chunk: int = 0  # tokens of a chunk, within which a query sees; 0: no chunks
    latent: tuple[int, int] | None = None  # numbers of the one key and value that all heads share in a latent cache

    @property
    def cached_numbers(self) -> int:
        """Numbers in the KV cache for a token and layer."""
        return self.latent[0] if self.latent else self.kv_heads * (self.head_dim + self.head_dim_v)


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the weights; those of experts apart, as a step reads only some of them."""

    embedding: int  # that no product reads
    dense: int  # of all products but those of routed experts
    expert: int = 0  # of one routed expert in all layers
    experts: int = 0  # of a layer
    experts_per_token: int = 0
    bytes_per_number: float = 2.0


class Decoder(msgspec.Struct, frozen=True, kw_only=True):
    """What a step of a server computes for a model."""

    name: str
    layers: tuple[DecoderLayer, ...]
    weights: Weights
    dtype: Dtype
    vocabulary: int = 0  # tokens of its tokenizer; 0: not stated
    notes: tuple[str, ...] = ()  # what the config does not state, or has and is not interpreted


class _Text(NamedTuple):
    fields: Fields
    model_type: ModelType
    type_name: str


def decoder_of(config: Mapping[str, object]) -> Decoder:
    """The first part of a config that generates text. Raises SuiteError if there is none, or if it cannot be read."""
    name = str(config.get("model_type") or "")
    text = _text_part(config, name)
    counts = layer_counts(text.fields, text.model_type)
    layers = tuple(_layer(text, kind, count) for kind, count in counts.items() if kind in ATTENTION)
    if not layers:
        raise SuiteError("; ".join(text.fields.notes) or f"model_type={name!r} has no layer with attention")
    dtype = Dtype(text.fields.dtype().get("dtype", "bf16"))
    weights = _weights(text.fields, layers, sum(counts.values()), _bytes_per_number(config, dtype))
    text.fields.add_remarks(text.type_name)
    vocabulary, notes = text.fields.count("vocab_size"), tuple(text.fields.notes)
    return Decoder(name=name, layers=layers, weights=weights, dtype=dtype, vocabulary=vocabulary, notes=notes)


def _text_part(config: Mapping[str, object], name: str) -> _Text:
    for part in parts_of(config, name):
        model_type = types.table().get(part.type_name)
        if model_type is None:
            raise types.unknown(part.type_name, part.place)
        fields = Fields(part.values, model_type.defaults, part.place)
        if model_type.reason:
            raise SuiteError(f"{part.place}model_type={part.type_name!r}: {model_type.reason}")
        decodes = model_type.kind in (Kind.DECODER, Kind.ENCODER) and is_causal(fields, model_type)
        if decodes and model_type.generates:
            return _Text(fields, model_type, part.type_name)
    raise SuiteError(f"model_type={name!r} has no part that generates text: use the config of a decoder, as 'llama'")


def _layer(text: _Text, kind: Layer, count: int) -> DecoderLayer:
    keys = shape(text.fields, text.model_type, kind)
    cache = latent_cache(text.fields)
    heads, head_dim = _number(keys, "heads"), _number(keys, "head_dim")
    return DecoderLayer(
        kind=kind,
        count=count,
        heads=heads,
        kv_heads=_number(keys, "kv_heads") or heads,
        head_dim=head_dim,
        head_dim_v=_number(keys, "head_dim_v") or head_dim,
        window=window(text.fields) if kind is Layer.SLIDING else 0,
        chunk=text.fields.needed("attention_chunk_size") if kind is Layer.CHUNKED else 0,
        latent=(sum(cache), cache.rank) if cache else None,
    )


def _number(keys: Table, name: str) -> int:
    value = keys.get(name, 0)
    assert isinstance(value, int)
    return value


def _weights(fields: Fields, layers: tuple[DecoderLayer, ...], count: int, bytes_per_number: float) -> Weights:
    """Products of attention, of gated feed-forward layers with their experts, and of the head over the vocabulary."""
    width = fields.needed(*WIDTH)
    inner = fields.count("intermediate_size", "ffn_hidden_size")
    experts = fields.count("num_local_experts", "num_experts", "n_routed_experts")
    expert_inner = fields.count("moe_intermediate_size") or inner
    sparse = count - fields.count("first_k_dense_replace") if experts else 0
    shared = fields.count("shared_expert_intermediate_size") or fields.count("n_shared_experts") * expert_inner
    # Without a width of its own, a feed-forward layer has two matrices, as GPT-2's.
    feed_forward = (3 * inner if inner else 8 * width) * width
    embedding = fields.positive("vocab_size") * width
    if not embedding:
        fields.note("no vocab_size: the weights are counted without the embedding and the head")
    return Weights(
        embedding=0 if fields.flag("tie_word_embeddings") else embedding,
        dense=sum(layer.count * _attention_numbers(fields, layer, width) for layer in layers)
        + (count - sparse) * feed_forward
        + sparse * 3 * shared * width
        + embedding,
        expert=sparse * 3 * expert_inner * width,
        experts=experts,
        experts_per_token=fields.count("num_experts_per_tok", "num_experts_per_token") or min(1, experts),
        bytes_per_number=bytes_per_number,
    )


def _attention_numbers(fields: Fields, layer: DecoderLayer, width: int) -> int:
    """The projections of one layer; latent ones go through their ranks."""
    out = layer.heads * layer.head_dim_v * width
    if not layer.latent:
        return out + width * (layer.heads * layer.head_dim + layer.cached_numbers)
    rank, queries = fields.count("q_lora_rank"), layer.heads * layer.head_dim
    expanded = layer.heads * (layer.head_dim + layer.latent[1] - layer.latent[0] + layer.head_dim_v)
    return (
        out
        + (rank * (width + queries) if rank else width * queries)
        + layer.latent[0] * width
        + (layer.latent[1] * expanded)
    )


def _bytes_per_number(config: Mapping[str, object], dtype: Dtype) -> float:
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return _QUANTIZED_BYTES.get(str(method), float(dtype.bytes))
