"""Base units inside (s, B, FLOP/s); scaled only here, at the moment of printing.

Bytes take binary prefixes (MiB), rates and times decimal ones (TFLOP/s, ms).
"""

from __future__ import annotations

import re

from attnbench.errors import UsageError

_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def _three_digits(value: float) -> str:
    """Three significant digits, never in scientific notation, never shortened by an ellipsis."""
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """4.21 ms; a dash where nothing was measured."""
    if value is None:
        return "-"
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    scale, unit = next(((s, u) for s, u in _TIMES if abs(value) >= 0.9995 * s), _TIMES[-1])
    return f"{_three_digits(value / scale)} {unit}"


def size(value: float | None) -> str:
    """512 MiB."""
    if value is None:
        return "-"
    step = 0
    while abs(value) >= 1023.5 and step < len(_BINARY) - 1:
        value /= 1024
        step += 1
    return f"{value:.0f} B" if step == 0 else f"{_three_digits(value)} {_BINARY[step]}"


def rate(value: float | None, unit: str) -> str:
    """623 TFLOP/s, for a unit such as `FLOP/s` or `B/s`."""
    if value is None:
        return "-"
    step = 0
    while abs(value) >= 999.5 and step < len(_DECIMAL) - 1:
        value /= 1000
        step += 1
    return f"{_three_digits(value)} {_DECIMAL[step]}{unit}"


def short(value: float) -> str:
    """512, 1k, 2k: a length as tables and axes have it."""
    return f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}"


def percent(value: float | None) -> str:
    """+-1.2%."""
    return "-" if value is None else f"{_three_digits(100 * value)}%"


def change(value: float | None) -> str:
    """+4.2 %, -0.1 %: a relative change."""
    return "-" if value is None else f"{100 * value:+.1f} %"


def parse_seconds(text: str, name: str) -> float:
    """`45s`, `2m`, `500ms`, `1.5h` or a bare number of seconds; `name` is the option that it came from."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)?", text.strip())
    if not match:
        raise UsageError(f"{name}: not a duration: {text!r} (try 45s, 2m or 500ms)")
    return float(match[1]) * {"ms": 1e-3, "s": 1.0, None: 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}[match[2]]


def parse_share(text: str, name: str) -> float:
    """`2%` or `0.02`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%)?", text.strip())
    share = float(match[1]) / (100 if match and match[2] else 1) if match else -1.0
    if not 0 < share <= 1:
        raise UsageError(f"{name}: not a share: {text!r} (try 2% or 0.02)")
    return share


def parse_bytes(text: str, name: str) -> int | float:
    """`8GiB` as bytes (int), or `80%` as a share of what is free (float)."""
    text = text.strip()
    if text.endswith("%"):
        return parse_share(text, name)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", text.lower())
    if not match or not float(match[1]):
        raise UsageError(f"{name}: not a size: {text!r} (try 80%, 8GiB or 512MiB)")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))
