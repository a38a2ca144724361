"""Conditions on cases: what `--only`, `--skip` and exclusions hold for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import ProblemError, RangeError, UnknownNameError, UsageError
from attnbench.suite import parse_filter
from attnbench.suite.filters import filter_keys, keeps, make_filter
from tests.samples import result

DECODE = Problem(
    seq_q=1,
    seq_kv=8192,
    batch=4,
    heads=32,
    kv_heads=8,
    head_dim=128,
    dtype=Dtype.BF16,
    mask="causal+window:512",
    score=Score(softcap=30),
)
RAGGED = Problem(seq_q=5, batch=2, requests="q5_q3")


def holds(text: str, problem: Problem = DECODE, backend: str = "sdpa:flash", device: str = "cpu:threads=4") -> bool:
    return parse_filter(text).matches(problem, Mode.FWD, backend, device)


@pytest.mark.parametrize(
    "text",
    [
        "seq=8k",
        "seq=..8k",
        "seq=8k..",
        "seq=1k..16k",
        "seq=5,8k",
        "seq_q=1",
        "seq-kv=4k..",
        "batch=4",
        "tokens=32k",
        "heads=8..32",
        "kv_heads=8",
        "head_dim=64,128",
        "head_dim_v=128",
        "dtype=fp16,bf16",
        "mask=window:512+causal",
        "score=dot:softcap=30",
        "scale=none",
        "softcap=30.0",
        "returns=out",
        "mode=fwd,bwd",
        "backend=naive,sdpa:flash",
        "device=cpu",
        "device=cpu:threads=4",
    ],
)
def test_condition_holds(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "seq=1",
        "seq=..4k",
        "seq=16k..",
        "seq_q=2..",
        "heads=8",
        "dtype=fp32",
        "mask=causal",
        "score=dot",
        "softcap=none",
        "lengths=5-3",
        "returns=lse",
        "mode=bwd",
        "backend=sdpa",
        "device=cuda",
        "device=cpu:threads=1",
        "device=cpu:isa=avx2",
    ],
)
def test_condition_does_not_hold(text: str) -> None:
    assert not holds(text)


def test_every_key_is_known_and_answers() -> None:
    values = {
        "dtype": "bf16",
        "mask": "none",
        "score": "dot",
        "lengths": "5-3",
        "requests": "q5",
        "kv": "none",
        "shared_prefix": "2k:8",
        "returns": "lse",
        "mode": "fwd",
    }
    values |= {"backend": "naive", "device": "cpu", "bias": "alibi", "weighting": "raw", "sinks": "true"}
    values |= {"dropout": "0.1", "positions": "rope", "scope": "block", "kv_dtype": "int8", "autocast": "none"}
    answers = [holds(f"{key}={values.get(key, '1')}", RAGGED) for key in filter_keys()]
    assert {type(answer) for answer in answers} == {bool}


def test_length_is_the_longer_of_the_two() -> None:
    assert holds("seq=16", Problem(seq_q=16, seq_kv=8))
    assert holds("seq=16", Problem(seq_q=8, seq_kv=16))


def test_ragged_batch_is_found_by_its_lengths() -> None:
    stored_as_padded = Problem(seq_q=5, batch=2, lengths=(5, 3))
    assert [holds("lengths=5-3", each) for each in (RAGGED, stored_as_padded, DECODE)] == [True, True, False]
    assert holds("requests=q5_q3", stored_as_padded)


def test_range_means_between_and_not_the_powers() -> None:
    assert holds("seq=1k..4k", Problem(seq_q=1500))


def test_range_with_a_step_is_the_list_that_it_gives() -> None:
    assert [holds("seq=1k..4k:x2", Problem(seq_q=seq)) for seq in (1024, 1500, 2048, 4096)] == [True, False, True, True]


def test_one_device_of_several_is_found_by_its_index() -> None:
    assert holds("device=cuda:1", device="cuda:1")
    assert not holds("device=cuda:1", device="cuda:0")


def test_options_of_a_device_are_found_one_by_one() -> None:
    assert holds("device=cpu:isa=avx2", device="cpu:threads=4:isa=avx2")


LIMIT = st.integers(0, 100)


@given(low=LIMIT, more=LIMIT, seq=st.integers(1, 250))
def test_range_holds_for_what_lies_between_its_ends(low: int, more: int, seq: int) -> None:
    assert holds(f"seq={low}..{low + more}", Problem(seq_q=seq)) == (low <= seq <= low + more)


@given(end=LIMIT, seq=st.integers(1, 200))
def test_open_range_holds_up_to_its_end_and_from_it(end: int, seq: int) -> None:
    problem = Problem(seq_q=seq)
    assert (holds(f"seq=..{end}", problem), holds(f"seq={end}..", problem)) == (seq <= end, seq >= end)


@given(items=st.lists(st.sampled_from(["7", "..3", "20..", "9..12", "14..17"]), min_size=1), seq=st.integers(1, 30))
def test_list_holds_where_one_of_its_items_does(items: list[str], seq: int) -> None:
    problem = Problem(seq_q=seq)
    assert holds(f"seq={','.join(items)}", problem) == any(holds(f"seq={item}", problem) for item in items)


@pytest.mark.parametrize(
    ("text", "kind", "complaint"),
    [
        ("seq", UsageError, "--only, --skip: not KEY=VALUES: 'seq'"),
        ("seq=", UsageError, "--only, --skip: not KEY=VALUES: 'seq='"),
        ("sek=8", UnknownNameError, "--only, --skip 'sek=8': no key 'sek'; did you mean 'seq'?"),
        ("seq=..", RangeError, "--only, --skip 'seq=..': an empty range '..'"),
        ("seq=8..4", RangeError, "--only, --skip 'seq=8..4': empty range '8..4'"),
        ("seq=x", RangeError, "--only, --skip 'seq=x': not an integer: 'x'"),
        ("mask=casual", UnknownNameError, "--only, --skip 'mask=casual': no mask 'casual'; did you mean 'causal'?"),
        ("mask=window:-3", ProblemError, "--only, --skip 'mask=window:-3': mask 'window:-3': -3 is negative"),
        ("dtype=fp23", UnknownNameError, "--only, --skip 'dtype=fp23': no dtype 'fp23'; did you mean 'fp32'?"),
        ("device=tpu", UnknownNameError, "--only, --skip 'device=tpu': no device 'tpu'"),
        ("backend=a,", RangeError, "--only, --skip 'backend=a,': an empty item"),
    ],
)
def test_mistake_is_named_with_the_condition(text: str, kind: type[UsageError], complaint: str) -> None:
    with pytest.raises(kind) as caught:
        parse_filter(text)
    assert str(caught.value).startswith(complaint)


def test_values_may_be_those_of_toml() -> None:
    assert make_filter("seq", [512, "1k.."], "exclude", filter_keys()).spans[0] == (512, 512)


def test_a_result_is_kept_by_all_conditions_of_only_and_none_of_skip() -> None:
    short, long, other = result(), result(problem=Problem(seq_q=256)), result(backend="flex")
    keep = keeps(["seq=64..512", "backend=naive"], ["seq=256"])
    assert [keep(each) for each in (short, long, other)] == [True, False, False]
    assert keeps(None, None)(short)
