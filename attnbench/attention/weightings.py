"""Weightings, which turn the logits of a row into weights: softmax and its alternatives.

Hidden keys have the logit -inf and get the weight 0; a row that sees no key gets only zeros.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from attnbench.attention import grammar
from attnbench.attention.dropout import philox

if TYPE_CHECKING:
    from torch import Tensor

INFINITY = float("inf")


class Weighting(grammar.Spec, frozen=True):
    """A map from logits to weights."""

    noun = "weighting"
    summary: ClassVar[str] = ""  # what a backend must support
    is_hard: ClassVar[bool] = False  # written as in `hard:topk=32`

    @property
    def text(self) -> str:
        return f"hard:{super().text.replace(':', '=')}" if self.is_hard else super().text

    def weights(self, logits: Tensor) -> Tensor:
        """[..., keys] -> [..., keys], differentiable, in the dtype of the logits."""
        raise NotImplementedError

    def undecided_weight(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor:
        """The weight that other keys may get if logits have a relative error of `eps`: [..., 1]."""
        return weights.new_zeros(*weights.shape[:-1], 1)


class Softmax(Weighting, frozen=True):
    """exp of the logit, over the sum of the row."""

    word = "softmax"
    example = "softmax"

    def weights(self, logits: Tensor) -> Tensor:
        shifted = (logits - finite(logits.detach().amax(-1, keepdim=True))).exp()
        total = shifted.sum(-1, keepdim=True)
        return shifted / total.masked_fill(total == 0, 1.0)


class Argmax(Weighting, frozen=True):
    """All weight on the largest logit, the first of equals; no gradient to q and k."""

    word = "argmax"
    is_hard = True
    example = "hard:argmax"
    summary = "hard attention (argmax)"

    def weights(self, logits: Tensor) -> Tensor:
        return _one_hot(logits) + 0 * SOFTMAX.weights(logits)

    def undecided_weight(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor:
        return _is_tie(logits, 1, eps).to(logits)


class GumbelMax(Argmax, frozen=True):
    """One key, drawn by its softmax weight (Gumbel-max, noise fixed by the indices); the gradient is that of softmax.

    The caller adds `noise` to the logits. https://arxiv.org/abs/1611.01144, the straight-through estimator.
    """

    word = "sample"
    example = "hard:sample"
    summary = "hard attention (sampled)"

    def weights(self, logits: Tensor) -> Tensor:
        soft = SOFTMAX.weights(logits)
        return _one_hot(logits) + soft - soft.detach()

    @staticmethod
    def noise(b: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        """Gumbel noise -log(-log u) with u from a counter-based generator: [heads, rows, keys] in float64."""
        import torch

        h = np.arange(heads.start, heads.stop)[:, None, None]
        words = philox((j.numpy()[None, None, :], i.numpy()[None, :, None], h, b), (0x5EED, 0))[0]
        return -torch.from_numpy(-np.log((words.astype(np.float64) + 0.5) / 2.0**32)).log()


class TopK(Weighting, frozen=True):
    """Softmax over the k largest logits, the first of equals."""

    word = "topk"
    is_hard = True
    example = "hard:topk=32"
    summary = "hard attention (top k)"

    k: int  # keys of each row

    def __post_init__(self) -> None:
        self.check_at_least(k=1)

    def weights(self, logits: Tensor) -> Tensor:
        order = logits.detach().sort(dim=-1, descending=True, stable=True).indices
        return SOFTMAX.weights(_selected(logits, order, order.new_tensor(range(order.shape[-1])) < self.k))

    def undecided_weight(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor:
        return (_is_tie(logits, self.k, eps) * _smallest(weights)).nan_to_num(0.0, 0.0, 0.0).to(logits)


class TopP(Weighting, frozen=True):
    """The smallest set of keys whose weights reach `share`, renormalised (as in Twilight, arXiv 2502.02770)."""

    word = "topp"
    example = "topp:0.9"
    summary = "top-p weighting"

    share: float  # of the softmax weight of a row

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise self.error(f"share={self.share:g}: must be above 0 and at most 1")

    def weights(self, logits: Tensor) -> Tensor:
        ordered = SOFTMAX.weights(logits).detach().sort(dim=-1, descending=True, stable=True)
        selected = ordered.values.cumsum(-1) - ordered.values < self.share
        return SOFTMAX.weights(_selected(logits, ordered.indices, selected))

    def undecided_weight(self, logits: Tensor, weights: Tensor, eps: float) -> Tensor:
        # A rounding may add or remove the last selected key, and any of equal weight.
        return _smallest(weights).nan_to_num(0.0, 0.0, 0.0)


class Raw(Weighting, frozen=True):
    """The logits themselves, without a normalisation (as in DIN, arXiv 1706.06978)."""

    word = "raw"
    example = "raw"
    summary = "weights without softmax"

    def weights(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(logits == -INFINITY, 0.0)


class Sigmoid(Weighting, frozen=True):
    """The logistic function of each logit by itself (arXiv 2409.04431)."""

    word = "sigmoid"
    example = "sigmoid"
    summary = "sigmoid weighting"

    def weights(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class Sparsemax(Weighting, frozen=True):
    """The nearest point of the simplex: few keys, and exact zeros (https://arxiv.org/abs/1602.02068)."""

    word = "sparsemax"
    example = "sparsemax"
    summary = "sparsemax"

    def weights(self, logits: Tensor) -> Tensor:
        import torch

        top = finite(logits.detach().amax(-1, keepdim=True))
        # A logit 1 below the largest has the weight 0, so -2 can replace -inf.
        z = (logits - top).clamp_min(-2.0)
        ordered = z.sort(dim=-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
        sums = ordered.cumsum(-1)
        support = (1 + count * ordered > sums).sum(-1, keepdim=True)
        threshold = (sums.gather(-1, support - 1) - 1) / support
        weights = (z - threshold).clamp_min(0.0)
        return weights.masked_fill((logits == -INFINITY).all(-1, keepdim=True), 0.0)


SOFTMAX = Softmax()
_HARD: dict[str, type[Weighting]] = {kind.word: kind for kind in (Argmax, TopK, GumbelMax)}
_OTHERS: dict[str, type[Weighting]] = {kind.word: kind for kind in (Softmax, TopP, Raw, Sparsemax, Sigmoid)}
WEIGHTINGS = _OTHERS | _HARD


@lru_cache(maxsize=1024)
def parse(text: str) -> Weighting:
    """Parse `softmax`, `hard:topk=32`, `topp:0.9`. Raises ProblemError or UnknownNameError."""
    word, _, rest = text.partition(":")
    if word == "hard":
        return grammar.parse(rest.replace("=", ":", 1), _HARD, "weighting", text)
    return grammar.parse(text, _OTHERS, "weighting", text, tuple(f"hard:{hard}" for hard in _HARD))


def finite(numbers: Tensor) -> Tensor:
    """Replace -inf, the maximum of a row that sees no key, by 0: exp(-inf - 0) is the weight 0."""
    return numbers.masked_fill(numbers.isneginf(), 0.0)


def _one_hot(logits: Tensor) -> Tensor:
    """1 at the first of the largest logits; zeros if all are -inf."""
    first = logits.detach().sort(dim=-1, descending=True, stable=True).indices[..., :1]
    one_hot = logits.new_zeros(logits.shape).scatter(-1, first, 1.0)
    return one_hot.masked_fill(logits == -INFINITY, 0.0)


def _selected(logits: Tensor, order: Tensor, selected: Tensor) -> Tensor:
    """The logits with -inf for the keys that are not selected; `selected` is in the order of `order`."""
    return logits.masked_fill(~selected.expand_as(order).gather(-1, order.argsort(-1)), -INFINITY)


def _smallest(weights: Tensor) -> Tensor:
    """The smallest weight above 0: [..., 1]; infinite if there is none."""
    return weights.masked_fill(weights == 0, INFINITY).amin(-1, keepdim=True)


def _is_tie(logits: Tensor, count: int, eps: float) -> Tensor:
    """Whether the `count`-th largest logit and the next one differ by at most `eps` of their size: [..., 1]."""
    if logits.shape[-1] <= count:
        return logits[..., :1] != logits[..., :1]
    top = logits.topk(count + 1, dim=-1).values[..., -2:]
    size = finite(top).abs().amax(-1, keepdim=True).clamp_min(1.0)
    near: Tensor = top[..., :1] - finite(top[..., 1:]) <= eps * size
    return near & (top[..., 1:] > -INFINITY)
