"""One look for every backend, the same in each chart and under any filter; safe for the colour-blind.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), the yellow darkened, grey and brown added, so that all
show on white and on dark. A marker and a dash tell backends apart where a colour serves two of them, or where there is
no colour at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

GREY, ORANGE, SKY, GREEN = "#767676", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#B59F00", "#0072B2", "#D55E00", "#CC79A7"
BROWN = "#A6761D"
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, BROWN)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
SOLID, DASHED, DOTTED, TWIN = (1, 0), (6, 3), (2, 2), (8, 2, 2, 2)


class Look(msgspec.Struct, frozen=True):
    """How a backend is drawn."""

    color: str
    shape: str
    dash: tuple[int, ...] = SOLID


KNOWN = {
    "naive": Look(GREY, "circle"),
    "sdpa": Look(BROWN, "square", DASHED),
    "sdpa:math": Look(ORANGE, "square"),
    "sdpa:flash": Look(BLUE, "diamond"),
    "sdpa:efficient": Look(SKY, "triangle-up"),
    "sdpa:cudnn": Look(GREEN, "cross"),
    "flex": Look(RED, "triangle-down"),
    "flex:eager": Look(RED, "triangle-down", DOTTED),
    "triton": Look(PINK, "circle"),
    "triton:portable": Look(PINK, "square", DOTTED),
    "triton:descriptors": Look(PINK, "diamond", DASHED),
    "triton:hopper": Look(PINK, "triangle-up"),
    "flash-attn:2": Look(YELLOW, "diamond", DASHED),
    "flash-attn:3": Look(YELLOW, "square"),
    "flash-attn:4": Look(YELLOW, "triangle-up"),
    "xformers": Look(SKY, "cross", DASHED),
}


def look(arm: str) -> Look:
    """Of an arm by its name: the registry's, or one that follows from the name alone."""
    backend, _, twin = arm.partition("#")
    known = KNOWN.get(backend) or KNOWN.get(backend.partition(":")[0] if backend.startswith("xformers") else "")
    if known is None:
        number = int(hashlib.sha256(backend.encode()).hexdigest()[:8], 16)
        known = Look(COLORS[number % len(COLORS)], SHAPES[number // 8 % len(SHAPES)], DASHED)
    return Look(known.color, known.shape, TWIN) if twin else known


def in_order(arms: Iterable[str]) -> list[str]:
    """Known backends first, as the registry has them; then the others by name."""
    order = list(KNOWN)
    return sorted(set(arms), key=lambda arm: (order.index(arm) if arm in order else len(order), arm))
