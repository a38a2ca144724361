"""A table as an attention implementation of transformers, on a tiny random Llama."""

import logging
import sys
from typing import Any

import pytest
import torch

from attnbench.attention.problem import Problem
from attnbench.dispatch import Table, register
from attnbench.errors import UsageError
from tests.dispatch.tables import choice, table

SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 8}


def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)


def test_without_transformers_an_error_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_transformers(monkeypatch)
    with pytest.raises(UsageError, match=r"register: transformers .* is not installed .*pip install 'transformers>=5'"):
        register()


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def made() -> Table:
    """naive for prefills and decodes, which SDPA would not take."""
    prefill, decode = Problem(seq_q=12, mask="causal", **SHAPE), Problem(seq_q=1, seq_kv=16, **SHAPE)
    return table(choice(prefill, {"naive": 1.0}), choice(decode, {"naive": 1.0}))


@pytest.fixture
def model(transformers: Any, made: Table) -> Any:
    register("attnbench-test", made)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=64, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def logits(model: Any, implementation: str, **inputs: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        computed: torch.Tensor = model(**inputs).logits
    return computed


TOKENS = torch.arange(1, 25).reshape(2, 12)  # none is the token of padding


def test_a_causal_prefill_equals_sdpa_and_uses_the_table(model, caplog) -> None:
    caplog.set_level(logging.INFO, logger="attnbench.dispatch")
    out = logits(model, "attnbench-test", input_ids=TOKENS)
    assert [": naive, " in message for message in caplog.messages] == [True]
    torch.testing.assert_close(out, logits(model, "sdpa", input_ids=TOKENS), atol=1e-5, rtol=1e-5)


def test_a_decode_with_a_cache_gives_the_same_tokens(model, made) -> None:
    tokens = []
    for implementation in ("sdpa", "attnbench-test"):
        model.set_attn_implementation(implementation)
        tokens.append(model.generate(TOKENS, max_new_tokens=6, do_sample=False, pad_token_id=0))
    torch.testing.assert_close(tokens[0], tokens[1])
    assert len(made.calls) == 6  # the prefill, and five lengths of the cache


def test_a_padded_batch_has_a_mask_and_is_sdpas(model, made) -> None:
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    out = logits(model, "attnbench-test", input_ids=TOKENS, attention_mask=mask)
    torch.testing.assert_close(out, logits(model, "sdpa", input_ids=TOKENS, attention_mask=mask), atol=1e-5, rtol=1e-5)
    assert made.calls == {}


def test_gradients_flow_through_it(model, made) -> None:
    losses = []
    for implementation in ("sdpa", "attnbench-test"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        losses.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-4)


def test_sinks_are_refused(transformers, model) -> None:
    forward = transformers.AttentionInterface()["attnbench-test"]
    q = torch.ones(1, 4, 3, 8)
    with pytest.raises(ValueError, match="attnbench-test attention has no s_aux"):
        forward(model, q, q, q, None, s_aux=torch.ones(4))
