"""The results of `attnbench verify`: errors against float64 and probes as tables, or as JSON Lines."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from attnbench import units
from attnbench.analysis import common_axes, stats
from attnbench.analysis.rows import one_line
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.arm import distinct_names, labels
from attnbench.records.case import problem_label
from attnbench.records.result import Result, Status
from attnbench.report import probe_outcomes
from attnbench.report.pivot import interval
from attnbench.report.probe_outcomes import Figures
from attnbench.report.reasons import similar, without_numbers
from attnbench.report.terminal.text_layout import MIN_LABEL, labelled, terminal_width, wrap

OUTPUTS = ("out", "lse", "dq", "dk", "dv")
REFUSED = (Status.UNSUPPORTED, Status.UNAVAILABLE, Status.SKIPPED)
MAX_REASONS = 3  # of refusals that are listed without -v
MIN_LENGTHS = 3  # from which an exponent is fitted
FIGURES = (("max_abs", "plain_max"), ("mean_abs", "plain_mean"), ("rms", "plain_rms"))  # with the reference's
PROBES = {
    "noise": "noise: relative change of out over that of q, k and v, by the noise's share",
    "adversarial": "adversarial: the same for one step along the gradient, and for a random one",
    "determinism": "determinism: bits of repeated calls, gradients too",
    "batch": "batch: bits of one sequence alone and at every position of a batch",
    "double_backward": "double_backward: the gradient of the gradient",
    "soft": "soft: relative change of out against softmax over all visible keys, and the share of keys kept",
    "quantisation": "quantisation: relative change of out with k and v kept in fewer bits, and their bytes",
}

NO_NAMES: Mapping[str, str] = {}
Cases = Sequence[tuple[str, Figures]]  # each with the label of its case


def text(results: Sequence[Result], figures: bool = False, reasons: bool = False) -> Iterator[str]:
    """For each arm its cases: the largest error of out, and of each output the error as a share of its bound.

    Failures come first, with what they have in common; the verdict and the refusals come last. `figures` adds the
    largest, mean and rms error of every output, each also over that of the same-dtype reference; `reasons` lists the
    reasons of refusals, however many there are.
    """
    tried = [result for result in results if result.status not in REFUSED]
    yield from _tables(tried, figures)
    yield verdict(tried)
    yield from _refusals([result for result in results if result.status in REFUSED], reasons or not tried)


def _tables(tried: Sequence[Result], figures: bool = False) -> Iterator[str]:
    names = distinct_names(result.arm for result in tried)
    for cases in _by_arm(tried):
        yield from _table(cases, arm_name(cases[0], names))
        if shared := common_axes.sentence(cases):
            yield from wrap(shared, terminal_width())
        yield ""
        yield from error_figures(cases) if figures else ()
        yield from growth(cases)
        yield from probe_tables(cases)
        for sentence in probe_outcomes.sentences(cases, {cases[0].arm.id: arm_name(cases[0], names)}):
            yield from wrap(sentence, terminal_width(), indent=2)
            yield ""
    if tried:
        yield "error: the largest of out; % and x: the largest errors over their bounds"
        yield ""


def verdict(tried: Sequence[Result]) -> str:
    """`all 150 verified cases are right`, or how many failed."""
    counts = Counter(result.status for result in tried)
    total, right = len(tried), counts[Status.OK]
    if not total:
        return "no case was verified"
    if right == total and (unusual := sum(map(probe_outcomes.wrong, tried))):
        return f"all {units.counted(total, 'verified case')} right, {unusual} of them wrong for unusual inputs"
    if right == total:
        return "the verified case is right" if total == 1 else f"all {total} verified cases are right"
    failures = ", ".join(f"{count} {status.value}" for status, count in counts.most_common() if status != Status.OK)
    return f"{total - right} of {total} {'case' if total == 1 else 'cases'} failed: {failures}"


def _refusals(refused: Sequence[Result], listed: bool) -> Iterator[str]:
    """How many cases were not verified, and why: a line for each reason, with its backends."""
    if not refused:
        return
    by_reason: dict[str, list[Result]] = {}
    for result in refused:
        # The objections of a backend are joined; each of them counts by itself.
        joined = result.reason if result.status is not Status.SKIPPED else f"skipped: {result.reason}"
        for reason in joined.split("; ") if result.status is Status.UNSUPPORTED else [joined]:
            by_reason.setdefault(one_line(reason), []).append(result)
    names = labels(result.arm for result in refused)
    counts = Counter(result.status.value for result in refused)
    total = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    if len(by_reason) > MAX_REASONS and not listed:
        yield from wrap(f"not verified: {total}; -v lists the {len(by_reason)} reasons", terminal_width(), indent=2)
        return
    yield f"not verified: {total}"
    for reason, cases in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        backends = ", ".join(dict.fromkeys(names[result.arm.id] for result in cases))
        yield from (f"  {line}" for line in wrap(f"{len(cases)} {reason} ({backends})", terminal_width() - 2, indent=2))


def random_problems(results: Sequence[Result], figures: bool = False, reasons: bool = False) -> Iterator[str]:
    """For many problems drawn at random: what failed, then counts for each arm and its case nearest to the bound.

    `figures` and `reasons` are those of `text`.
    """
    if not figures:
        yield from _tables([result for result in results if result.status.failed])
    names = distinct_names(result.arm for result in results)
    for cases in _by_arm(results):
        yield from wrap(f"{arm_name(cases[0], names)}: {tally(cases)}", terminal_width(), indent=2)
        if shared := common_axes.sentence(cases):
            yield from (f"  {line}" for line in wrap(shared, terminal_width() - 2, indent=2))
        shares = [(_largest_share(case), case) for case in cases if case.status is Status.OK]
        if shares:
            share, nearest = max(shares, key=lambda pair: pair[0])
            line = f"nearest to its bound, at {units.whole_percent(share)}: {label(nearest)}"
            yield from (f"  {piece}" for piece in wrap(line, terminal_width() - 2, indent=2))
        yield ""
    if figures:
        yield from text(results, figures, reasons)
    else:
        yield tally(results)


def tally(results: Sequence[Result]) -> str:
    """`156 cases: 150 ok, 6 unsupported.`"""
    counts = Counter(result.status.value for result in results)
    parts = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return f"{units.counted(len(results), 'case')}: {parts}."


def record(result: Result) -> dict[str, object]:
    """One line of `verify --json`."""
    case, arm, facts = result.case, result.arm, result.facts
    record: dict[str, object] = {"type": "verify", "case_id": case.id, "label": case.label}
    record |= {"arm": arm.id, "backend": arm.backend, "device": arm.device, "mode": case.mode.value}
    record |= {"status": result.status.value, "reason": result.reason, "verified_share": facts.get("verified_share")}
    record |= {"inputs": result.procedure.inputs}
    record |= {"errors": facts.get("errors", {}), "probes": facts.get("probes", {})}
    return record | {name: facts[name] for name in ("trace", "log") if name in facts}


def summary(results: Sequence[Result], code: int) -> dict[str, object]:
    """The last line of `verify --json`."""
    counts = Counter(result.status.value for result in results)
    return {"type": "summary", "cases": len(results), "status": dict(counts), "exit_code": code}


def label(result: Result) -> str:
    """The case in words, with the distribution of its inputs unless that is `normal`."""
    words = problem_label(result.case.problem, result.case.mode)
    return words if result.procedure.inputs == "normal" else f"{words} {result.procedure.inputs}"


def error_figures(results: Sequence[Result]) -> Iterator[str]:
    """Largest, mean and rms error against float64, and each over that of the same-dtype reference."""
    with_errors = [result for result in results if result.facts.get("errors")]
    if not with_errors:
        return
    yield "            max      mean       rms   xmax  xmean   xrms  NaN, Inf"
    for result in with_errors:
        yield from wrap(label(result), terminal_width())
        for name, error in result.facts["errors"].items():
            cells = [f"{number(error.get(key)):>10}" for key, _ in FIGURES]
            ratios = [_ratio(error.get(key), error.get(plain)) for key, plain in FIGURES]
            cells += [f"{number(ratio, '.2f'):>7}" for ratio in ratios]
            yield f"  {name:<4}{''.join(cells)}{(error.get('nan') or 0) + (error.get('inf') or 0):>10}"
    yield "x: times the error of the same-dtype reference"
    yield ""


def growth(results: Sequence[Result]) -> Iterator[str]:
    """For problems that differ in length alone: the exponent of the rms error of out over the length."""
    families: dict[tuple[Problem, str, Mode, str], list[tuple[int, float]]] = {}
    for result in results:
        problem, rms = result.case.problem, result.facts.get("errors", {}).get("out", {}).get("rms")
        if result.status is Status.OK and rms and problem.seq_q == problem.seq_kv and not problem.requests:
            rest = replace(problem, seq_q=1, seq_kv=1, mask="none")
            key = (rest, problem.mask, result.case.mode, result.procedure.inputs)
            families.setdefault(key, []).append((problem.seq_q, rms))
    for (rest, mask, mode, inputs), points in families.items():
        if len(points) >= MIN_LENGTHS:
            fit = stats.power_law(*zip(*sorted(points), strict=True))
            problem_words = f"{rest.dtype.value} d{rest.head_dim} {mask} {mode.value} {inputs}"
            lengths = f"seq {min(points)[0]}..{max(points)[0]}"
            yield f"rms error of out over {lengths}, {problem_words}: exponent {fit.value:.2f} ({interval(fit, 2)})"
    if any(len(points) >= MIN_LENGTHS for points in families.values()):
        yield ""


def number(value: float | None, form: str = ".1e") -> str:
    """A figure of an error, or a dash."""
    return "-" if value is None else units.exponential(value) if form == ".1e" else format(value, form)


def probe_tables(results: Sequence[Result]) -> Iterator[str]:
    """The figures of each probe, and why it does not apply to some cases."""
    names = dict.fromkeys(name for result in results for name in result.facts.get("probes", {}))
    for name in names:
        cases = [(label(result), result.facts["probes"][name]) for result in results if "probes" in result.facts]
        if any(probe_outcomes.has_outcomes(figures) for _, figures in cases):
            continue
        measured = [(case, figures) for case, figures in cases if "absent" not in figures]
        yield PROBES[name]
        if measured:
            yield from _probe_table(measured, _CELLS[name]) if name in _CELLS else _equal_bits(measured)
        for reason, count in Counter(figures.get("absent") for _, figures in cases).items():
            if reason:
                yield from wrap(f"  - in {count} of {len(cases)}: {reason}", terminal_width(), indent=4)
        yield ""


def _probe_table(cases: Cases, cells_of: Callable[[Figures], dict[str, str]]) -> Iterator[str]:
    rows = [(case, cells_of(figures)) for case, figures in cases]
    headings = list(rows[0][1])
    cell_width = 2 + max(len(text) for _, cells in rows for cell in cells.items() for text in cell)
    width = min(max(len(case) for case, _ in cases), max(MIN_LABEL, terminal_width() - cell_width * len(headings)))
    yield " " * width + "".join(heading.rjust(cell_width) for heading in headings)
    for case, cells in rows:
        yield from labelled(case, width, "".join(cells[heading].rjust(cell_width) for heading in headings))


def _equal_bits(cases: Cases) -> Iterator[str]:
    equal = sum(figures["equal"] for _, figures in cases)
    yield f"  equal in {equal} of {len(cases)} cases"
    for case, figures in cases:
        if not figures["equal"]:
            yield from wrap(f"  differ by up to {units.figure(figures['largest'])}: {case}", terminal_width(), indent=4)


# The cells of a case by their headings; the other probes compare bits.
_CELLS: dict[str, Callable[[Figures], dict[str, str]]] = {
    "noise": lambda figures: {share: number(gain, ".3g") for share, gain in figures["gain"].items()},
    "adversarial": lambda figures: {
        heading: number(figures[name], ".3g") for heading, name in (("gradient", "gain"), ("random", "random_gain"))
    },
    "double_backward": lambda figures: {
        "once": f"{figures['seconds']:.3g} s",
        "finite": "yes" if figures["finite"] else "not finite",
    },
    "quantisation": lambda figures: {
        name: f"{number(error, '.2g')} {units.size(figures['bytes'][name])}" for name, error in figures["error"].items()
    },
    "soft": lambda figures: {"error": number(figures["error"], ".2g"), "kept": units.percent(figures["kept"], 1)},
}


def _by_arm(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each arm: arms with failures first, and the failures of an arm first."""
    arms: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: not result.status.failed):
        arms.setdefault(result.arm.id, []).append(result)
    return list(arms.values())


def arm_name(result: Result, names: Mapping[str, str] = NO_NAMES) -> str:
    """The arm with its device and its environment variables, which may be part of its name in `names`."""
    name = names.get(result.arm.id, result.arm.name)
    env = "".join(f" {key}={value}" for key, value in result.arm.env if f"{key}={value}" not in name)
    return f"{name} on {result.arm.device}{env}"


def _table(results: Sequence[Result], heading: str) -> Iterator[str]:
    outputs = [name for name in OUTPUTS if any(name in result.facts.get("errors", {}) for result in results)]
    notes: dict[str, list[str]] = {}  # reasons that differ in numbers alone are one note
    for result in results:
        if result.status is not Status.OK:
            notes.setdefault(without_numbers(result.reason), []).append(result.reason)
    labels = [label(result) for result in results]
    width = min(max(map(len, labels)), max(MIN_LABEL, terminal_width() - 18 - 6 * len(outputs)))
    yield heading
    yield "case".ljust(width) + "    error" + "".join(name.rjust(6) for name in outputs)
    for result, name in zip(results, labels, strict=True):
        error, *shares, verdict = _cells(result, outputs, notes)
        yield from labelled(
            name, width, error.rjust(9) + "".join(f" {share.rjust(5)}" for share in shares) + f"  {verdict}"
        )
    for number, reasons in enumerate(notes.values(), start=1):
        yield from wrap(f"[{number}] {one_line(reasons[0])}{similar(reasons)}", terminal_width())


def _cells(result: Result, outputs: Sequence[str], notes: Mapping[str, Sequence[str]]) -> list[str]:
    """The error of out, the shares, and the verdict with the number of its note."""
    errors = result.facts.get("errors", {})
    verdict = "ok"
    if result.status is not Status.OK:
        verdict = f"{result.status.value} [{list(notes).index(without_numbers(result.reason)) + 1}]"
    if result.status is Status.OK and (share := result.facts.get("verified_share", 1.0)) < 1:
        verdict += f" ({units.whole_percent(share)} of rows)"
    out = errors.get("out", {}).get("max_abs")
    shares = [_share(errors.get(name, {})) for name in outputs]
    cells = map(units.whole_percent, shares)
    return ["-" if out is None else units.exponential(out), *cells, verdict]


def _largest_share(result: Result) -> float:
    """0 if no output has an error and a bound."""
    shares = map(_share, result.facts.get("errors", {}).values())
    return max((share for share in shares if share is not None), default=0.0)


def _share(error: Mapping[str, float | None]) -> float | None:
    """The largest error as a share of its bound."""
    return _ratio(error.get("max_abs"), error.get("budget"))


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
