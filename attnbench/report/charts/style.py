"""The colour, marker and dash of each backend: the same in every chart and under any filter, safe for the colour-blind.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), with a darker yellow, grey and brown, so that all are
visible on white and on dark. Marker and dash distinguish backends that share a colour, and all of them without colour.
"""

import hashlib
import re
from collections.abc import Iterable

import msgspec

GREY, ORANGE, SKY, GREEN = "#767676", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#B59F00", "#0072B2", "#D55E00", "#CC79A7"
BROWN = "#A6761D"
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, BROWN)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
SOLID, DASHED, DOTTED, CONTROL = (1, 0), (6, 3), (2, 2), (8, 2, 2, 2)


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
    """The look of an arm: that of its backend if it is known, else one that follows from its name alone.

    A second copy of an arm (`naive#2`, an A/A control) has the dash CONTROL.
    """
    backend = re.sub(r"#\d+", "", arm)
    known = KNOWN.get(backend) or KNOWN.get(backend.partition(":")[0] if backend.startswith("xformers") else "")
    if known is None:
        number = int(hashlib.sha256(backend.encode()).hexdigest()[:8], 16)
        known = Look(COLORS[number % len(COLORS)], SHAPES[number // 8 % len(SHAPES)], DASHED)
    return Look(known.color, known.shape, CONTROL) if backend != arm else known


def in_order(arms: Iterable[str]) -> list[str]:
    """Known backends in the order of KNOWN, then the others by name."""
    order = list(KNOWN)
    return sorted(set(arms), key=lambda arm: (order.index(arm) if arm in order else len(order), arm))
