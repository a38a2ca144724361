"""Formatting of quantities, and parsing of quantities and lists of numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench import units
from attnbench.errors import RangeError, UsageError
from attnbench.units import (
    MAX_INTEGER,
    MAX_VALUES,
    about,
    integer,
    integers,
    parse_age,
    parse_bytes,
    parse_limit,
    parse_seconds,
    parse_share,
    percent,
    rate,
    seconds,
    size,
    words,
)

MORE_EXAMPLES = settings(max_examples=200)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.00421, "4.21 ms"),
        (1.5, "1.50 s"),
        (99.94, "99.9 s"),
        (119.0, "119 s"),
        (125.0, "2 min 05 s"),
        (119.7, "2 min 00 s"),
        (229.98, "3 min 50 s"),
        (360_000.0, "100.0 h"),
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
        (7.81, "7.8 s"),
        (8.0, "8 s"),
        (90.0, "90 s"),
        (113.0, "110 s"),
        (437.0, "7.3 min"),
        (7170.0, "2 h"),
        (360_000.0, "100 h"),
        (0.0123, "12 ms"),
        (0.996, "1 s"),
        (4.44e-6, "4.4 us"),
        (0.0, "0 ns"),
    ],
)
def test_a_predicted_time_has_two_digits(value: float, text: str) -> None:
    assert about(value) == text


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


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.012, "1.20 %"), (0.5, "50.0 %"), (1.5, "150 %")])
def test_share_is_printed_in_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


def test_a_share_above_two_hundred_percent_is_a_factor() -> None:
    assert [percent(value) for value in (2.0, 2.01, 37.5)] == ["200 %", "2.0x", "38x"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.83, "0.83x"), (5.8, "5.8x"), (99_999, "99999x"), (123_456, "123kx"), (99_999_500, "100Mx"), (2.5e9, "2500Mx")],
)
def test_a_factor_takes_few_characters_however_large_it_is(value: float, text: str) -> None:
    assert units.factor(value) == text


def test_a_share_without_decimals_is_a_factor_above_two_hundred_percent_too() -> None:
    assert [units.whole_percent(value) for value in (0.45, 2.0, 37.5, None)] == ["45 %", "200 %", "38x", "-"]


def test_a_change_above_two_hundred_percent_is_the_ratio_of_the_two_values() -> None:
    assert [units.change(value) for value in (-0.99, 2.0, 2.5, 36.248)] == ["-99.0 %", "+200.0 %", "3.5x", "37x"]
    assert [units.margin(value) for value in (0.02, 36.248, None)] == ["2.0 %", "37x", "-"]
    assert [units.in_percent(value) for value in (0.02, 36.248, -0.01)] == ["2.0 %", "3,625 %", "-1.0 %"]
    assert [units.change(value) for value in (-0.0, -0.0004, 0.0004, 0.0006, None)] == ["0.0 %"] * 3 + ["+0.1 %", "-"]


def test_changes_beside_one_another_have_one_unit() -> None:
    assert units.changes([0.0, 36.248]) == ["1.0x", "37x"]
    assert units.changes([-0.01, 0.5]) == ["-1.0 %", "+50.0 %"]
    assert units.change_and_interval(0.376, -0.1, 2.1) == ("+37.6 %", "-10.0 % .. +210 %")
    assert units.change_and_interval(2.1, 0.376, 3.0) == ("3.1x", "1.4x..4.0x")
    assert units.change_and_interval(0.1, -0.5, 2e9) == ("+10.0 %", "-50.0 % .. +2e+11 %")
    assert units.change_and_interval(0.1, None, 0.2) == ("+10.0 %", "")
    assert units.change_and_interval(None, None, None) == ("-", "")


def test_no_other_module_formats_a_percentage() -> None:
    """`f"{share:.0%}"` has no space before the sign, and the rest of the package has one."""
    package = Path(units.__file__).parent
    formats = re.compile(r"\{[^{}]*:[^{}]*%\}|\{[^{}]*(?<!:g)\}%")  # `2%` is what options and files take
    assert [path.name for path in package.rglob("*.py") if formats.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("value", "text"), [(5.2, "5.2"), (1.5e-5, "1.5e-5"), (340.0, "340"), (0.0, "0"), (1.5e9, "1.5e9"), (None, "-")]
)
def test_a_number_without_a_unit_has_two_digits(value: float | None, text: str) -> None:
    assert units.figure(value) == text


def test_a_number_with_an_exponent_has_no_zeros_in_it() -> None:
    assert [units.exponential(value) for value in (1.74e-5, 0.5, 1.2, 0.0, 2.0e12)] == [
        "1.7e-5", "5.0e-1", "1.2", "0.0", "2.0e12",
    ]  # fmt: skip
    assert units.exponential(1.746e-10, 2) == "1.75e-10"


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
def test_bad_duration_names_the_option_and_what_to_use(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_seconds(text, "--budget")
    assert str(caught.value) == f"--budget: not a duration: {text!r} (try 45s, 2m or 500ms)"


def test_a_time_limit_is_above_zero() -> None:
    assert parse_limit("500ms", "--timeout") == 0.5
    with pytest.raises(UsageError, match=r"--timeout: '0s' leaves no time for a case \(try 60s"):
        parse_limit("0s", "--timeout")


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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("512", (512,)),
        (512, (512,)),
        ("512..16384", (512, 1024, 2048, 4096, 8192, 16384)),
        ("100..1000", (100, 200, 400, 800, 1000)),
        ("512..16384:n4", (512, 1625, 5161, 16384)),
        ("1k..8k:x4", (1024, 4096, 8192)),
        ("1..10:+4", (1, 5, 9, 10)),
        ("0..4:+2", (0, 2, 4)),
        ("128,777,1k..4k", (128, 777, 1024, 2048, 4096)),
        ("1k..4k,2k,1024", (1024, 2048, 4096)),
        ("7..7", (7,)),
        ("1M", (1024**2,)),
        (" 64 , 32 ", (32, 64)),
        ("5..6:n9", (5, 6)),
    ],
)
def test_list_gives_its_values(text: str | int, values: tuple[int, ...]) -> None:
    assert integers(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "not an integer: 'abc' (try 512, 4k or 512..16384)"),
        ("16384..512", "empty range '16384..512': the low end comes first"),
        ("512..1024:y2", "no step 'y2' in '512..1024:y2' (try :x4, :+512 or :n5)"),
        ("512..1024:x", "no step 'x' in '512..1024:x' (try :x4, :+512 or :n5)"),
        ("512..1024:x1", "step 'x1' in '512..1024:x1' must be at least 2"),
        ("512..1024:+0", "step '+0' in '512..1024:+0' must be at least 1"),
        ("512..1024:n1", "step 'n1' in '512..1024:n1' must be at least 2"),
        ("0..8", "'0..8' starts at 0: a geometric range starts at 1 or more"),
        ("512,,1024", "not an integer: '' (try 512, 4k or 512..16384)"),
        ("512..", "not an integer: '' (try 512, 4k or 512..16384)"),
        ("-5", "not an integer: '-5' (try 512, 4k or 512..16384)"),
        ("1.5", "not an integer: '1.5' (try 512, 4k or 512..16384)"),
        ("²", "not an integer: '²' (try 512, 4k or 512..16384)"),
        ("9" * 500, f"not an integer: '{'9' * 500}' (try 512, 4k or 512..16384)"),
        ("999999999m", f"999999999m is too large: at most {MAX_INTEGER}"),
    ],
)
def test_error_names_the_value_and_what_to_use(text: str, message: str) -> None:
    with pytest.raises(RangeError) as caught:
        integers(text)
    assert str(caught.value) == message


def test_error_begins_with_the_option() -> None:
    with pytest.raises(RangeError, match=r"^--seq: not an integer"):
        integers("x", "--seq")


@pytest.mark.parametrize("text", ["0..9999999:+1", "1..9999999:n9999999", "1..600k:+1,700k..1300k:+1"])
def test_list_of_a_million_values_is_refused_quickly(text: str) -> None:
    with pytest.raises(RangeError, match=f"more than {MAX_VALUES} values"):
        integers(text)


@MORE_EXAMPLES
@given(
    low=st.integers(1, 10_000), more=st.integers(0, 100_000), step=st.sampled_from(["", ":x3", ":+7", ":n5", ":n40"])
)
def test_range_is_sorted_and_unique_and_holds_both_ends(low: int, more: int, step: str) -> None:
    values = integers(f"{low}..{low + more}{step}")
    assert list(values) == sorted(set(values))
    assert (values[0], values[-1]) == (low, low + more)


@MORE_EXAMPLES
@given(low=st.integers(1, 1000), high=st.integers(1000, 10**6), factor=st.integers(2, 9))
def test_geometric_range_is_every_power_below_the_end(low: int, high: int, factor: int) -> None:
    expected = {low * factor**power for power in range(21) if low * factor**power < high} | {high}
    assert set(integers(f"{low}..{high}:x{factor}")) == expected


@MORE_EXAMPLES
@given(low=st.integers(0, 1000), more=st.integers(0, 1000), step=st.integers(1, 100))
def test_arithmetic_range_is_that_of_python_with_its_end(low: int, more: int, step: int) -> None:
    assert set(integers(f"{low}..{low + more}:+{step}")) == {*range(low, low + more, step), low + more}


@MORE_EXAMPLES
@given(low=st.integers(1, 10**5), high=st.integers(10**5, 10**6), count=st.integers(2, 20))
def test_log_points_are_evenly_spaced_but_for_rounding(low: int, high: int, count: int) -> None:
    exact = [low * (high / low) ** (step / (count - 1)) for step in range(count)]
    values = integers(f"{low}..{high}:n{count}")
    assert all(min(abs(value - point) for point in exact) <= 0.51 for value in values)


@MORE_EXAMPLES
@given(st.lists(st.sampled_from(["3", "8..64", "5..50:+9", "1k", "2..90:n4"]), min_size=1))
def test_list_is_the_union_of_its_items(items: list[str]) -> None:
    assert set(integers(",".join(items))) == {value for item in items for value in integers(item)}


@pytest.mark.parametrize(("text", "value"), [("4k", 4096), ("2M", 2 * 1024**2), (" 17 ", 17)])
def test_suffixes_are_binary(text: str, value: int) -> None:
    assert integer(text) == value


def test_words_keep_their_order_and_doubles() -> None:
    assert words("b, a,b") == ("b", "a", "b")


def test_empty_word_is_refused() -> None:
    with pytest.raises(RangeError, match="--mask: an empty item in 'none,'"):
        words("none,", "--mask")


@pytest.mark.parametrize("text", ["0", "5..3", "x", "..5"])
def test_what_is_no_range_of_rounds_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=rf"--rounds: not a range of rounds: '{re.escape(text)}'"):
        units.parse_rounds(text, "--rounds")


def test_an_age_is_above_zero():
    assert parse_age("90d", "--expires") == 90 * 24 * 3600
    with pytest.raises(UsageError, match="--expires: '0d' is no age: give one above 0, as 90d"):
        parse_age("0d", "--expires")
