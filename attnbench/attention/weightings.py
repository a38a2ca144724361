"""How the logits of a row become weights: softmax, and what else the field tries.

Hidden keys have the logit -inf and get the weight 0; a row that sees no key gets nothing but zeros.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from attnbench.attention import grammar
from attnbench.attention.dropout import philox
from attnbench.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

INFINITY = float("inf")


class Weighting(grammar.Word, frozen=True):
    """One way to weigh keys."""

    name: ClassVar[str] = ""  # of the feature; empty: the word

    def weights(self, logits: Tensor) -> Tensor:
        """[..., keys] -> [..., keys], differentiable, in the dtype of the logits."""
        raise NotImplementedError

    def unsure(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor | None:
        """[..., 1]: the weight that may go to other keys if logits are off by `eps` of their size; None: none does."""
        return None

    @property
    def feature(self) -> str:
        """What a backend must be able to do."""
        return self.name or self.word


class Softmax(Weighting, frozen=True):
    """exp of the logit, over the sum of the row."""

    word = "softmax"
    example = "softmax"

    def weights(self, logits: Tensor) -> Tensor:
        shifted = (logits - _finite(logits.detach().amax(-1, keepdim=True))).exp()
        total = shifted.sum(-1, keepdim=True)
        return shifted / total.masked_fill(total == 0, 1.0)


class Argmax(Weighting, frozen=True):
    """All weight on the largest logit, the first of equals; no gradient to q and k."""

    word = "hard:argmax"
    example = "hard:argmax"
    name = "argmax"

    def weights(self, logits: Tensor) -> Tensor:
        return _one(logits) + 0 * SOFTMAX.weights(logits)

    def unsure(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor | None:
        return _near_edge(logits, 1, eps).to(logits)


class Sample(Weighting, frozen=True):
    """One key, drawn by its softmax weight (Gumbel-max, the noise fixed by place); the gradient is that of softmax.

    `weights` is given logits with `noise` added.
    """

    word = "hard:sample"
    example = "hard:sample"
    name = "sample"

    def weights(self, logits: Tensor) -> Tensor:
        soft = SOFTMAX.weights(logits)
        return _one(logits) + soft - soft.detach()

    def unsure(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor | None:
        return _near_edge(logits, 1, eps).to(logits)

    @staticmethod
    def noise(b: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        """[heads, rows, keys] in float64: -log(-log u), u uniform, made again by anyone from the indices."""
        import torch

        h = np.arange(heads.start, heads.stop)[:, None, None]
        words = philox((j.numpy()[None, None, :], i.numpy()[None, :, None], h, b), (0x5EED, 0))[0]
        return -torch.from_numpy(-np.log((words.astype(np.float64) + 0.5) / 2.0**32)).log()


class TopK(Weighting, frozen=True):
    """Softmax over the k largest logits, the first of equals."""

    word = "hard:topk"
    example = "hard:topk=32"
    name = "topk"

    k: int

    @property
    def text(self) -> str:
        return f"hard:topk={self.k}"

    def weights(self, logits: Tensor) -> Tensor:
        order = logits.detach().sort(dim=-1, descending=True, stable=True).indices
        return SOFTMAX.weights(_only(logits, order, order.new_tensor(range(order.shape[-1])) < self.k))

    def unsure(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor | None:
        least = weights.masked_fill(weights == 0, INFINITY).amin(-1, keepdim=True)
        return (_near_edge(logits, self.k, eps) * least).nan_to_num(0.0, 0.0, 0.0).to(logits)


class TopP(Weighting, frozen=True):
    """The smallest set of keys whose weights reach `share`, renormalised (as in Twilight, arXiv 2502.02770)."""

    word = "topp"
    example = "topp:0.9"

    share: float

    def weights(self, logits: Tensor) -> Tensor:
        soft = SOFTMAX.weights(logits)
        found = soft.detach().sort(dim=-1, descending=True, stable=True)
        kept = found.values.cumsum(-1) - found.values < self.share
        return SOFTMAX.weights(_only(logits, found.indices, kept))

    def unsure(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor | None:
        # The last key that is kept, and any that weighs as much, may be in or out.
        return weights.masked_fill(weights == 0, INFINITY).amin(-1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)


class Raw(Weighting, frozen=True):
    """The logits themselves, without a normalisation (as DIN has it, arXiv 1706.06978)."""

    word = "raw"
    example = "raw"

    def weights(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(logits == -INFINITY, 0.0)


class Sigmoid(Weighting, frozen=True):
    """The logistic function of each logit by itself (arXiv 2409.04431)."""

    word = "sigmoid"
    example = "sigmoid"

    def weights(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class Sparsemax(Weighting, frozen=True):
    """The nearest point of the simplex: few keys, and exact zeros (https://arxiv.org/abs/1602.02068)."""

    word = "sparsemax"
    example = "sparsemax"

    def weights(self, logits: Tensor) -> Tensor:
        import torch

        top = _finite(logits.detach().amax(-1, keepdim=True))
        # What lies 2 below the largest is outside whatever the rest is, so that it may stand for -inf.
        z = (logits - top).clamp_min(-2.0)
        ordered = z.sort(dim=-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
        sums = ordered.cumsum(-1)
        inside = (1 + count * ordered > sums).sum(-1, keepdim=True)
        threshold = (sums.gather(-1, inside - 1) - 1) / inside
        found = (z - threshold).clamp_min(0.0)
        return found.masked_fill((logits == -INFINITY).all(-1, keepdim=True), 0.0)


SOFTMAX = Softmax()
_HARD: dict[str, type[Weighting]] = {kind.word.partition(":")[2]: kind for kind in (Argmax, TopK, Sample)}
_OTHERS: dict[str, type[Weighting]] = {kind.word: kind for kind in (Softmax, TopP, Raw, Sparsemax, Sigmoid)}
WEIGHTINGS: dict[str, type[Weighting]] = {kind.word: kind for kind in (*_OTHERS.values(), *_HARD.values())}


@lru_cache(maxsize=1024)
def parse(text: str) -> Weighting:
    """Read `softmax`, `hard:topk=32`, `topp:0.9`. Raises ProblemError or UnknownNameError."""
    word, _, rest = text.partition(":")
    if word == "hard":
        kind, equals, value = rest.partition("=")
        hard = grammar.read(f"{kind}:{value}" if equals else kind, _HARD, "weighting", text)
        return _checked(hard, text)
    return _checked(grammar.read(text, _OTHERS, "weighting", text, ("hard:argmax", "hard:topk", "hard:sample")), text)


def _checked(weighting: Weighting, text: str) -> Weighting:
    if isinstance(weighting, TopK) and weighting.k < 1:
        raise ProblemError(f"weighting {text!r}: k={weighting.k}: at least 1")
    if isinstance(weighting, TopP) and not 0 < weighting.share <= 1:
        raise ProblemError(f"weighting {text!r}: {weighting.share:g}: above 0 and at most 1")
    return weighting


def _finite(numbers: Tensor) -> Tensor:
    return numbers.masked_fill(numbers.isneginf(), 0.0)


def _one(logits: Tensor) -> Tensor:
    """1 at the first of the largest logits; nothing in a row of -inf alone."""
    first = logits.detach().sort(dim=-1, descending=True, stable=True).indices[..., :1]
    one = logits.new_zeros(logits.shape).scatter(-1, first, 1.0)
    return one.masked_fill(logits == -INFINITY, 0.0)


def _only(logits: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    """The logits with all hidden that are not kept; `kept` says it of the keys in that order."""
    return logits.masked_fill(~kept.expand_as(order).gather(-1, order.argsort(-1)), -INFINITY)


def _near_edge(logits: Tensor, count: int, eps: float) -> Tensor:
    """[..., 1]: whether the last logit within the `count` largest and the next one are as good as equal."""
    if logits.shape[-1] <= count:
        return logits[..., :1] != logits[..., :1]
    top = logits.topk(count + 1, dim=-1).values[..., -2:]
    size = _finite(top).abs().amax(-1, keepdim=True).clamp_min(1.0)
    near: Tensor = top[..., :1] - _finite(top[..., 1:]) <= eps * size
    return near & (top[..., 1:] > -INFINITY)
