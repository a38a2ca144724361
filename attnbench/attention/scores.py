"""The logit of a pair: `(softcap(scale * similarity) + bias) / temperature`, with softcap(x) = c tanh(x / c).

A temperature T is not a separate operation: softcap(s x) / T with cap c equals softcap(s / T x) with cap c / T. So
backends get a scale, a cap and a bias that are divided by it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from attnbench.attention import biases, user_files
from attnbench.errors import ProblemError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

NUMBERS = ("scale", "softcap", "temperature")  # fields of a Score that are axes of a sweep

ScoreFunction = Callable[["Tensor", "Tensor"], "Tensor"]


class Similarity(StrEnum):
    """The comparison of a query with a key."""

    DOT = "dot"
    COSINE = "cosine"  # q and k normalised within the call
    BILINEAR = "bilinear"  # q W k, W folded into q within the call
    ADDITIVE = "additive"  # w . tanh(q A + k B), Bahdanau et al. (https://arxiv.org/abs/1409.0473)
    FILE = "file"  # a user's function: `file.py:function`


DEFAULT_SCALES = {Similarity.COSINE: 10.0, Similarity.ADDITIVE: 1.0, Similarity.FILE: 1.0}


class Score(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False, cache_hash=True
):
    """The parameters of the logit of a pair."""

    similarity: Similarity = Similarity.DOT
    scale: float | None = None  # None: 1 / sqrt(head_dim); 10 for cosine; 1 for additive and a function
    softcap: float | None = None  # in logits; None: no cap
    temperature: float | None = None  # divisor of the logits; None: 1
    bias: str = "none"  # canonical text of a biases.LogitBias
    function: str = ""  # `file.py:function`, for Similarity.FILE

    def __post_init__(self) -> None:
        fill = msgspec.structs.force_setattr
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None:
                if not float("-inf") < value < float("inf") or (name != "scale" and value <= 0):
                    rule = "a finite number" if name == "scale" else "a positive number"
                    raise ProblemError(f"score {name}={value!r}: {rule}, or left out")
                fill(self, name, float(value))
        if self.similarity not in tuple(Similarity):
            raise UnknownNameError("similarity", str(self.similarity), tuple(Similarity), where="score")
        fill(self, "similarity", Similarity(self.similarity))
        bias = biases.parse(self.bias)
        fill(self, "bias", bias.text if bias else "none")
        if bool(self.function) != (self.similarity is Similarity.FILE):
            kind = f"similarity={self.similarity.value} with function={self.function!r}"
            raise ProblemError(f"score {kind}: a function needs similarity=file, and the other way round")


def file_of(name: str) -> Path:
    """The file of `file.py:function`. Raises ProblemError if there is none."""
    path = name.partition(".py:")[0]
    if not (file := Path(f"{path}.py").expanduser()).is_file():
        raise ProblemError(f"score {name!r}: no file {path}.py")
    return file


def check_function(name: str) -> None:
    """Raise UsageError unless the file of `file.py:function` defines the function. Nothing of it runs."""
    user_files.check_defines(file_of(name), name.partition(".py:")[2], f"score {name!r}")


@lru_cache(maxsize=64)
def load_function(name: str) -> ScoreFunction:
    """The function of `file.py:function`: q [..., seq_q, head_dim], k [..., seq_kv, head_dim] -> [..., seq_q, seq_kv].

    Runs the file. Raises UsageError if there is no such file or function, or the file fails.
    """
    file, (path, _, attribute) = file_of(name), name.partition(".py:")
    try:
        module = user_files.import_file(file.resolve())
    except Exception as error:  # a user's file may raise anything
        raise ProblemError(f"score {name!r}: {path}.py fails: {type(error).__name__}: {error}") from error
    function: ScoreFunction | None = getattr(module, attribute, None)
    if not callable(function):
        raise user_files.undefined(attribute, user_files.functions_of(module), f"score {name!r}")
    return function
