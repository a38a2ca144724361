"""A Problem: everything that decides what is computed, and nothing about who computes it."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

import msgspec

from attnbench.attention import biases, masks, weightings
from attnbench.attention.biases import Bias
from attnbench.attention.masks import Mask
from attnbench.attention.scores import COSINE_SCALE, Score, Similarity
from attnbench.attention.terms import Grid
from attnbench.attention.weightings import Weighting
from attnbench.errors import ProblemError, UnknownNameError
from attnbench.ranges import integer


class Dtype(StrEnum):
    """Number formats of q, k and v. fp32 is IEEE on every device; tf32 is fp32 tensors on TF32 tensor cores."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8_E4M3 = "fp8_e4m3"

    @property
    def bytes(self) -> int:
        """Bytes of one number as stored."""
        return _BYTES[self]

    @property
    def out(self) -> Dtype:
        """The format of the output: that of the inputs, bf16 for fp8."""
        return Dtype.BF16 if self is Dtype.FP8_E4M3 else self


_BYTES = {Dtype.FP32: 4, Dtype.TF32: 4, Dtype.FP16: 2, Dtype.BF16: 2, Dtype.FP8_E4M3: 1}


class Mode(StrEnum):
    """Which passes a call makes."""

    FWD = "fwd"
    BWD = "bwd"
    FWD_BWD = "fwd_bwd"

    @property
    def needs_grad(self) -> bool:
        """Whether gradients of q, k and v are wanted."""
        return self is not Mode.FWD


class Returns(StrEnum):
    """What a call gives back beside the output."""

    OUT = "out"
    LSE = "lse"
    WEIGHTS = "weights"  # [batch, heads, seq_q, seq_kv], in the dtype of the output


class Positions(StrEnum):
    """What tells queries and keys where they stand; applied within the call."""

    NONE = "none"
    SINUSOIDAL = "sinusoidal"  # added to q and k
    ROPE = "rope"  # q and k rotated


class KvDtype(StrEnum):
    """How k and v are kept in a cache. Simulated: the call is given what was read back, in its own format."""

    SAME = "same"  # as they are computed with
    INT8 = "int8"
    FP8_E4M3 = "fp8_e4m3"


class Autocast(StrEnum):
    """What a block or layers of fp32 weights compute their products in (torch.autocast)."""

    NONE = "none"
    BF16 = "bf16"
    FP16 = "fp16"


class Scope(StrEnum):
    """How much of a model is measured."""

    CORE = "core"  # attention itself
    BLOCK = "block"  # with the projections of q, k, v and out
    LAYER = "layer"  # `layer:N`: N layers, with norms, feed-forward and residuals


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One attention problem. `kv_heads`, `seq_kv` and `head_dim_v` follow heads, seq_q and head_dim when left out.

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v]; out: [batch, heads, seq_q, head_dim_v].
    """

    seq_q: int
    seq_kv: int = 0
    batch: int = 1
    heads: int = 8
    kv_heads: int = 0
    head_dim: int = 64
    head_dim_v: int = 0
    dtype: Dtype = Dtype.FP32
    mask: str = "none"  # canonical text of a masks.Mask
    score: Score = Score()
    lengths: tuple[int, ...] = ()  # tokens of every sequence of a ragged batch, each attending to itself
    returns: Returns = Returns.OUT
    weighting: str = "softmax"  # canonical text of a weightings.Weighting
    sinks: bool = False  # a logit of each head that takes weight and has no value
    dropout: float = 0.0  # the share of weights that a call drops, drawn anew each time
    positions: Positions = Positions.NONE
    scope: str = "core"  # core, block or layer:N
    kv_dtype: KvDtype = KvDtype.SAME
    autocast: Autocast = Autocast.NONE
    page_size: int = 0  # tokens of a page that keys and values are kept in; 0: in one piece

    def __post_init__(self) -> None:
        fill = msgspec.structs.force_setattr
        fill(self, "dtype", _member(Dtype, "dtype", self.dtype))
        fill(self, "returns", _member(Returns, "returns", self.returns))
        fill(self, "positions", _member(Positions, "positions", self.positions))
        fill(self, "kv_dtype", _member(KvDtype, "kv_dtype", self.kv_dtype))
        fill(self, "autocast", _member(Autocast, "autocast", self.autocast))
        fill(self, "scope", _scope(self.scope)[0])
        fill(self, "weighting", weightings.parse(self.weighting).text)
        fill(self, "lengths", tuple(self.lengths))
        for name, other in (("kv_heads", "heads"), ("seq_kv", "seq_q"), ("head_dim_v", "head_dim")):
            if getattr(self, name) == 0:
                fill(self, name, getattr(self, other))
        for name in ("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "head_dim_v"):
            if getattr(self, name) < 1:
                raise ProblemError(f"{name}={getattr(self, name)}: must be at least 1")
        fill(self, "mask", masks.canonical(self.mask))
        self._check()

    def _check(self) -> None:
        if self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise ProblemError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; kv_heads may be {divisors}"
            )
        if self.lengths:
            if len(self.lengths) != self.batch:
                raise ProblemError(f"lengths has {len(self.lengths)} sequences, batch is {self.batch}")
            if not self.seq_q == self.seq_kv == max(self.lengths) or min(self.lengths) < 1:
                raise ProblemError(
                    f"lengths {self.lengths}: each at least 1, the longest equal to seq_q={self.seq_q} "
                    f"and seq_kv={self.seq_kv}"
                )
        self.masking.check(self.grid)
        if (bias := self.bias) is not None:
            bias.check(self)
        self._check_mechanisms()

    def _check_mechanisms(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ProblemError(f"dropout={self.dropout!r}: from 0 to below 1")
        if self.dropout and self.returns is Returns.WEIGHTS:
            raise ProblemError("dropout with returns=weights: which weights a call drops is not known beforehand")
        if self.weighting != "softmax":
            for name, holds in {"sinks": self.sinks, "returns=lse": self.returns is Returns.LSE}.items():
                if holds:
                    raise ProblemError(
                        f"{name} with weighting={self.weighting}: needs softmax, which has a denominator"
                    )
        if self.positions is Positions.ROPE and self.head_dim % 2:
            raise ProblemError(f"positions=rope with head_dim={self.head_dim}: rotates pairs, so an even width")
        if self.scope != "core":
            self._check_scope()
        self._check_pages()
        if self.autocast is not Autocast.NONE and (self.scope == "core" or self.dtype is not Dtype.FP32):
            given = f"scope={self.scope} and dtype={self.dtype}"
            raise ProblemError(f"autocast={self.autocast} with {given}: needs a block or layers, and dtype=fp32")
        if self.lengths and self.bias is not None:
            raise ProblemError(f"lengths with bias={self.score.bias}: a bias is laid on one length; use padding")

    def _check_pages(self) -> None:
        size = self.page_size
        if size < 0 or size & (size - 1):
            raise ProblemError(f"page_size={size}: a power of two, as 16 or 64, or 0 for no pages")
        if size and (self.lengths or self.scope != "core" or self.positions is not Positions.NONE):
            raise ProblemError(
                f"page_size={size}: keys are written into pages before the call, so core attention alone"
            )
        if size and self.score.similarity is not Similarity.DOT:
            raise ProblemError(
                f"page_size={size} with score={self.score.similarity}: keys in pages are not turned again"
            )

    def _check_scope(self) -> None:
        if self.returns is not Returns.OUT or self.dropout:
            given = f"dropout={self.dropout:g}" if self.dropout else f"returns={self.returns}"
            raise ProblemError(f"scope={self.scope} with {given}: what leaves the core is projected; use scope=core")
        if self.scope != "block":
            if self.lengths:
                raise ProblemError(f"scope={self.scope} with lengths: layers are measured on full sequences")
            if self.head_dim_v != self.head_dim:
                widths = f"head_dim={self.head_dim} and head_dim_v={self.head_dim_v}"
                raise ProblemError(f"scope={self.scope} with {widths}: a residual needs one width")

    @property
    def scoped(self) -> tuple[Scope, int]:
        """The kind of scope, and how many layers deep; 0 for what is no layer."""
        return _scope(self.scope)[1:]

    @property
    def grid(self) -> Grid:
        """The shape on which the mask is laid."""
        return Grid(self.batch, self.seq_q, self.seq_kv, self.lengths)

    @property
    def masking(self) -> Mask:
        """The mask with its behaviour."""
        return masks.parse(self.mask)

    @property
    def scale(self) -> float:
        """The factor on q . k, with the temperature in it."""
        return self.score.scale_for(self.head_dim)

    @property
    def softcap(self) -> float | None:
        """The soft cap on logits."""
        return self.score.cap

    @property
    def working(self) -> Dtype:
        """What products are computed in: the dtype, or that of autocast."""
        return self.dtype if self.autocast is Autocast.NONE else Dtype(self.autocast.value)

    @property
    def temperature(self) -> float:
        """What logits are divided by; scale, soft cap and biases hold it."""
        return self.score.temperature or 1.0

    @property
    def bias(self) -> Bias | None:
        """What is added to the logits, with its behaviour."""
        return biases.parse(self.score.bias)

    @property
    def weigh(self) -> Weighting:
        """The weighting with its behaviour."""
        return weightings.parse(self.weighting)

    @property
    def core(self) -> Problem:
        """The problem that is left to a backend, less the scope and what turns q and k beforehand."""
        return _core(self)

    @property
    def is_even(self) -> bool:
        """Whether the logits stay as they are when q and k are negated together."""
        linear = self.score.similarity in (Similarity.DOT, Similarity.COSINE, Similarity.BILINEAR)
        return linear and self.positions is not Positions.SINUSOIDAL and not isinstance(self.bias, biases.Relative)

    @property
    def features(self) -> frozenset[str]:
        """What a backend must be able to do; plain multi-head self-attention needs nothing."""
        return _features(self)


def _member(kind: type[StrEnum], name: str, value: str) -> StrEnum:
    if value not in tuple(kind):
        raise ProblemError(f"{name}={value!r}: one of {', '.join(kind)}")
    return kind(value)


def canonical_scope(text: str) -> str:
    """`core`, `block` or `layer:N`. Raises ProblemError or UnknownNameError."""
    return _scope(text)[0]


@lru_cache(maxsize=256)
def _scope(text: str) -> tuple[str, Scope, int]:
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


PATTERNS = frozenset({"dilated", "strided", "blocksparse", "longformer", "bigbird", "graph"})
FEATURES: dict[str, str] = {
    "causal": "causal mask, aligned to the bottom right",
    "window": "sliding window",
    "prefix": "prefix mask",
    "document": "document mask of packed sequences",
    "padding": "key padding",
    "dilated": "dilated keys",
    "strided": "strided keys",
    "blocksparse": "block-sparse mask",
    "longformer": "window with global tokens (Longformer)",
    "bigbird": "window, global and random blocks (BigBird)",
    "graph": "mask by the edges of a graph",
    "dense": "mask as a boolean tensor",
    "varlen": "ragged batch (lengths)",
    "blind_rows": "rows that see no key",
    "gqa": "fewer kv_heads than heads",
    "cross": "seq_q different from seq_kv",
    "head_dim_v": "head_dim_v different from head_dim",
    "scale": "a scale of its own",
    "softcap": "soft cap on the logits",
    "lse": "log-sum-exp beside the output",
    "weights": "weights beside the output: a fused kernel has none",
    "alibi": "ALiBi bias",
    "t5": "T5's bias by buckets",
    "xl": "Transformer-XL's relative bias",
    "shaw": "Shaw's relative bias",
    "span": "adaptive span",
    "edge": "bias by type of edge",
    "dense_bias": "bias as a tensor",
    "additive": "additive score",
    "file": "score of a user's function",
    "paged": "keys in pages",
    "sinks": "sinks",
    "dropout": "dropout",
    "argmax": "hard attention (argmax)",
    "topk": "hard attention (top k)",
    "sample": "hard attention (sampled)",
    "topp": "top-p weighting",
    "raw": "weights without softmax",
    "sparsemax": "sparsemax",
    "sigmoid": "sigmoid weighting",
}


@lru_cache(maxsize=65536)
def _features(problem: Problem) -> frozenset[str]:
    needed = set(problem.masking.words)
    if problem.weighting != "softmax":
        needed.add(problem.weigh.feature)
    if (bias := problem.bias) is not None:
        needed |= {bias.word} | ({"dense_bias"} if bias.dense else set())
    conditions = {
        "additive": problem.score.similarity is Similarity.ADDITIVE,
        "file": problem.score.similarity is Similarity.FILE,
        "sinks": problem.sinks,
        "paged": problem.page_size > 0,
        "dropout": problem.dropout > 0,
        "weights": problem.returns is Returns.WEIGHTS,
        "varlen": bool(problem.lengths),
        "gqa": problem.kv_heads < problem.heads,
        "cross": problem.seq_q != problem.seq_kv,
        "head_dim_v": problem.head_dim_v != problem.head_dim,
        "scale": problem.score.scale is not None or problem.score.temperature is not None,
        "softcap": problem.score.softcap is not None,
        "lse": problem.returns is Returns.LSE,
        "blind_rows": not problem.lengths and problem.masking.has_blind_rows(problem.grid),
    }
    return frozenset(needed | {word for word, holds in conditions.items() if holds})


@lru_cache(maxsize=65536)
def _core(problem: Problem) -> Problem:
    score = problem.score
    if score.similarity is Similarity.COSINE:
        scale = COSINE_SCALE if score.scale is None else score.scale
        score = msgspec.structs.replace(score, similarity=Similarity.DOT, scale=scale)
    elif score.similarity is Similarity.BILINEAR:
        score = msgspec.structs.replace(score, similarity=Similarity.DOT)
    plain = {"positions": Positions.NONE, "scope": "core", "autocast": Autocast.NONE, "kv_dtype": KvDtype.SAME}
    return msgspec.structs.replace(problem, score=score, dtype=problem.working, **plain)
