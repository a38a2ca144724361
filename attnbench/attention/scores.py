"""How a query and a key become a logit: `softcap(scale * similarity)`, where softcap(x) = c tanh(x / c)."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from attnbench.errors import ProblemError


class Similarity(StrEnum):
    """What compares a query with a key."""

    DOT = "dot"


class Score(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The logit of a pair."""

    similarity: Similarity = Similarity.DOT
    scale: float | None = None  # None: 1 / sqrt(head_dim)
    softcap: float | None = None  # None: no cap

    def __post_init__(self) -> None:
        for name in ("scale", "softcap"):
            value = getattr(self, name)
            if value is not None:
                if not float("-inf") < value < float("inf") or (name == "softcap" and value <= 0):
                    rule = "a positive number" if name == "softcap" else "a finite number"
                    raise ProblemError(f"score {name}={value!r}: {rule}, or left out")
                msgspec.structs.force_setattr(self, name, float(value))

    def scale_for(self, head_dim: int) -> float:
        """The factor on q . k, for heads of that width."""
        return head_dim**-0.5 if self.scale is None else self.scale
