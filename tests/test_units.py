"""Numbers as they are printed, and quantities as they are typed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import UsageError
from attnbench.units import parse_bytes, parse_seconds, parse_share, percent, rate, seconds, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.00421, "4.21 ms"),
        (1.5, "1.50 s"),
        (99.94, "99.9 s"),
        (119.0, "119 s"),
        (125.0, "2 min 05 s"),
        (3600.0, "60 min 00 s"),
        (2.5e-6, "2.50 us"),
        (3e-9, "3.00 ns"),
        (0.99996, "1.00 s"),
        (0.0121, "12.1 ms"),
        (0.711, "711 ms"),
    ],
)
def test_time_has_three_digits_and_a_fitting_unit(value: float | None, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1000, "1000 B"),
        (1024, "1.00 KiB"),
        (512 * 1024**2, "512 MiB"),
        (16.1 * 1024**3, "16.1 GiB"),
        (1023.6, "1.00 KiB"),
        (5 * 1024**6, "5120 PiB"),
    ],
)
def test_size_takes_binary_prefixes(value: float | None, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (623e12, "623 TFLOP/s"), (2.45e11, "245 GFLOP/s"), (999.7, "1.00 kFLOP/s"), (12.0, "12.0 FLOP/s")],
)
def test_rate_takes_decimal_prefixes(value: float | None, text: str) -> None:
    assert rate(value, "FLOP/s") == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.012, "1.20%"), (0.5, "50.0%"), (1.5, "150%")])
def test_share_is_printed_in_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


@given(st.floats(1e-9, 119))
def test_printed_time_is_within_half_a_digit(value: float) -> None:
    number, unit = seconds(value).split()
    back = float(number) * {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit]
    assert back == pytest.approx(value, rel=0.0051)


@given(st.floats(0, 1e17))
def test_printed_size_is_never_in_scientific_notation(value: float) -> None:
    assert re.fullmatch(r"\d+(\.\d+)? ([KMGTP]i)?B", size(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [("45s", 45), ("2m", 120), ("500ms", 0.5), ("1.5h", 5400), ("30", 30), ("2min", 120), ("0", 0), (" 1s ", 1)],
)
def test_duration_is_read(text: str, value: float) -> None:
    assert parse_seconds(text, "--budget") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "1 day", "5ss", "1e3"])
def test_bad_duration_names_the_option_and_what_would_do(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_seconds(text, "--budget")
    assert str(caught.value) == f"--budget: not a duration: {text!r} (try 45s, 2m or 500ms)"


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.02", 0.02), ("100%", 1.0)])
def test_share_is_read(text: str, value: float) -> None:
    assert parse_share(text, "--rel-ci") == pytest.approx(value)


@pytest.mark.parametrize("text", ["0", "0%", "101%", "2", "-1%", "two"])
def test_share_beyond_0_to_1_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rel-ci: not a share"):
        parse_share(text, "--rel-ci")


@pytest.mark.parametrize(
    ("text", "value"),
    [("8GiB", 8 * 1024**3), ("512MiB", 512 * 1024**2), ("1.5k", 1536), ("100", 100), ("2 tb", 2 * 1024**4)],
)
def test_size_is_read_as_bytes(text: str, value: int) -> None:
    assert parse_bytes(text, "--mem-limit") == value


def test_percent_of_memory_is_a_share() -> None:
    assert parse_bytes("80%", "--mem-limit") == pytest.approx(0.8)


@pytest.mark.parametrize("text", ["0", "much", "-1GiB", "8XiB", "0%"])
def test_bad_size_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--mem-limit: not a s"):
        parse_bytes(text, "--mem-limit")
