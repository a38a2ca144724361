"""The grammar of lists of numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import RangeError
from attnbench.ranges import LARGEST, MOST_VALUES, integer, integers, words

FEW = settings(max_examples=200)


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
    ("text", "complaint"),
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
        ("999999999m", f"999999999m is too large: at most {LARGEST}"),
    ],
)
def test_mistake_is_named_with_its_remedy(text: str, complaint: str) -> None:
    with pytest.raises(RangeError) as caught:
        integers(text)
    assert str(caught.value) == complaint


def test_complaint_begins_with_the_option() -> None:
    with pytest.raises(RangeError, match=r"^--seq: not an integer"):
        integers("x", "--seq")


@pytest.mark.parametrize("text", ["0..9999999:+1", "1..9999999:n9999999", "1..600k:+1,700k..1300k:+1"])
def test_list_of_a_million_values_is_refused_quickly(text: str) -> None:
    with pytest.raises(RangeError, match=f"more than {MOST_VALUES} values"):
        integers(text)


@FEW
@given(
    low=st.integers(1, 10_000), more=st.integers(0, 100_000), step=st.sampled_from(["", ":x3", ":+7", ":n5", ":n40"])
)
def test_range_is_sorted_and_unique_and_holds_both_ends(low: int, more: int, step: str) -> None:
    values = integers(f"{low}..{low + more}{step}")
    assert list(values) == sorted(set(values))
    assert (values[0], values[-1]) == (low, low + more)


@FEW
@given(low=st.integers(1, 1000), high=st.integers(1000, 10**6), factor=st.integers(2, 9))
def test_geometric_range_is_every_power_below_the_end(low: int, high: int, factor: int) -> None:
    expected = {low * factor**power for power in range(21) if low * factor**power < high} | {high}
    assert set(integers(f"{low}..{high}:x{factor}")) == expected


@FEW
@given(low=st.integers(0, 1000), more=st.integers(0, 1000), step=st.integers(1, 100))
def test_arithmetic_range_is_that_of_python_with_its_end(low: int, more: int, step: int) -> None:
    assert set(integers(f"{low}..{low + more}:+{step}")) == {*range(low, low + more, step), low + more}


@FEW
@given(low=st.integers(1, 10**5), high=st.integers(10**5, 10**6), count=st.integers(2, 20))
def test_log_points_are_evenly_spaced_but_for_rounding(low: int, high: int, count: int) -> None:
    exact = [low * (high / low) ** (step / (count - 1)) for step in range(count)]
    values = integers(f"{low}..{high}:n{count}")
    assert all(min(abs(value - point) for point in exact) <= 0.51 for value in values)


@FEW
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
