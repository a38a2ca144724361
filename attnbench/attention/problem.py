"""Problem: what is computed, independent of the backend that computes it."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from attnbench.attention import biases, masks, requests, shared_prefix, weightings
from attnbench.attention.biases import LogitBias
from attnbench.attention.choices import Autocast, Dtype, KvDtype, Positions, Returns
from attnbench.attention.kv_cache import Latent, parse_latent
from attnbench.attention.masks import Mask
from attnbench.attention.masks.causal import Causal
from attnbench.attention.masks.window import Window
from attnbench.attention.requests import RequestSize
from attnbench.attention.scope_text import Scope, parse_scope
from attnbench.attention.scores import DEFAULT_SCALES, Score, Similarity
from attnbench.attention.shared_prefix import PrefixGroup
from attnbench.attention.terms import Booleans, Grid
from attnbench.attention.weightings import Weighting
from attnbench.errors import ProblemError

_CLOSED_SETS = {"dtype": Dtype, "returns": Returns, "positions": Positions, "kv_dtype": KvDtype, "autocast": Autocast}


class Problem(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False, cache_hash=True
):
    """One attention problem. `kv_heads`, `seq_kv` and `head_dim_v` follow heads, seq_q and head_dim when left out.

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v]; out: [batch, heads, seq_q, head_dim_v].
    With `requests`, batch is their number, seq_q and seq_kv are the most queries and keys of one, and the tokens of all
    are packed: q: [1, heads, tokens, head_dim]. With a latent cache, k is the cache [batch, 1, seq_kv, rank + rope],
    and v is empty.
    """

    seq_q: int  # queries of each sequence, in tokens
    seq_kv: int = 0  # keys of each sequence, in tokens
    batch: int = 1  # sequences
    heads: int = 8  # query heads
    kv_heads: int = 0  # key and value heads, a divisor of heads
    head_dim: int = 64  # numbers of a query and a key
    head_dim_v: int = 0  # numbers of a value
    dtype: Dtype = Dtype.FP32  # of q, k and v
    mask: str = "none"  # canonical text of a masks.Mask
    score: Score = Score()  # how a query and a key become a logit
    lengths: tuple[int, ...] = ()  # of a padded ragged batch in a run stored before such batches were requests
    returns: Returns = Returns.OUT  # besides the output
    weighting: str = "softmax"  # canonical text of a weightings.Weighting
    sinks: bool = False  # one more logit for each head in the denominator of softmax, without a value
    dropout: float = 0.0  # probability that a weight is dropped, drawn again in each call
    positions: Positions = Positions.NONE  # embeddings of q and k
    scope: str = "core"  # canonical text of a scope: core, block or layer:N
    kv_dtype: KvDtype = KvDtype.SAME  # of k and v in the KV cache
    autocast: Autocast = Autocast.NONE  # of the products of a block or layers
    page_size: int = 0  # tokens of a page of a paged KV cache; 0: contiguous k and v
    requests: str = ""  # canonical text of a batch of requests, see requests.py; empty: a batch of equal sequences
    kv: str = ""  # canonical text of a latent cache, as latent:512+64, see latent.py; empty: separate k and v
    shared_prefix: str = ""  # canonical text of a prefix that requests share, see shared_prefix.py; empty: none

    def __post_init__(self) -> None:
        fill = msgspec.structs.force_setattr
        for name, kind in _CLOSED_SETS.items():
            if type(value := getattr(self, name)) is not kind:
                if value not in tuple(kind):
                    raise ProblemError(f"{name}={value!r}: must be one of {', '.join(kind)}")
                fill(self, name, kind(value))
        fill(self, "scope", parse_scope(self.scope)[0])
        if self.weighting != "softmax":
            fill(self, "weighting", weightings.parse(self.weighting).text)
        fill(self, "lengths", tuple(self.lengths))
        fill(self, "kv", cache.text if (cache := self.latent) else "")
        if cache and not self.kv_heads:
            fill(self, "kv_heads", 1)
        for name, other in (("kv_heads", "heads"), ("seq_kv", "seq_q"), ("head_dim_v", "head_dim")):
            if getattr(self, name) == 0:
                fill(self, name, getattr(self, other))
        for name in ("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "head_dim_v"):
            if getattr(self, name) < 1:
                raise ProblemError(f"{name}={getattr(self, name)}: must be at least 1")
        fill(self, "mask", masks.canonical(self.mask))
        if self.requests:
            fill(self, "requests", requests.spell(requests.parse(self.requests)))
        if self.shared_prefix:
            fill(self, "shared_prefix", shared_prefix.spell(shared_prefix.parse(self.shared_prefix)))
        self._check()

    def _check(self) -> None:
        if self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            heads = f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
            raise ProblemError(f"{heads}; kv_heads may be {divisors}")
        if self.requests or self.lengths:
            self._check_parts()
        else:
            self.masking.check(self.grid)
            if (bias := self.bias) is not None:
                bias.check(self)
        self._check_mechanisms()
        if self.shared_prefix:
            shared_prefix.check(self.shared_prefix, self.sizes if self.requests else (), self.page_size)

    def _check_parts(self) -> None:
        text, sizes = f"requests={self.requests}", self.sizes
        most = len(sizes), max(queries for queries, _ in sizes), max(keys for _, keys in sizes)
        if (self.batch, self.seq_q, self.seq_kv) != most:
            shape = f"batch={self.batch}, seq_q={self.seq_q}, seq_kv={self.seq_kv}"
            raise ProblemError(f"{text} with {shape}: they are {most[0]}, {most[1]} and {most[2]}")
        for request in dict.fromkeys(size for size in sizes if size.queries):
            try:
                _part(self, request)
            except ProblemError as error:
                segment = requests.spell((request,))
                raise ProblemError(f"{text}: {segment}: {error}") from None

    def _check_mechanisms(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ProblemError(f"dropout={self.dropout!r}: must be at least 0 and below 1")
        if self.dropout and self.returns is Returns.WEIGHTS:
            raise ProblemError(
                f"dropout={self.dropout:g} with returns=weights: dropped weights are random and cannot be verified"
            )
        if self.weighting != "softmax" and (self.sinks or self.returns is Returns.LSE):
            options = f"{'sinks' if self.sinks else 'returns=lse'} with weighting={self.weighting}"
            raise ProblemError(f"{options}: only softmax has a denominator; use weighting=softmax")
        if self.positions is Positions.ROPE and self.head_dim % 2:
            raise ProblemError(f"positions=rope with head_dim={self.head_dim}: use an even head_dim")
        if self.scope != "core":
            self._check_scope()
        if cache := self.latent:
            self._check_latent(cache)
        self._check_pages()
        if self.autocast is not Autocast.NONE and (self.scope == "core" or self.dtype is not Dtype.FP32):
            rest = f"scope={self.scope} and dtype={self.dtype}"
            raise ProblemError(f"autocast={self.autocast} with {rest}: use a block or layers, and dtype=fp32")

    def _check_latent(self, cache: Latent) -> None:
        if self.kv_heads != 1:
            shared = "all heads share the cache; use kv_heads=1"
            raise ProblemError(f"kv={self.kv} with kv_heads={self.kv_heads}: {shared}")
        if self.head_dim <= cache.rope:
            rope = f"{cache.rope} numbers are of RoPE; head_dim counts them, as 128 + {cache.rope}"
            raise ProblemError(f"kv={self.kv} with head_dim={self.head_dim}: {rope}")
        usual = {"scope": "core", "positions": "none", "weighting": "softmax", "sinks": False, "dropout": 0.0}
        fields = {name: (getattr(self, name), value) for name, value in usual.items()}
        fields |= {"score": (self.score.similarity, "dot"), "bias": (self.score.bias, "none")}
        others = [f"{name}={value}" for name, (value, plain) in fields.items() if value != plain]
        others += ["returns=weights"] if self.returns is Returns.WEIGHTS else []
        if others:
            raise ProblemError(f"kv={self.kv} with {others[0]}: a latent cache needs plain attention; leave it out")

    def _check_pages(self) -> None:
        size = self.page_size
        if size < 0 or size & (size - 1):
            raise ProblemError(f"page_size={size}: must be a power of two, as 16 or 64, or 0 for no pages")
        if size and (self.scope != "core" or self.positions is not Positions.NONE):
            needs = "a paged cache needs scope=core and positions=none"
            raise ProblemError(f"page_size={size}: keys are written to pages before the call, so {needs}")
        if size and self.score.similarity is not Similarity.DOT:
            raise ProblemError(f"page_size={size} with score={self.score.similarity}: a paged cache needs score=dot")

    def _check_scope(self) -> None:
        if self.returns is not Returns.OUT or self.dropout:
            option = f"dropout={self.dropout:g}" if self.dropout else f"returns={self.returns}"
            raise ProblemError(f"scope={self.scope} with {option}: the output is projected; use scope=core")
        if self.scope != "block":
            if self.requests:
                raise ProblemError(f"scope={self.scope} with requests: layers need equal lengths; use padding")
            if self.head_dim_v != self.head_dim:
                widths = f"head_dim={self.head_dim} and head_dim_v={self.head_dim_v}"
                raise ProblemError(f"scope={self.scope} with {widths}: a residual needs equal widths")

    @property
    def scoped(self) -> tuple[Scope, int]:
        """The kind of scope, and its number of layers; 0 for core and block."""
        return parse_scope(self.scope)[1:]

    @property
    def latent(self) -> Latent | None:
        """The latent cache; None: separate k and v."""
        return parse_latent(self.kv)

    @property
    def kv_widths(self) -> tuple[int, int]:
        """Numbers of k and of v for one token and head in the cache; a latent one is in k alone."""
        return (sum(cache), 0) if (cache := self.latent) else (self.head_dim, self.head_dim_v)

    @property
    def sizes(self) -> tuple[RequestSize, ...]:
        """Queries and keys of every sequence of the batch."""
        if self.requests:
            return requests.parse(self.requests)
        if self.lengths:
            return tuple(RequestSize(length, length) for length in self.lengths)
        return (RequestSize(self.seq_q, self.seq_kv),) * self.batch

    @property
    def tokens_q(self) -> int:
        """Queries of the whole batch."""
        return sum(size.queries for size in self.sizes) if self.requests or self.lengths else self.batch * self.seq_q

    @property
    def tokens_kv(self) -> int:
        """Keys of the whole batch."""
        return sum(size.keys for size in self.sizes) if self.requests or self.lengths else self.batch * self.seq_kv

    @property
    def shape_q(self) -> tuple[int, int, int]:
        """The shape of q without its width; packed for requests."""
        return (1, self.heads, self.tokens_q) if self.requests else (self.batch, self.heads, self.seq_q)

    @property
    def shape_kv(self) -> tuple[int, int, int]:
        """The shape of k and v without their width; packed for requests."""
        return (1, self.kv_heads, self.tokens_kv) if self.requests else (self.batch, self.kv_heads, self.seq_kv)

    @property
    def spans(self) -> tuple[tuple[slice, slice], ...]:
        """The queries and the keys of every request that has queries, among the packed tokens."""
        return requests.spans(self.sizes)

    @property
    def prefix_groups(self) -> tuple[PrefixGroup, ...]:
        """The requests that share their first keys, and how many: of a cache in pages, those of whole pages."""
        return shared_prefix.groups(self.shared_prefix, self.sizes, self.page_size) if self.shared_prefix else ()

    @property
    def parts(self) -> tuple[Problem, ...]:
        """The problems that it consists of: one for each request that has queries, else itself."""
        if not (self.requests or self.lengths):
            return (self,)
        return tuple(_part(self, size) for size in self.sizes if size.queries)

    @property
    def sequences(self) -> int:
        """The sequences that have an output: of requests, the `parts`."""
        return len(self.parts) if self.requests else self.batch

    @property
    def grid(self) -> Grid:
        """The shape that the mask applies to; of requests, each of the `parts` has its own."""
        assert not self.requests, self.requests
        assert not self.lengths, self.lengths
        return Grid(self.batch, self.seq_q, self.seq_kv)

    @property
    def masking(self) -> Mask:
        return masks.parse(self.mask)

    @property
    def causal(self) -> bool:
        """Whether the mask has the term `causal`: query i sees keys up to i + seq_kv - seq_q."""
        return self.masking.find(Causal) is not None

    @property
    def window(self) -> tuple[int, int] | None:
        """The keys that the mask shows before and after the diagonal key, which is not counted; None: no window."""
        window = self.masking.find(Window)
        return (window.left, window.right) if window else None

    def visible(self) -> Booleans:
        """The mask as booleans, True where visible: [batch, seq_q, seq_kv], or a batch of 1 if all are alike."""
        return self.masking.dense(self.grid)

    @property
    def scale(self) -> float:
        """The factor on q . k, divided by the temperature."""
        scale = self.score.scale
        if scale is None:
            scale = DEFAULT_SCALES.get(self.score.similarity, self.head_dim**-0.5)
        return scale / self.temperature

    @property
    def softcap(self) -> float | None:
        """The soft cap on logits, divided by the temperature; None: no cap."""
        return None if self.score.softcap is None else self.score.softcap / self.temperature

    @property
    def working_dtype(self) -> Dtype:
        """The format that products are computed in: that of autocast, else the dtype."""
        return self.dtype if self.autocast is Autocast.NONE else Dtype(self.autocast.value)

    @property
    def temperature(self) -> float:
        """The divisor of logits, 1 if there is none. Scale, soft cap and biases are divided by it already."""
        return 1.0 if self.score.temperature is None else self.score.temperature

    @property
    def bias(self) -> LogitBias | None:
        return biases.parse(self.score.bias)

    @property
    def weighing(self) -> Weighting:
        return weightings.parse(self.weighting)

    @property
    def core(self) -> Problem:
        """The problem that a backend solves: without scope, positions and normalisation of q and k."""
        return _core(self)

    @property
    def is_even(self) -> bool:
        """Whether negating both q and k leaves the logits unchanged."""
        linear = self.score.similarity in (Similarity.DOT, Similarity.COSINE, Similarity.BILINEAR)
        return linear and self.positions is not Positions.SINUSOIDAL and not isinstance(self.bias, biases.Relative)

    @property
    def features(self) -> frozenset[str]:
        """The words of FEATURES that a backend must support; plain multi-head self-attention needs none."""
        return _features(self)


FEATURES: dict[str, str] = {
    **{word: kind.summary for word, kind in masks.PRIMITIVES.items()},
    "blind_rows": "fully masked rows",
    "gqa": "fewer kv_heads than heads",
    "cross": "seq_q different from seq_kv",
    "head_dim_v": "head_dim_v different from head_dim",
    "scale": "scale other than 1/sqrt(head_dim)",
    "softcap": "soft cap on the logits",
    "lse": "log-sum-exp besides the output",
    "weights": "weights besides the output (a fused kernel has none)",
    **{word: kind.summary for word, kind in biases.BIASES.items()},
    "dense_bias": "bias as a tensor",
    "additive": "additive score",
    "file": "score by a user's function",
    "paged": "keys in pages",
    "latent": "latent KV",
    "requests": "requests of different lengths in one batch",
    "empty": "a request without queries",
    "sinks": "sinks",
    "dropout": "dropout",
    **{word: kind.summary for word, kind in weightings.WEIGHTINGS.items() if kind.summary},
}


@lru_cache(maxsize=65536)
def _features(problem: Problem) -> frozenset[str]:
    if problem.requests or problem.lengths:
        parts = frozenset[str]().union(*(part.features for part in dict.fromkeys(problem.parts)))
        return parts | {"requests"} | (frozenset() if all(size.queries for size in problem.sizes) else {"empty"})
    needed = set(problem.masking.words)
    if problem.weighting != "softmax":
        needed.add(problem.weighing.word)
    if (bias := problem.bias) is not None:
        needed |= {bias.word} | ({"dense_bias"} if bias.dense else set())
    conditions = {
        "additive": problem.score.similarity is Similarity.ADDITIVE,
        "file": problem.score.similarity is Similarity.FILE,
        "sinks": problem.sinks,
        "paged": problem.page_size > 0,
        "latent": bool(problem.kv),
        "dropout": problem.dropout > 0,
        "weights": problem.returns is Returns.WEIGHTS,
        "gqa": problem.kv_heads < problem.heads,
        "cross": problem.seq_q != problem.seq_kv,
        "head_dim_v": problem.head_dim_v != problem.head_dim,
        "scale": problem.score.scale is not None or problem.score.temperature is not None,
        "softcap": problem.score.softcap is not None,
        "lse": problem.returns is Returns.LSE,
        "blind_rows": problem.masking.has_blind_rows(problem.grid),
    }
    return frozenset(needed | {word for word, holds in conditions.items() if holds})


@lru_cache(maxsize=65536)
def _part(problem: Problem, size: RequestSize) -> Problem:
    return msgspec.structs.replace(
        problem, batch=1, seq_q=size.queries, seq_kv=size.keys, lengths=(), requests="", shared_prefix=""
    )


@lru_cache(maxsize=65536)
def _core(problem: Problem) -> Problem:
    score = problem.score
    if score.similarity is Similarity.COSINE:
        scale = DEFAULT_SCALES[Similarity.COSINE] if score.scale is None else score.scale
        score = msgspec.structs.replace(score, similarity=Similarity.DOT, scale=scale)
    elif score.similarity is Similarity.BILINEAR:
        score = msgspec.structs.replace(score, similarity=Similarity.DOT)
    plain = {"positions": Positions.NONE, "scope": "core", "autocast": Autocast.NONE, "kv_dtype": KvDtype.SAME}
    fields = {"score": score, "dtype": problem.working_dtype, **plain}
    if all(getattr(problem, name) == value for name, value in fields.items()):
        return problem
    return msgspec.structs.replace(problem, **fields)
