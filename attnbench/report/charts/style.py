"""The colour, marker and dash of each backend: the same in every chart of a run, safe for the colour-blind.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), darkened until marks have a contrast of 3:1 and
names one of 4.5:1 on the page. Marker and dash distinguish backends that share a colour.
"""

import re
from collections.abc import Iterable, Mapping

import msgspec

SHAPES = ("circle", "square", "diamond", "triangle", "cross", "down")
SOLID, DASHED, DOTTED, CONTROL = "", "6 3", "2 2", "8 2 2 2"


class Color(msgspec.Struct, frozen=True):
    """One colour as a CSS variable `--NAME`, and `--NAME-text` for text."""

    name: str
    light: str
    light_text: str
    dark: str
    dark_text: str


GREY = Color("grey", "#6b7078", "#55595f", "#a1a7b0", "#b8bdc6")
ORANGE = Color("orange", "#c77700", "#8f5500", "#e69f00", "#f0b23a")
BLUE = Color("blue", "#0072b2", "#00629a", "#4fb0f0", "#7cc6fa")
GREEN = Color("green", "#00865f", "#00694a", "#2fbf95", "#5fd3b0")
RED = Color("red", "#d55e00", "#a84700", "#ff8c42", "#ffa86e")
PINK = Color("pink", "#b8578c", "#98406f", "#e08fbc", "#efb0d2")
SKY = Color("sky", "#2b8cc4", "#1a6a98", "#7cc8f2", "#a3daf8")
YELLOW = Color("yellow", "#8f7d00", "#6f6100", "#d9c53a", "#e6d76a")
BROWN = Color("brown", "#a06a1c", "#7d5010", "#cf9f5c", "#dfba85")
COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, BROWN, GREY)


class Look(msgspec.Struct, frozen=True):
    """How a backend is drawn."""

    color: Color
    shape: str
    dash: str = SOLID


KNOWN = {
    "naive": Look(GREY, "circle"),
    "sdpa": Look(BROWN, "circle", DASHED),
    "sdpa:math": Look(ORANGE, "square"),
    "sdpa:flash": Look(BLUE, "diamond"),
    "sdpa:efficient": Look(SKY, "triangle"),
    "sdpa:cudnn": Look(GREEN, "cross"),
    "flex": Look(RED, "down"),
    "flex:eager": Look(RED, "down", DOTTED),
    "triton": Look(PINK, "circle"),
    "triton:portable": Look(PINK, "square", DOTTED),
    "triton:descriptors": Look(PINK, "diamond", DASHED),
    "triton:hopper": Look(PINK, "triangle"),
    "flash-attn:2": Look(YELLOW, "diamond", DASHED),
    "flash-attn:3": Look(YELLOW, "square"),
    "flash-attn:4": Look(YELLOW, "triangle"),
    "xformers": Look(SKY, "cross", DASHED),
}


def looks(arms: Iterable[str]) -> Mapping[str, Look]:
    """The look of each arm. A backend without one of its own gets the first colour that no other of these uses.

    A second copy of an arm (`naive#2`, an A/A control) has the dash CONTROL.
    """
    chosen: dict[str, Look] = {}
    order = in_order(arms)
    used = [known.color for arm in order if (known := _known(_backend(arm)))]
    backends: dict[str, Look] = {}
    for arm in order:
        backend = _backend(arm)
        if backend not in backends:
            look = _known(backend)
            if look is None:
                number = len(used)
                color = next((each for each in COLORS if each not in used), COLORS[number % len(COLORS)])
                used.append(color)
                look = Look(color, SHAPES[number % len(SHAPES)], DASHED)
            backends[backend] = look
        look = backends[backend]
        chosen[arm] = Look(look.color, look.shape, CONTROL) if "#" in arm else look
    return chosen


def in_order(arms: Iterable[str]) -> list[str]:
    """Known backends in the order of KNOWN, then the others by name."""
    order = {name: place for place, name in enumerate(KNOWN)}
    return sorted(set(arms), key=lambda arm: (order.get(_backend(arm), len(order)), arm))


def _backend(arm: str) -> str:
    """The name without the number of a copy."""
    return re.sub(r"#\d+", "", arm)


def _known(backend: str) -> Look | None:
    return KNOWN.get(backend) or (KNOWN["xformers"] if backend.startswith("xformers:") else None)


# The page's own colours by name: text, quieter text, lines, paper, a limit, and what is better.
LIGHT = {
    "ink": "#1b1d21",
    "soft": "#5b6068",
    "line": "#dfe2e7",
    "paper": "#ffffff",
    "bad": "#b3261e",
    "fast": "#eef6fb",
}
DARK = {"ink": "#e8eaee", "soft": "#a7aeb9", "line": "#353a43", "paper": "#15171b", "bad": "#ff8a80", "fast": "#16232e"}


def light_colors() -> dict[str, str]:
    """The colours of the light theme by the names of their CSS variables."""
    return LIGHT | {c.name: c.light for c in COLORS} | {f"{c.name}-text": c.light_text for c in COLORS}


def dark_colors() -> dict[str, str]:
    """The same of the dark theme."""
    return DARK | {c.name: c.dark for c in COLORS} | {f"{c.name}-text": c.dark_text for c in COLORS}
