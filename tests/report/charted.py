"""Results for tests of charts, and what a figure holds."""

from __future__ import annotations

from typing import Any

from attnbench.attention.problem import Problem
from attnbench.records.result import Result, Status
from attnbench.report.charts.figure import Figure, Mark, Note
from tests.samples import result

LENGTHS = (256, 512, 1024, 2048, 4096)


def sample_results(**fields: Any) -> list[Result]:
    """Results of naive, which fails at 1024, and of flash, under each of `masks`."""
    results = []
    for mask in fields.pop("masks", ("none",)):
        for n in LENGTHS:
            problem = Problem(seq_q=n, mask=mask, **fields)
            naive = [1e-9 * n * n * (1 + 0.01 * k) for k in range(6)] if n != 1024 else ()
            status = {} if naive else {"status": Status.OOM, "reason": "no memory"}
            results.append(result(naive, problem=problem, **status))
            results.append(result([5e-10 * n * n * (1 + 0.01 * k) for k in range(6)], "sdpa:flash", problem=problem))
    return results


def marks(figure: Figure | None, kind: type[Mark], panel: int = 0) -> list[Any]:
    """The marks of this kind in one panel."""
    assert figure
    return [mark for mark in figure.panels[panel].marks if isinstance(mark, kind)]


def texts(figure: Figure | None) -> list[str]:
    return [note.text for note in marks(figure, Note)]
