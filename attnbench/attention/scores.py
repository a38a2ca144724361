"""How a query and a key become a logit: `softcap(scale * similarity) / temperature`, where softcap(x) = c tanh(x / c).

A temperature is no operation of its own: softcap(s x) / T with cap c is softcap(s / T x) with cap c / T, so backends
are given a scale and a cap that hold it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from attnbench.errors import ProblemError

NUMBERS = ("scale", "softcap", "temperature")  # of a Score, each an axis of its own


class Similarity(StrEnum):
    """What compares a query with a key."""

    DOT = "dot"


class Score(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The logit of a pair."""

    similarity: Similarity = Similarity.DOT
    scale: float | None = None  # None: 1 / sqrt(head_dim)
    softcap: float | None = None  # None: no cap
    temperature: float | None = None  # None: 1

    def __post_init__(self) -> None:
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None:
                if not float("-inf") < value < float("inf") or (name != "scale" and value <= 0):
                    rule = "a finite number" if name == "scale" else "a positive number"
                    raise ProblemError(f"score {name}={value!r}: {rule}, or left out")
                msgspec.structs.force_setattr(self, name, float(value))

    def scale_for(self, head_dim: int) -> float:
        """The factor on q . k, for heads of that width; it holds the temperature."""
        return (head_dim**-0.5 if self.scale is None else self.scale) / (self.temperature or 1.0)

    @property
    def cap(self) -> float | None:
        """The soft cap; it holds the temperature."""
        return self.softcap / (self.temperature or 1.0) if self.softcap else None
