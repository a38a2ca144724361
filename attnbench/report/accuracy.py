"""Error figures of single outputs, how they grow with length, and what the probes found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from attnbench import stats
from attnbench.case import problem_label
from attnbench.report.table import wrap
from attnbench.result import Result, Status
from attnbench.units import size

OUTPUTS = ("out", "lse", "dq", "dk", "dv")
WIDTH = 80
GROWTH_LEAST = 3  # lengths that make a trend


def label(result: Result) -> str:
    """The case in words, with the distribution of its inputs unless that is the usual one."""
    words = problem_label(result.case.problem, result.case.mode)
    return words if result.procedure.inputs == "normal" else f"{words} {result.procedure.inputs}"


def figures(results: Sequence[Result]) -> Iterator[str]:
    """Max, mean and rms error against float64, and each over that of the plain formula in the same dtype."""
    with_errors = [result for result in results if result.facts.get("errors")]
    if not with_errors:
        return
    yield "            max      mean       rms   xmax  xmean   xrms  NaN, Inf"
    for result in with_errors:
        yield from wrap(label(result), WIDTH)
        for name, error in result.facts["errors"].items():
            cells = [f"{_number(error.get(key)):>10}" for key in ("max_abs", "mean_abs", "rms")]
            plain = (("max_abs", "plain_max"), ("mean_abs", "plain_mean"), ("rms", "plain_rms"))
            cells += [f"{_times(error, own, other):>7}" for own, other in plain]
            yield f"  {name:<4}{''.join(cells)}{(error.get('nan') or 0) + (error.get('inf') or 0):>10}"
    yield "x: times the error of the plain formula in the same dtype"
    yield ""


def growth(results: Sequence[Result]) -> Iterator[str]:
    """For problems that differ in length alone: the exponent of the rms error of out over the length."""
    families: dict[Any, list[tuple[int, float]]] = {}
    for result in results:
        problem, rms = result.case.problem, result.facts.get("errors", {}).get("out", {}).get("rms")
        if result.status is Status.OK and rms and problem.seq_q == problem.seq_kv and not problem.lengths:
            rest = replace(problem, seq_q=1, seq_kv=1, mask="none")
            key = (rest, problem.mask, result.case.mode, result.procedure.inputs)
            families.setdefault(key, []).append((problem.seq_q, rms))
    for (rest, mask, mode, inputs), points in families.items():
        if len(points) >= GROWTH_LEAST:
            fit = stats.power_law(*zip(*sorted(points), strict=True))
            where = f"{rest.dtype.value} d{rest.head_dim} {mask} {mode.value} {inputs}"
            ends = f"{fit.low:.2f}..{fit.high:.2f}" if fit.low is not None and fit.high is not None else "-"
            lengths = f"seq {min(points)[0]}..{max(points)[0]}"
            yield f"rms error of out over {lengths}, {where}: exponent {fit.value:.2f} ({ends})"
    if any(len(points) >= GROWTH_LEAST for points in families.values()):
        yield ""


def probes(results: Sequence[Result]) -> Iterator[str]:
    """What each probe found; where it could not be asked, why."""
    names = dict.fromkeys(name for result in results for name in result.facts.get("probes", {}))
    for name in names:
        found = [(label(result), result.facts["probes"][name]) for result in results if "probes" in result.facts]
        asked = [(words, figures) for words, figures in found if "absent" not in figures]
        yield HEADINGS[name]
        yield from _COMPARED[name](asked) if asked else ()
        absent: dict[str, int] = {}
        for _, figures in found:
            if reason := figures.get("absent"):
                absent[reason] = absent.get(reason, 0) + 1
        for reason, count in absent.items():
            yield from wrap(f"  - in {count} of {len(found)}: {reason}", WIDTH, indent=4)
        yield ""


HEADINGS = {
    "noise": "noise: relative change of out over that of q, k and v, by the noise's share",
    "adversarial": "adversarial: the same for one step along the gradient, and for a random one",
    "determinism": "determinism: bits of repeated calls, gradients too",
    "batch": "batch: bits of one sequence alone and at every position of a batch",
    "double_backward": "double_backward: the gradient of the gradient",
    "soft": "soft: relative change of out against softmax over all visible keys, and the share of keys kept",
    "quantisation": "quantisation: relative change of out with k and v kept in fewer bits, and their bytes",
}

Asked = Sequence[tuple[str, dict[str, Any]]]


def _columns(asked: Asked, cells: Sequence[Sequence[str]], heads: Sequence[str]) -> Iterator[str]:
    wide = 2 + max(len(cell) for row in (heads, *cells) for cell in row)
    width = min(max(len(words) for words, _ in asked), WIDTH - wide * len(heads))
    yield " " * width + "".join(head.rjust(wide) for head in heads)
    for (words, _), row in zip(asked, cells, strict=True):
        first, *rest = wrap(words, width)
        yield first.ljust(width) + "".join(cell.rjust(wide) for cell in row)
        yield from (f"  {line}" for line in rest)


def _noise(asked: Asked) -> Iterator[str]:
    heads = list(asked[0][1]["gain"])
    return _columns(asked, [[_number(found["gain"][head], ".3g") for head in heads] for _, found in asked], heads)


def _adversarial(asked: Asked) -> Iterator[str]:
    cells = [[_number(found[name], ".3g") for name in ("gain", "random_gain")] for _, found in asked]
    return _columns(asked, cells, ("gradient", "random"))


def _double_backward(asked: Asked) -> Iterator[str]:
    cells = [[f"{found['seconds']:.3g} s", "yes" if found["finite"] else "not finite"] for _, found in asked]
    return _columns(asked, cells, ("once", "finite"))


def _quantisation(asked: Asked) -> Iterator[str]:
    formats = list(asked[0][1]["error"])
    cells = [
        [f"{_number(found['error'][name], '.2g')} {size(found['bytes'][name])}" for name in formats]
        for _, found in asked
    ]
    return _columns(asked, cells, formats)


def _soft(asked: Asked) -> Iterator[str]:
    cells = [[_number(found["error"], ".2g"), f"{found['kept']:.1%}"] for _, found in asked]
    return _columns(asked, cells, ("error", "kept"))


def _equal_bits(asked: Asked) -> Iterator[str]:
    equal = sum(found["equal"] for _, found in asked)
    yield f"  equal in {equal} of {len(asked)} cases"
    for words, found in asked:
        if not found["equal"]:
            yield from wrap(f"  differ by up to {found['largest']:.2g}: {words}", WIDTH, indent=4)


_COMPARED: dict[str, Callable[[Asked], Iterator[str]]] = {
    "noise": _noise,
    "adversarial": _adversarial,
    "determinism": _equal_bits,
    "batch": _equal_bits,
    "double_backward": _double_backward,
    "quantisation": _quantisation,
    "soft": _soft,
}


def _number(value: float | None, form: str = ".1e") -> str:
    return "-" if value is None else format(value, form)


def _times(error: dict[str, Any], key: str, plain: str) -> str:
    return f"{error[key] / error[plain]:.2f}" if error.get(key) is not None and error.get(plain) else "-"
