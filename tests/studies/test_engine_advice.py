"""Which flag of an engine follows from a dispatch table, and the ground that is given."""

import pytest

from attnbench.analysis.rows import rows_of
from attnbench.errors import UnknownNameError
from attnbench.report.terminal.dispatch_table import advice_lines
from attnbench.studies.engine_advice import EngineAdvice, advise
from attnbench.studies.recommend import dispatch
from tests.studies.test_claims import measured

PREFILL = {"sdpa:cudnn": 1.0, "flash-attn:3": 1.2, "flashinfer": 2.0}
DECODE = {"sdpa:cudnn": 3.0, "flash-attn:3": 2.0, "flashinfer": 1.0}


def advice(engine: str) -> EngineAdvice:
    results = [
        *(measured(seconds, backend, seq_q=512) for backend, seconds in PREFILL.items()),
        *(measured(seconds, backend, seq_q=1024) for backend, seconds in PREFILL.items()),
        *(measured(seconds, backend, seq_q=1, seq_kv=512) for backend, seconds in DECODE.items()),
    ]
    (only,) = advise(dispatch(rows_of(results)), engine)
    return only


def test_one_backend_for_all_is_the_one_with_the_least_mean_that_the_engine_has() -> None:
    vllm = advice("vllm")
    assert vllm.setting == "--attention-backend FLASH_ATTN --attention-config.flash_attn_version 3"
    (ground,) = vllm.ground
    assert (ground.backend, ground.fastest, ground.of) == ("flash-attn:3", 0, 3)
    assert ground.mean == pytest.approx((1.2 * 1.2 * 2.0) ** (1 / 3), rel=1e-3)


def test_sglang_gets_a_backend_for_each_phase_and_the_best_one_without_a_flag_is_named() -> None:
    sglang = advice("sglang")
    assert sglang.setting == "--prefill-attention-backend fa3 --decode-attention-backend flashinfer"
    assert [(each.phase, each.backend) for each in sglang.ground] == [
        ("decode", "flashinfer"),
        ("prefill", "sdpa:cudnn"),
        ("prefill", "flash-attn:3"),
    ]
    assert sglang.notes == ("sglang has no flag for sdpa:cudnn: @register_attention_backend(name) adds one.",)


def test_transformers_gets_a_name() -> None:
    assert advice("transformers").setting == 'attn_implementation="flash_attention_3"'


def test_the_text_names_the_version_the_setting_and_the_ground() -> None:
    text = "\n".join(advice_lines([advice("vllm")], 200))
    assert text.startswith("vLLM 0.32 on cpu:threads=1:\n--attention-backend FLASH_ATTN")
    ground = "flash-attn:3 is fastest or tied in 0 of 3 problems and takes 1.42x the time of the fastest"
    assert f"{ground} (geometric mean)" in text


def test_a_run_without_a_backend_that_the_engine_has_gives_no_setting() -> None:
    (only,) = advise(dispatch(rows_of([measured(1.0, "naive", seq_q=64)])), "vllm")
    assert only.setting == ""
    assert only.notes == (
        'vLLM has no flag for naive: register_backend(AttentionBackendEnum.CUSTOM, "module.Class") adds one.',
    )
    assert list(advice_lines([], 80)) == ["nothing was measured in this run"]


def test_another_engine_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="--to: no engine 'vlm'; did you mean 'vllm'"):
        advise(dispatch([]), "vlm")
