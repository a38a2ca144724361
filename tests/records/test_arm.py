"""Devices as they are typed, and what tells two arms apart."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.arm import CPU_ISAS, Arm, Device, distinct_names, parse_device


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device(kind="cpu")),
        ("cpu:threads=1", Device(kind="cpu", threads=1)),
        ("cpu:isa=avx2", Device(kind="cpu", isa="avx2")),
        ("cpu:threads=4:isa=avx512", Device(kind="cpu", threads=4, isa="avx512")),
        ("cpu:isa=avx512:threads=4", Device(kind="cpu", threads=4, isa="avx512")),
        ("cuda", Device(kind="cuda", index=0)),
        ("cuda:3", Device(kind="cuda", index=3)),
        ("cuda:3:hardware=H100", Device(kind="cuda", index=3, hardware="H100")),
        ("cuda:hardware=H100", Device(kind="cuda", index=0, hardware="H100")),
        ("cpu:hardware=arm-v9.2_big:threads=2", Device(kind="cpu", threads=2, hardware="arm-v9.2_big")),
        (" cpu ", Device(kind="cpu")),
        ("cpu:cores=0-3+8", Device(kind="cpu", cores=(0, 1, 2, 3, 8))),
        ("cpu:cores=5+2+5-6:threads=2", Device(kind="cpu", threads=2, cores=(2, 5, 6))),
    ],
)
def test_device_is_read(text: str, device: Device) -> None:
    assert parse_device(text) == device


CORES = st.sets(st.integers(0, 30), min_size=1).map(lambda cores: tuple(sorted(cores)))
HARDWARE = st.sampled_from(["", "H100", "cpu"])


@given(
    st.one_of(
        st.builds(Device, kind=st.just("cuda"), index=st.integers(0, 99), hardware=HARDWARE),
        st.builds(
            Device,
            kind=st.just("cpu"),
            threads=st.integers(0, 512),
            isa=st.sampled_from(["", *CPU_ISAS]),
            hardware=HARDWARE,
        ),
        st.builds(Device, kind=st.just("cpu"), threads=st.integers(0, 1), cores=CORES, hardware=HARDWARE),
    )
)
def test_text_of_a_device_reads_back_as_the_device(device: Device) -> None:
    assert parse_device(device.text) == device


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cuda:x", "--device: not a CUDA device: 'cuda:x' (try cuda:0)"),
        ("cuda:²", "--device: not a CUDA device: 'cuda:²' (try cuda:0)"),
        ("cuda:0:1", "--device: not a CUDA device: 'cuda:0:1' (try cuda:0)"),
        ("cuda:0:isa=avx2", "--device: not a CUDA device: 'cuda:0:isa=avx2' (try cuda:0)"),
        (
            "cuda:0:hardware=",
            "--device cuda:0:hardware=: not a class of hardware: '' (letters, digits, '.', '-' and '_': H100, cpu)",
        ),
        (
            "cpu:hardware=a b",
            "--device cpu:hardware=a b: not a class of hardware: 'a b' (letters, digits, '.', '-' and '_': H100, cpu)",
        ),
        ("cpu:threads=0", "--device: threads='0' in 'cpu:threads=0': a number of at least 1"),
        ("cpu:threads", "--device: threads='' in 'cpu:threads': a number of at least 1"),
        ("cpu:cores=5-2", "--device: cores='5-2' in 'cpu:cores=5-2': not a list of CPUs (try cores=0-3 or cores=0+2)"),
        ("cpu:cores=0+", "--device: cores='0+' in 'cpu:cores=0+': not a list of CPUs (try cores=0-3 or cores=0+2)"),
        ("1", "--device: no device '1'; for two cores: cpu:cores=0+1; for a GPU: cuda:0"),
        ("2-3", "--device: no device '2-3'; for two cores: cpu:cores=0+1; for a GPU: cuda:0"),
        ("cpu:threads=3:cores=0-1", "--device: threads=3 in 'cpu:threads=3:cores=0-1': more than its 2 cores"),
    ],
)
def test_malformed_device_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_device(text)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("text", "hint"), [("gpu", "'cpu'"), ("cpu:thread=2", "'threads'"), ("cpu:isa=avx", "'avx2'"), ("", "there are")]
)
def test_unknown_word_suggests_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=hint):
        parse_device(text)


def test_second_of_two_equal_arms_has_a_number() -> None:
    assert [Arm(backend="sdpa:flash", device="cpu", copy=copy).name for copy in (1, 2)] == [
        "sdpa:flash",
        "sdpa:flash#2",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "naive"},
        {"device": "cpu:threads=2"},
        {"python": "other/bin/python"},
        {"path": ("checkout",)},
        {"env": (("OMP_SCHEDULE", "static"),)},
        {"copy": 2},
    ],
    ids=lambda other: next(iter(other)),
)
def test_id_changes_with_every_field(other: dict[str, object]) -> None:
    usual = {"backend": "flex", "device": "cpu"}
    assert Arm(**usual).id != Arm(**(usual | other)).id  # type: ignore[arg-type]


def test_id_of_a_plain_arm_is_backend_and_device() -> None:
    assert Arm(backend="sdpa:flash", device="cpu:threads=1").id == "sdpa:flash@cpu:threads=1"


def test_arms_that_no_setting_tells_apart_have_a_digest() -> None:
    arms = [Arm(backend="naive", device="cpu", path=path) for path in (("a", "b"), ("b", "a"))]
    names = distinct_names(arms)
    assert [names[arm.id] for arm in arms] == [f"naive@{sha256(arm.id.encode()).hexdigest()[:8]}" for arm in arms]
