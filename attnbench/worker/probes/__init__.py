"""Probes of a correct kernel: its properties, and inputs and states of the process that break kernels.

A probe runs on one prepared case and returns figures by name, or `absent` with the reason why there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from attnbench.errors import UnknownNameError
from attnbench.units import words
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.probes import infinities, layouts, lengths, properties, state, values
from attnbench.worker.probes.outcome import Figures, Variants, outcomes

PROPERTIES: dict[str, Callable[[PreparedCase], Figures]] = {
    probe.__name__: probe
    for probe in (
        properties.noise,
        properties.adversarial,
        properties.determinism,
        properties.batch,
        properties.double_backward,
        properties.quantisation,
        properties.soft,
    )
}
VARIANTS: dict[str, Variants] = {
    "layouts": layouts.VARIANTS,
    "values": {**values.VARIANTS, **infinities.VARIANTS},
    "lengths": lengths.VARIANTS,
    "state": state.VARIANTS,
}
PROBES = (*PROPERTIES, *VARIANTS)


def named(text: str, where: str) -> tuple[str, ...]:
    """Probes from a comma list. Raises UnknownNameError for a name that is none; `where`: the option."""
    names = words(text, where) if text else ()
    for name in names:
        if name not in PROBES:
            raise UnknownNameError("probe", name, PROBES, where=where)
    return names


def parts(names: Iterable[str]) -> list[str]:
    """The same probes, each variant by itself: `layouts:sliced`. A crash then ends in a message that names it."""
    return [part for name in names for part in ([f"{name}:{each}" for each in VARIANTS.get(name, ())] or [name])]


def run(names: Sequence[str], case: PreparedCase) -> dict[str, Figures]:
    """Figures by probe. A probe that the backend does not support gives `absent`, and the others still run.

    `names`: probes, or single variants of them, as `parts` gives them.
    """
    figures: dict[str, Figures] = {}
    for name in names:
        probe, _, variant = name.partition(":")
        if variants := VARIANTS.get(probe):
            chosen = {variant: variants[variant]} if variant else variants
            figures[probe] = figures.get(probe, {}) | outcomes(chosen, case)
            continue
        case.fill(case.procedure.inputs)  # a verified case holds others
        try:
            figures[name] = PROPERTIES[name](case)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            figures[name] = {"absent": " ".join(str(error).split())[:200] or type(error).__name__}
    case.fill(case.procedure.inputs)
    return figures
