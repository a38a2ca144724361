"""The scopes of a problem: which part of a model is measured, and how a user types it."""

from enum import StrEnum
from functools import lru_cache

from attnbench.errors import ProblemError, UnknownNameError
from attnbench.units import integer


class Scope(StrEnum):
    """The part of a model that is measured."""

    CORE = "core"  # attention itself
    BLOCK = "block"  # with the projections of q, k, v and out
    LAYER = "layer"  # `layer:N`: N layers, with norms, feed-forward and residuals


@lru_cache(maxsize=256)
def parse_scope(text: str) -> tuple[str, Scope, int]:
    """The canonical text, kind and number of layers of `core`, `block` or `layer:N`.

    Raises ProblemError or UnknownNameError.
    """
    word, colon, count = text.partition(":")
    if word not in tuple(Scope):
        raise UnknownNameError("scope", text, ("core", "block", "layer:2"))
    if word != Scope.LAYER:
        if colon:
            raise ProblemError(f"scope={text!r}: {word} takes no number")
        return word, Scope(word), 0
    depth = integer(count, f"scope={text!r}") if colon else 1
    if depth < 1:
        raise ProblemError(f"scope={text!r}: at least one layer")
    return f"layer:{depth}", Scope.LAYER, depth
