from __future__ import annotations

import pytest

from attnbench.machine.device.nvml import Gauge, steady, tags


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [  # bits as nvml.h gives them
        (0x0, ()),
        (0x1, ()),  # idle
        (0x2, ()),  # clocks set by the user
        (0x4, ("power_capped",)),
        (0x8, ("throttled",)),  # hardware slowdown
        (0x10, ()),  # sync boost
        (0x20, ("throttled",)),  # heat, by software
        (0x40, ("throttled",)),  # heat, by hardware
        (0x80, ("throttled",)),  # power brake
        (0x100, ()),  # display
        (0x4 | 0x40, ("throttled", "power_capped")),
    ],
)
def test_reasons_for_a_lower_clock_become_tags(reasons: int, expected: tuple[str, ...]) -> None:
    assert tags(reasons) == expected


def test_bits_are_those_of_the_library() -> None:
    import pynvml

    slowed = (
        pynvml.nvmlClocksEventReasonHwSlowdown,
        pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    )
    assert {tags(bit) for bit in slowed} == {("throttled",)}
    assert tags(pynvml.nvmlClocksEventReasonSwPowerCap) == ("power_capped",)


@pytest.mark.parametrize(
    ("clocks", "expected"),
    [
        ([1980e6] * 4, False),
        ([1980e6] * 5, True),
        ([345e6, 1980e6, 1975e6, 1980e6, 1965e6, 1980e6], True),
        ([1980e6, 1980e6, 1980e6, 1980e6, 1950e6], False),
        ([], False),
    ],
)
def test_a_clock_is_steady_when_five_readings_are_within_a_percent(clocks: list[float], expected: bool) -> None:
    assert steady(clocks) is expected


def test_a_gpu_that_is_not_there_has_no_figures() -> None:
    gauge = Gauge("00000000-0000-0000-0000-000000000000")
    assert (gauge.read(), gauge.about(), gauge.sm_clock_hz()) == ({}, {}, None)
