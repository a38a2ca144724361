"""A suite made to fit a small machine: every length and batch at a share of its own, shapes of heads as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from attnbench.attention import masks
from attnbench.attention.terms import part
from attnbench.errors import ProblemError, UsageError
from attnbench.suite.cells import Cell, Impossible


def parse_shrink(text: str) -> float:
    """`0.25` of `--shrink`; 1 for an empty one. UsageError for no share in (0, 1]."""
    try:
        share = float(text or 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--shrink {text}: not a share above 0 and at most 1 (try 0.25)")
    return share


def shrunk(cells: Iterable[Cell | Impossible], share: float) -> Iterator[Cell | Impossible]:
    """Lengths, batches and what a mask counts in tokens times `share`, each at least 1; doubles are left out."""
    seen = set()
    for cell in cells:
        small = cell if isinstance(cell, Impossible) else _small(cell, share)
        key = small if isinstance(small, Impossible) else small._replace(table=0)
        if key not in seen:
            seen.add(key)
            yield small


def _small(cell: Cell, share: float) -> Cell | Impossible:
    problem = cell.problem
    lengths = tuple(part(length, share) for length in problem.lengths)
    try:
        small = msgspec.structs.replace(
            problem,
            batch=problem.batch if lengths else part(problem.batch, share),
            seq_q=max(lengths) if lengths else part(problem.seq_q, share),
            seq_kv=max(lengths) if lengths else part(problem.seq_kv, share),
            lengths=lengths,
            mask=masks.parse(problem.mask).shrunk(share).text,
        )
    except ProblemError as wrong:
        return Impossible(f"{problem.mask} at seq_q={problem.seq_q}, shrunk to {share:g}", str(wrong))
    return cell._replace(problem=small)
