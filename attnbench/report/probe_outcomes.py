"""What backends did with unusual inputs, in sentences: `layouts: wrong only for columns`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attnbench.records.result import Facts, Result, Status
from attnbench.report.quantities import listed
from attnbench.report.reasons import similar, without_numbers

# In the order of the sentences, which have the reason of the first case alone.
OUTCOMES = ("wrong", "spreads", "nan", "flushes", "refuses", "copies", "takes", "right")
VERBS = {
    "wrong": "wrong",
    "spreads": "NaN spreads",
    "nan": "NaN",
    "flushes": "flushed to 0",
    "refuses": "refuses",
    "copies": "copies",
    "takes": "takes",
    "right": "right",
}
Figures = Facts  # of one probe on one case: docs/formats.md


def has_outcomes(figures: Figures) -> bool:
    """Whether these are figures of a probe that has an outcome for each variant."""
    return any(isinstance(figure, dict) and "outcome" in figure for figure in figures.values())


def wrong(result: Result) -> bool:
    """Whether the backend is wrong for an unusual input of a case that is right otherwise."""
    return any(
        figure["outcome"] == "wrong"
        for figures in result.facts.get("probes", {}).values()
        if has_outcomes(figures)
        for figure in figures.values()
    )


def not_run(results: Iterable[Result], probes: str) -> str:
    """Why the probes that were asked for were not run on some cases; empty if all were."""
    if probes and any(result.status is Status.INCORRECT and "probes" not in result.facts for result in results):
        return "probes not run: the case is wrong without them"
    return ""


def sentences(results: Iterable[Result], names: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each arm and probe; `names`: of the arms by id."""
    cases: dict[tuple[str, str], list[Figures]] = {}
    for result in results:
        for probe, figures in result.facts.get("probes", {}).items():
            if has_outcomes(figures):
                cases.setdefault((result.arm.id, probe), []).append(figures)
    for (arm, probe), figures_of_cases in cases.items():
        yield f"{names[arm]}, {probe}: {'; '.join(_parts(figures_of_cases))}"


def _parts(cases: Sequence[Figures]) -> Iterator[str]:
    variants = list(dict.fromkeys(variant for figures in cases for variant in figures))
    places: dict[str, dict[str, list[str]]] = {}  # reasons by outcome and variant
    for figures in cases:
        for variant, figure in figures.items():
            places.setdefault(figure["outcome"], {}).setdefault(variant, []).append(figure["reason"])
    applicable = [variant for variant in variants if any(figures[variant]["outcome"] != "absent" for figures in cases)]
    if not applicable:
        yield f"does not apply: {next(iter(places['absent'].values()))[0]}"
    for outcome in OUTCOMES:
        if outcome in places:
            only = "only " if outcome == "wrong" and len(places[outcome]) < len(applicable) else ""
            preposition = "" if outcome in ("takes", "copies", "refuses") else f"{only}for "
            yield f"{VERBS[outcome]} {preposition}{', '.join(_variants(places[outcome], len(cases)))}"


def _variants(places: Mapping[str, Sequence[str]], cases: int) -> Iterator[str]:
    """`offset`, or `sliced and columns (reason)`: together variants whose reasons differ in numbers alone."""
    alike: dict[tuple[str, str], dict[str, str]] = {}  # reasons by variant
    for variant, (reason, *others) in places.items():
        count = f"{1 + len(others)} of {cases} cases" if 1 + len(others) < cases else ""
        alike.setdefault((without_numbers(reason), count), {})[variant] = reason
    for (_, count), variants in alike.items():
        first, *_ = variants.values()
        detail = ", ".join(filter(None, (f"{first}{similar(variants.values())}", count)))
        yield f"{listed(list(variants), limit=len(variants))} ({detail})" if detail else ", ".join(variants)
