"""Lines of text in a terminal: where they break."""

from __future__ import annotations

import pytest

from attnbench.report.terminal.text_layout import wrap


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("a slowdown of 4.1 % is hidden", 18, ["a slowdown of", "4.1 % is hidden"]),
        ("base took 12.5 ms before", 15, ["base took", "12.5 ms before"]),
        ("moves 3.25 GB/s of 1,024 MiB", 12, ["moves", "3.25 GB/s of", "1,024 MiB"]),
        ("after 6 restarts", 8, ["after 6", "restarts"]),
        ("error=1e-05,limit=2.5e-05", 14, ["error=1e-05,", "limit=2.5e-05"]),
        ("error=1e-05", 9, ["error=", "1e-05"]),
    ],
)
def test_a_number_is_not_broken_and_keeps_its_unit(text: str, width: int, lines: list[str]) -> None:
    assert wrap(text, width) == lines
