"""What `attnbench claims` does: the articles' claims C1 to C17 against what this machine measures.

A claim that one thing is cheaper than another is judged by the ratio of their times: the interval of a ratio goes from
the low end of one over the high end of the other, and must lie wholly on one side of the bound. Where backends or
formats differ, it depends on them, and each is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from attnbench.attention.scores import Score
from attnbench.frame import Row
from attnbench.result import Result, Status
from attnbench.studies import scaling
from attnbench.studies.max_seq import Longest
from attnbench.studies.scaling import Claim, Verdict
from attnbench.units import size

SUITE = "claims"
Fields = Mapping[str, Any]  # columns of a row and their values
# What is asked beside the suite, untimed: the options of `attnbench verify` and the probe.
ROBUST = {
    "seq": "256", "heads": "4", "mask": "none", "dtype": "fp32", "score": "dot,cosine,dot:scale=1",
    "temperature": "1,4",
}  # fmt: skip
NOISE = "0.01"  # the share of noise whose gain is quoted
QUANTISED = {"seq": "512", "heads": "4", "mask": "none,causal", "dtype": "fp32"}
CHEAP = 1.1  # what is called cheap costs at most a tenth more
SEGMENT, CONTEXT = 256, 2048  # of C7


class Ratio(NamedTuple):
    """One time over another, with the worst ends of their intervals."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """`0.36 (0.35..0.37)`."""
        return f"{self.value:.3g} ({self.low:.3g}..{self.high:.3g})"

    def against(self, bound: float, above: bool = False) -> Verdict:
        """Whether it lies wholly below the bound, or above it."""
        below, over = self.high < bound, self.low > bound
        if not (below or over):
            return Verdict.INCONCLUSIVE
        return Verdict.CONFIRMED if over is above else Verdict.REFUTED


def judged(
    rows: Sequence[Row], robust: Sequence[Result], quantised: Sequence[Result], longest: Sequence[Longest]
) -> Iterator[Claim]:
    """Every claim on which something was measured, C1 first."""
    laws = list(scaling.laws(rows))
    yield from scaling.claims(laws)
    for one in (_relative, _segments, _precision, _sparsity):
        yield from one(rows)
    yield from _quantisation(quantised)
    yield from _robust(robust)
    for one in (_weights, _unequal, _dropout, _several, _joint, _padding, _layer):
        yield from one(rows)
    yield from _longest(longest)


def _relative(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "causal", "seq_q": CONTEXT, "bias": "none"}
    for bias in ("alibi", "t5"):
        found = _ratios(rows, {**base, "bias": bias}, base)
        yield from _claim("C6", f"relative position saves compute: {bias} alone", "time under 1 x without", found, 1.0)
    window = {**base, "mask": "causal+window:255"}
    pairs = _pairs(rows, window) / (_pairs(rows, base) or 1)
    found = _ratios(rows, window, base)
    says = "relative position saves compute: a window of 256"
    yield from _claim("C6", says, f"time under 1 x causal, ideal {pairs:.2f}", found, 1.0)


def _segments(rows: Sequence[Row]) -> Iterator[Claim]:
    whole = {"mask": "causal", "bias": "xl", "seq_q": CONTEXT}
    part = {"mask": "causal", "bias": "xl", "seq_q": SEGMENT, "seq_kv": 2 * SEGMENT}
    found = _ratios(rows, part, whole, times=CONTEXT / SEGMENT)
    says = f"Transformer-XL helps long sequences: {CONTEXT // SEGMENT} segments of {SEGMENT} with memory against all"
    yield from _claim("C7", says, "time under 1 x all at once", found, 1.0)


def _precision(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "none", "seq_q": 1024, "seq_kv": 1024, "head_dim": 64, "returns": "out", "scope": "core"}
    for dtype in ("bf16", "fp16"):
        found = _ratios(rows, {**base, "dtype": dtype}, {**base, "dtype": "fp32"})
        yield from _claim("C8", f"mixed precision saves compute: {dtype}", "time under 1 x fp32", found, 1.0)


def _sparsity(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "none", "seq_q": CONTEXT, "seq_kv": CONTEXT, "scope": "core"}
    for kind, mask in {"by blocks": "blocksparse:0.25", "without a pattern": "graph:0.25"}.items():
        sparse = {**base, "mask": mask}
        ideal = (_pairs(rows, sparse) or 0) / (_pairs(rows, base) or 1)
        found = _ratios(rows, sparse, base)
        builds = [row["mask_build_s"] for row in _at(rows, sparse).values() if row["mask_build_s"]]
        more = f"; mask built in {max(builds) * 1e3:.0f} ms, apart" if builds else ""
        predicts = f"time under 1 x dense, ideal {ideal:.2f}"
        yield from _claim("C9", f"sparsity saves compute: a quarter, {kind}", predicts, found, 1.0, more=more)


def _quantisation(results: Sequence[Result]) -> Iterator[Claim]:
    told = _probed(results, "quantisation")
    if not told:
        return
    figures = [one["error"] for _, one in told]
    sizes = told[0][1]["bytes"]
    errors = ", ".join(f"{name} {max(one[name] for one in figures):.2g}" for name in figures[0])
    wide, narrow = next(iter(sizes.values())), min(sizes.values())
    yield Claim(
        id="C10",
        says="quantisation saves memory: a cache of k and v in 8 bits, simulated",
        predicts="bytes under 1 x",
        measured=f"{size(wide)} to {size(narrow)}, counted; relative error of out {errors}; no time: read back before",
        verdict=Verdict.CONFIRMED if narrow < wide else Verdict.REFUTED,
    )


def _robust(results: Sequence[Result]) -> Iterator[Claim]:
    told = []
    for result, figures in _probed(results, "noise"):
        gain = figures["gain"].get(NOISE)
        if gain is not None:
            told.append(f"{_spelled(result.case.problem.score)} {gain:.2g}")
    if told:
        yield Claim(
            id="C11",
            says="attention is robust to noise, or is not",
            predicts="nothing that a number could refute",
            measured=f"change of out over a change of {NOISE} of q, k, v: {', '.join(told)}",
            verdict=Verdict.MEASURED,
        )


def _spelled(score: Score) -> str:
    """The score in words, what is at its default left out."""
    words = [score.similarity.value]
    if score.scale is not None:
        words.append(f"scale {score.scale:g}")
    if (score.temperature or 1) != 1:
        words.append(f"temperature {score.temperature:g}")
    return " ".join(words)


def _weights(rows: Sequence[Row]) -> Iterator[Claim]:
    base = {"mask": "none", "seq_q": 1024, "seq_kv": 1024, "dtype": "fp32", "scope": "core", "head_dim": 64}
    found = _ratios(rows, {**base, "returns": "weights"}, {**base, "returns": "out"})
    if found:
        listed = _listed(found)
        says = "interpretable, or not: what it costs to give the weights back"
        fused = "fused kernels have none to give"
        yield Claim(
            id="C12", says=says, predicts="nothing on explanation", measured=f"time {listed} x; {fused}",
            verdict=Verdict.MEASURED,
        )  # fmt: skip


def _unequal(rows: Sequence[Row]) -> Iterator[Claim]:
    cells = [row for row in rows if row["seq_q"] != row["seq_kv"] and row["bias"] == "none" and row["mask"] == "none"]
    if cells:
        right = sum(row["status"] == Status.OK for row in cells)
        yield Claim(
            id="C13",
            says="handles unequal lengths",
            predicts="right wherever seq_q and seq_kv differ",
            measured=f"{right} of {len(cells)} cases right against float64",
            verdict=Verdict.CONFIRMED if right == len(cells) else Verdict.REFUTED,
        )


def _dropout(rows: Sequence[Row]) -> Iterator[Claim]:
    for mode in ("fwd", "fwd_bwd"):
        base = {"batch": 2, "seq_q": 512, "mode": mode, "dropout": 0.0}
        found = _ratios(rows, {**base, "dropout": 0.1}, base)
        yield from _claim("C14", f"dropout of 0.1 is cheap, {mode}", f"time under {CHEAP:g} x without", found, CHEAP)


def _several(rows: Sequence[Row]) -> Iterator[Claim]:
    at = _at(rows, {"seq_q": CONTEXT, "seq_kv": CONTEXT, "mask": "none"})
    ranks = {name: _ratio(row, at["sdpa:flash"]) for name, row in at.items() if ":2" in name and "sdpa:flash" in at}
    if ranks:
        yield Claim(
            id="C15",
            says="several devices help: two processes that share the cores of one",
            predicts="nothing here: what the exchange costs, where no core is won",
            measured=f"time of one x {_listed(ranks)}",
            verdict=Verdict.MEASURED,
        )


def _joint(rows: Sequence[Row]) -> Iterator[Claim]:
    def of(seq: int) -> Mapping[str, Row]:
        return _at(rows, {"batch": 4, "seq_q": seq, "seq_kv": seq, "mask": "none", "dtype": "fp32"})

    text, image, both = of(77), of(257), of(334)
    found = {}
    for backend in text.keys() & image.keys() & both.keys():
        apart = [text[backend][name] + image[backend][name] for name in ("time_s", "time_low_s", "time_high_s")]
        one = both[backend]
        found[backend] = Ratio(one["time_s"] / apart[0], one["time_low_s"] / apart[2], one["time_high_s"] / apart[1])
    says = "multimodal costs more: 77 of text and 257 of image in one call"
    yield from _claim("C16", says, "time over 1 x that of two calls", found, 1.0, above=True)


def _padding(rows: Sequence[Row]) -> Iterator[Claim]:
    padded = _at(rows, {"mask": "padding:0.3", "batch": 4})
    packed = _by_backend([row for row in rows if row["mask"].startswith("document:")])
    found = {name: _ratio(packed[name], padded[name]) for name in padded.keys() & packed.keys()}
    says = "ragged lengths packed save what padding wastes"
    yield from _claim("M16", says, "time under 1 x padded", found, 1.0)


def _layer(rows: Sequence[Row]) -> Iterator[Claim]:
    """Where the core takes as long as the rest of a layer; by FLOPs at six times the width of the model."""
    shares = {}
    for row in rows:
        if row["scope"] == "layer:1" and row["time_s"]:
            core = _at(rows, {"seq_q": row["seq_q"], "seq_kv": row["seq_kv"], "mask": "none", "dtype": "fp32",
                              "scope": "core", "heads": row["heads"], "head_dim": row["head_dim"], "batch": 1,
                              "returns": "out"})  # fmt: skip
            if row["backend"] in core:
                shares[row["seq_q"]] = core[row["backend"]]["time_s"] / row["time_s"]
    if len(shares) < 2:
        return
    width = 256
    listed = ", ".join(f"{share:.0%} at {seq}" for seq, share in sorted(shares.items()))
    crossed = [seq for seq, share in sorted(shares.items()) if share > 0.5]
    where = f"over half from {crossed[0]}" if crossed else "under half everywhere"
    yield Claim(
        id="M14",
        says="the core is the costly part of a layer",
        predicts=f"half of the FLOPs at seq {6 * width}, 6 x d_model {width}",
        measured=f"{listed} of a layer's time: {where}",
        verdict=Verdict.MEASURED,
    )


def _longest(found: Sequence[Longest]) -> Iterator[Claim]:
    if found:
        listed = ", ".join(f"{one.arm.name} {one.seq} (then {one.stopped_by})" for one in found)
        yield Claim(
            id="C17", says="larger sizes are affordable", predicts="nothing: measured by backend",
            measured=f"longest sequence that fits, h1 d64: {listed}", verdict=Verdict.MEASURED,
        )  # fmt: skip


def _claim(
    name: str, says: str, predicts: str, found: Mapping[str, Ratio], bound: float, above: bool = False, more: str = ""
) -> Iterator[Claim]:
    """Nothing where nothing was measured; `it depends` where backends do not agree."""
    if not found:
        return
    verdicts = {ratio.against(bound, above) for ratio in found.values()}
    decided = verdicts - {Verdict.INCONCLUSIVE}
    verdict = Verdict.DEPENDS if len(decided) == 2 else min(verdicts, key=_doubt)
    yield Claim(id=name, says=says, predicts=predicts, measured=f"{_listed(found)}{more}", verdict=verdict)


def _doubt(verdict: Verdict) -> int:
    return 0 if verdict is Verdict.INCONCLUSIVE else 1


def _listed(found: Mapping[str, Ratio]) -> str:
    return "; ".join(f"{backend} {ratio.text}" for backend, ratio in sorted(found.items()))


def _ratios(rows: Sequence[Row], over: Fields, under: Fields, times: float = 1) -> dict[str, Ratio]:
    """By backend: the time of the case `over`, so many times, over that of the case `under`."""
    first, second = _at(rows, over), _at(rows, under)
    return {name: _ratio(first[name], second[name], times) for name in sorted(first.keys() & second.keys())}


def _ratio(over: Row, under: Row, times: float = 1) -> Ratio:
    low, high = (over[end] or over["time_s"] for end in ("time_low_s", "time_high_s"))
    least, most = (under[end] or under["time_s"] for end in ("time_low_s", "time_high_s"))
    return Ratio(times * over["time_s"] / under["time_s"], times * low / most, times * high / least)


def _at(rows: Sequence[Row], fields: Fields) -> dict[str, Row]:
    """The measured rows of these values, by backend; what is not named is as a plain problem has it."""
    plain = {"mode": "fwd", "dtype": "fp32", "dropout": 0.0, "bias": "none", "scope": "core", "returns": "out"}
    wanted = {**plain, **fields}
    return _by_backend([row for row in rows if all(row[name] == value for name, value in wanted.items())])


def _by_backend(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["arm_name"]: row for row in rows if row["time_s"]}


def _pairs(rows: Sequence[Row], fields: Fields) -> float:
    """FLOPs stand for pairs, at one width; 0 where no such case was measured."""
    return max((float(row["flops"]) for row in _at(rows, fields).values()), default=0.0)


def _probed(results: Sequence[Result], name: str) -> list[tuple[Result, dict[str, Any]]]:
    """Right results whose probe has figures."""
    found = [(result, result.facts.get("probes", {}).get(name, {})) for result in results if result.status is Status.OK]
    return [(result, figures) for result, figures in found if figures and "absent" not in figures]
