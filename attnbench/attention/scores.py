"""How a query and a key become a logit: `(softcap(scale * similarity) + bias) / temperature`, softcap(x) = c tanh(x/c).

A temperature is no operation of its own: softcap(s x) / T with cap c is softcap(s / T x) with cap c / T, so backends
are given a scale, a cap and a bias that hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from attnbench.attention import biases
from attnbench.errors import ProblemError

NUMBERS = ("scale", "softcap", "temperature")  # of a Score, each an axis of its own
COSINE_SCALE = 10.0


class Similarity(StrEnum):
    """What compares a query with a key."""

    DOT = "dot"
    COSINE = "cosine"  # q and k normalised within the call
    BILINEAR = "bilinear"  # q W k, W folded into q within the call
    ADDITIVE = "additive"  # w . tanh(q A + k B), Bahdanau et al. (https://arxiv.org/abs/1409.0473)
    FILE = "file"  # a function of the user's: `file.py:function`


class Score(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The logit of a pair."""

    similarity: Similarity = Similarity.DOT
    scale: float | None = None  # None: 1 / sqrt(head_dim); 10 for cosine; 1 for additive and a function
    softcap: float | None = None  # None: no cap
    temperature: float | None = None  # None: 1
    bias: str = "none"  # canonical text of a biases.Bias
    function: str = ""  # `file.py:function`, where that is the similarity

    def __post_init__(self) -> None:
        fill = msgspec.structs.force_setattr
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None:
                if not float("-inf") < value < float("inf") or (name != "scale" and value <= 0):
                    rule = "a finite number" if name == "scale" else "a positive number"
                    raise ProblemError(f"score {name}={value!r}: {rule}, or left out")
                fill(self, name, float(value))
        bias = biases.parse(self.bias)
        fill(self, "bias", bias.text if bias else "none")
        if bool(self.function) != (self.similarity is Similarity.FILE):
            raise ProblemError(
                f"score {self.similarity.value}: a function is named as file.py:function, and only there"
            )

    def scale_for(self, head_dim: int) -> float:
        """The factor on the similarity, for heads of that width; it holds the temperature."""
        own = {
            Similarity.COSINE: COSINE_SCALE, Similarity.ADDITIVE: 1.0, Similarity.FILE: 1.0
        }.get(self.similarity, head_dim**-0.5)  # fmt: skip
        return (own if self.scale is None else self.scale) / (self.temperature or 1.0)

    @property
    def cap(self) -> float | None:
        """The soft cap; it holds the temperature."""
        return self.softcap / (self.temperature or 1.0) if self.softcap else None


def file_of(name: str) -> Path:
    """The file of `file.py:function`. ProblemError where there is none."""
    path = name.partition(".py:")[0]
    if not (file := Path(f"{path}.py").expanduser()).is_file():
        raise ProblemError(f"score {name!r}: no file {path}.py")
    return file


@lru_cache(maxsize=64)
def load_function(name: str) -> Callable[..., Any]:
    """The function of `file.py:function`: q [..., seq_q, head_dim], k [..., seq_kv, head_dim] -> [..., seq_q, seq_kv].

    Runs the file. Raises ProblemError where there is no such file or function, or the file fails.
    """
    import runpy

    file, (path, _, attribute) = file_of(name), name.partition(".py:")
    try:
        found = runpy.run_path(str(file))
    except Exception as error:
        raise ProblemError(f"score {name!r}: {path}.py fails: {type(error).__name__}: {error}") from error
    if not callable(found.get(attribute)):
        there = ", ".join(sorted(key for key, value in found.items() if callable(value) and key[0] != "_")) or "none"
        raise ProblemError(f"score {name!r}: no function {attribute!r} in {path}.py (there: {there})")
    return found[attribute]  # type: ignore[no-any-return]
