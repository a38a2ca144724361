"""What to set in vLLM, sglang and transformers."""

import pytest

from attnbench.analysis import serving_flags
from attnbench.backends import BUILTIN


def settings(single=None, decode=None, prefill=None):
    return {each.engine: each for each in serving_flags.settings(single, decode, prefill)}


@pytest.mark.parametrize("backend", [*BUILTIN, "mine.py:attend"])
def test_every_library_has_a_setting_for_a_backend_or_says_how_to_add_one(backend):
    flags = settings(backend, backend, backend)
    assert list(flags) == ["vLLM", "sglang", "transformers"]
    for each in flags.values():
        assert each.setting or (backend in each.note and "register" in each.note)


def test_names_are_those_of_built_in_backends():
    tables = (serving_flags._VLLM, serving_flags._SGLANG, serving_flags._TRANSFORMERS, serving_flags._SDPA_KERNELS)
    assert {name for table in tables for name in table} <= set(BUILTIN)


def test_sglang_takes_a_backend_for_each_phase():
    flags = settings("sdpa", decode="flash-attn:3", prefill="flex")
    assert flags["sglang"].setting == ("--prefill-attention-backend flex_attention --decode-attention-backend fa3")
    assert not flags["sglang"].note
    half = settings("sdpa", decode="flash-attn:3", prefill="naive")["sglang"]
    assert half.setting == "--decode-attention-backend fa3"
    assert half.note == "sglang has no flag for naive: @register_attention_backend(name) adds one."


def test_flashinfer_is_a_backend_of_both_servers():
    found = settings("flashinfer", decode="flashinfer", prefill="flash-attn:3")
    assert found["vLLM"].setting == "--attention-backend FLASHINFER"
    assert found["sglang"].setting == "--prefill-attention-backend fa3 --decode-attention-backend flashinfer"


def test_the_latent_kernel_of_flashinfer_is_chosen_in_sglang_alone():
    found = settings("flashinfer:mla", decode="flashinfer:mla", prefill="flashinfer:mla")
    assert found["sglang"].setting == "--prefill-attention-backend flashinfer --decode-attention-backend flashinfer"
    assert "vLLM has no flag for flashinfer:mla" in found["vLLM"].note


def test_a_kernel_of_sdpa_is_chosen_in_transformers_by_its_context_manager():
    flags = settings("sdpa:flash")["transformers"]
    assert flags.setting == 'attn_implementation="sdpa"'
    assert flags.note == "Call the model within sdpa_kernel(SDPBackend.FLASH_ATTENTION)."


def test_no_choice_gives_no_setting():
    assert settings() == {}
