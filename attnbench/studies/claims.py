"""Verdicts on the claims C1 to C17 of the articles, from measurements on this machine.

A claim that one thing is faster than another is judged by the ratio of their times. The interval of the ratio extends
from the low end of one over the high end of the other, and must lie on one side of the bound. If backends or data types
disagree, the verdict is `it depends`, and each is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from attnbench.analysis.rows import Row
from attnbench.attention.scores import Score
from attnbench.records.result import Facts, Result, Status
from attnbench.studies import scaling
from attnbench.studies.max_seq import Longest
from attnbench.studies.scaling import Claim, ClaimVerdict
from attnbench.units import figure, size, whole_percent

SUITE = "claims"
Fields = Mapping[str, object]  # columns of a row and their values
# Problems of the untimed probes, as options of `attnbench verify`.
ROBUST = {
    "seq": "256", "heads": "4", "mask": "none", "dtype": "fp32", "score": "dot,cosine,dot:scale=1",
    "temperature": "1,4",
}  # fmt: skip
NOISE = "0.01"  # relative noise whose gain is reported
QUANTISED = {"seq": "512", "heads": "4", "mask": "none,causal", "dtype": "fp32"}
WRONG = (Status.INCORRECT, Status.ERROR, Status.CRASHED)  # of a case that was tried and is not right
CHEAP = 1.1  # maximum ratio of what is called cheap
SEGMENT, CONTEXT = 256, 2048  # lengths of C7
# The claims that are not judged by a ratio of times: what each says and predicts.
STATEMENTS = {
    "C10": ("quantisation saves memory: a cache of k and v in 8 bits, simulated", "bytes under 1 x"),
    "C11": ("attention is robust to noise, or is not", "nothing that a number could refute"),
    "C12": ("interpretable, or not: what it costs to give the weights back", "nothing on explanation"),
    "C13": ("handles unequal lengths", "right wherever seq_q and seq_kv differ"),
    "C15": (
        "several devices help: two processes that share the cores of one",
        "nothing here: what the exchange costs, where no core is won",
    ),
    "C17": ("larger sizes are affordable", "nothing: measured by backend"),
    "M14": ("the core is the costly part of a layer", "half of the FLOPs at seq 1536, 6 x d_model 256"),
}


class Ratio(NamedTuple):
    """The ratio of two times, with the widest interval."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """`0.36 (0.35..0.37)`."""
        return f"{self.value:.3g} ({self.low:.3g}..{self.high:.3g})"

    def against(self, bound: float, above: bool = False) -> ClaimVerdict:
        """The verdict on `below the bound`, or with `above` on `above the bound`."""
        below, over = self.high < bound, self.low > bound
        if not (below or over):
            return ClaimVerdict.INCONCLUSIVE
        return ClaimVerdict.CONFIRMED if over is above else ClaimVerdict.REFUTED


def judged(
    rows: Sequence[Row], robust: Sequence[Result], quantised: Sequence[Result], longest: Sequence[Longest]
) -> Iterator[Claim]:
    """Every claim for which there are measurements, C1 first."""
    laws = list(scaling.laws(rows))
    yield from scaling.claims(laws)
    for judge in (_relative, _segments, _precision, _sparsity):
        yield from judge(rows)
    yield from _quantisation(quantised)
    yield from _robust(robust)
    for judge in (_weights, _unequal, _dropout, _several, _joint, _padding, _layer):
        yield from judge(rows)
    yield from _longest(longest)


def _relative(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "causal", "seq_q": CONTEXT, "bias": "none"}
    for bias in ("alibi", "t5"):
        ratios = _ratios(rows, {**base, "bias": bias}, base)
        yield from _claim("C6", f"relative position saves compute: {bias} alone", "time under 1 x without", ratios, 1.0)
    window = {**base, "mask": "causal+window:255"}
    pairs = _pairs(rows, window) / (_pairs(rows, base) or 1)
    ratios = _ratios(rows, window, base)
    says = "relative position saves compute: a window of 256"
    yield from _claim("C6", says, f"time under 1 x causal, ideal {pairs:.2f}", ratios, 1.0)


def _segments(rows: Sequence[Row]) -> Iterator[Claim]:
    whole = {"mask": "causal", "bias": "xl", "seq_q": CONTEXT}
    part = {"mask": "causal", "bias": "xl", "seq_q": SEGMENT, "seq_kv": 2 * SEGMENT}
    ratios = _ratios(rows, part, whole, times=CONTEXT / SEGMENT)
    says = f"Transformer-XL helps long sequences: {CONTEXT // SEGMENT} segments of {SEGMENT} with memory against all"
    yield from _claim("C7", says, "time under 1 x all at once", ratios, 1.0)


def _precision(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "none", "seq_q": 1024, "seq_kv": 1024, "head_dim": 64, "returns": "out", "scope": "core"}
    for dtype in ("bf16", "fp16"):
        ratios = _ratios(rows, {**base, "dtype": dtype}, {**base, "dtype": "fp32"})
        yield from _claim("C8", f"mixed precision saves compute: {dtype}", "time under 1 x fp32", ratios, 1.0)


def _sparsity(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "none", "seq_q": CONTEXT, "seq_kv": CONTEXT, "scope": "core"}
    for kind, mask in {"by blocks": "blocksparse:0.25", "without a pattern": "graph:0.25"}.items():
        sparse = {**base, "mask": mask}
        ideal = (_pairs(rows, sparse) or 0) / (_pairs(rows, base) or 1)
        ratios = _ratios(rows, sparse, base)
        builds = [row.mask_build_s for row in _at(rows, sparse).values() if row.mask_build_s]
        more = f"; mask built in {max(builds) * 1e3:.0f} ms, apart" if builds else ""
        predicts = f"time under 1 x dense, ideal {ideal:.2f}"
        yield from _claim("C9", f"sparsity saves compute: a quarter, {kind}", predicts, ratios, 1.0, more=more)


def _quantisation(results: Sequence[Result]) -> Iterator[Claim]:
    probed = _probed(results, "quantisation")
    if not probed:
        return
    errors_of = [figures["error"] for _, figures in probed]
    sizes = probed[0][1]["bytes"]
    errors = ", ".join(f"{name} {figure(max(of[name] for of in errors_of))}" for name in errors_of[0])
    wide, narrow = next(iter(sizes.values())), min(sizes.values())
    measured = f"{size(wide)} to {size(narrow)}, counted; relative error of out {errors}; no time: read back before"
    yield _stated("C10", measured, ClaimVerdict.CONFIRMED if narrow < wide else ClaimVerdict.REFUTED)


def _robust(results: Sequence[Result]) -> Iterator[Claim]:
    gains = [
        f"{_spelled(result.case.problem.score)} {figure(gain)}"
        for result, figures in _probed(results, "noise")
        if (gain := figures["gain"].get(NOISE)) is not None
    ]
    if gains:
        yield _stated("C11", f"change of out over a change of {NOISE} of q, k, v: {', '.join(gains)}")


def _spelled(score: Score) -> str:
    words = [score.similarity.value]
    if score.scale is not None:
        words.append(f"scale {score.scale:g}")
    if (score.temperature or 1) != 1:
        words.append(f"temperature {score.temperature:g}")
    return " ".join(words)


def _weights(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "none", "seq_q": 1024, "seq_kv": 1024, "dtype": "fp32", "scope": "core", "head_dim": 64}
    ratios = _ratios(rows, {**base, "returns": "weights"}, {**base, "returns": "out"})
    if ratios:
        yield _stated("C12", f"time {_listed(ratios)} x; fused kernels have none to give")


def _unequal(rows: Sequence[Row]) -> Iterator[Claim]:
    cells = [row for row in rows if row.seq_q != row.seq_kv and row.bias == "none" and row.mask == "none"]
    cells = [row for row in cells if row.status == Status.OK or row.status in WRONG]
    if cells:
        right = sum(row.status == Status.OK for row in cells)
        verdict = ClaimVerdict.CONFIRMED if right == len(cells) else ClaimVerdict.REFUTED
        yield _stated("C13", f"{right} of {len(cells)} cases right against float64", verdict)


def _dropout(rows: Sequence[Row]) -> Iterator[Claim]:
    for mode in ("fwd", "fwd_bwd"):
        base = {"batch": 2, "seq_q": 512, "mode": mode, "dropout": 0.0}
        ratios = _ratios(rows, {**base, "dropout": 0.1}, base)
        yield from _claim("C14", f"dropout of 0.1 is cheap, {mode}", f"time under {CHEAP:g} x without", ratios, CHEAP)


def _several(rows: Sequence[Row]) -> Iterator[Claim]:
    at = _at(rows, {"seq_q": CONTEXT, "seq_kv": CONTEXT, "mask": "none"})
    ranks = {name: _ratio(row, at["sdpa:flash"]) for name, row in at.items() if ":2" in name and "sdpa:flash" in at}
    if ranks:
        yield _stated("C15", f"time of one x {_listed(ranks)}")


def _joint(rows: Sequence[Row]) -> Iterator[Claim]:
    def of(seq: int) -> Mapping[str, Row]:
        return _at(rows, {"batch": 4, "seq_q": seq, "seq_kv": seq, "mask": "none", "dtype": "fp32"})

    text, image, both = of(77), of(257), of(334)
    ratios = {}
    for backend in text.keys() & image.keys() & both.keys():
        apart, low, high = map(sum, zip(_interval(text[backend]), _interval(image[backend]), strict=True))
        together, together_low, together_high = _interval(both[backend])
        ratios[backend] = Ratio(together / apart, together_low / high, together_high / low)
    says = "multimodal costs more: 77 of text and 257 of image in one call"
    yield from _claim("C16", says, "time over 1 x that of two calls", ratios, 1.0, above=True)


def _padding(rows: Sequence[Row]) -> Iterator[Claim]:
    padded = _at(rows, {"mask": "padding:0.3", "batch": 4})
    packed = _by_backend([row for row in rows if row.mask.startswith("document:")])
    ratios = {name: _ratio(packed[name], padded[name]) for name in padded.keys() & packed.keys()}
    says = "ragged lengths packed save what padding wastes"
    yield from _claim("M16", says, "time under 1 x padded", ratios, 1.0)


def _layer(rows: Sequence[Row]) -> Iterator[Claim]:
    """The length at which the core takes half the time of a layer; by FLOPs at six times the width of the model."""
    shares = {}
    for row in rows:
        if row.scope == "layer:1" and row.time_s:
            core = _at(rows, {"seq_q": row.seq_q, "seq_kv": row.seq_kv, "mask": "none", "dtype": "fp32",
                              "scope": "core", "heads": row.heads, "head_dim": row.head_dim, "batch": 1,
                              "returns": "out"})  # fmt: skip
            if row.backend in core:
                shares[row.seq_q] = core[row.backend].seconds / row.time_s
    if len(shares) < 2:
        return
    listed = ", ".join(f"{whole_percent(share)} at {seq}" for seq, share in sorted(shares.items()))
    crossed = [seq for seq, share in sorted(shares.items()) if share > 0.5]
    where = f"over half from {crossed[0]}" if crossed else "under half everywhere"
    yield _stated("M14", f"{listed} of a layer's time: {where}")


def _longest(results: Sequence[Longest]) -> Iterator[Claim]:
    if results:
        listed = ", ".join(f"{result.arm.name} {result.seq} (then {result.stopped_by})" for result in results)
        yield _stated("C17", f"longest sequence that fits, h1 d64: {listed}")


def _stated(name: str, measured: str, verdict: ClaimVerdict = ClaimVerdict.MEASURED) -> Claim:
    says, predicts = STATEMENTS[name]
    return Claim(id=name, says=says, predicts=predicts, measured=measured, verdict=verdict)


def _claim(
    name: str, says: str, predicts: str, ratios: Mapping[str, Ratio], bound: float, above: bool = False, more: str = ""
) -> Iterator[Claim]:
    """The claim by the ratios of the backends: nothing without measurements; `it depends` if backends disagree."""
    if not ratios:
        return
    verdicts = {ratio.against(bound, above) for ratio in ratios.values()}
    decided = verdicts - {ClaimVerdict.INCONCLUSIVE}
    verdict = ClaimVerdict.DEPENDS if len(decided) == 2 else (verdicts - decided or decided).pop()
    yield Claim(id=name, says=says, predicts=predicts, measured=f"{_listed(ratios)}{more}", verdict=verdict)


def _listed(ratios: Mapping[str, Ratio]) -> str:
    return "; ".join(f"{backend} {ratio.text}" for backend, ratio in sorted(ratios.items()))


def _ratios(rows: Sequence[Row], over: Fields, under: Fields, times: float = 1) -> dict[str, Ratio]:
    """By backend: `times` the time of the case `over`, divided by that of the case `under`."""
    first, second = _at(rows, over), _at(rows, under)
    return {name: _ratio(first[name], second[name], times) for name in sorted(first.keys() & second.keys())}


def _ratio(over: Row, under: Row, times: float = 1) -> Ratio:
    (time, low, high), (base, base_low, base_high) = _interval(over), _interval(under)
    return Ratio(times * time / base, times * low / base_high, times * high / base_low)


def _interval(row: Row) -> tuple[float, float, float]:
    """The time in s, and the ends of its interval; without an interval, the time itself."""
    return row.seconds, row.time_low_s or row.seconds, row.time_high_s or row.seconds


def _at(rows: Sequence[Row], fields: Fields) -> dict[str, Row]:
    """The measured rows with these values, by backend; other columns have the values of a plain problem."""
    plain = {"mode": "fwd", "dtype": "fp32", "dropout": 0.0, "bias": "none", "scope": "core", "returns": "out"}
    values = {**plain, **fields}
    return _by_backend([row for row in rows if all(row.value(name) == value for name, value in values.items())])


def _by_backend(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.arm_name: row for row in rows if row.time_s}


def _pairs(rows: Sequence[Row], fields: Fields) -> float:
    """FLOPs of such a case, proportional to its pairs at one width; 0 if none was measured."""
    return max((float(row.flops) for row in _at(rows, fields).values()), default=0.0)


def _probed(results: Sequence[Result], name: str) -> list[tuple[Result, Facts]]:
    """Correct results with the figures of this probe."""
    correct = [result for result in results if result.status is Status.OK]
    probed = [(result, result.facts.get("probes", {}).get(name, {})) for result in correct]
    return [(result, figures) for result, figures in probed if figures and "absent" not in figures]
