"""A dispatch table in use: the calls that it has chosen in this process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.attention.choices import Mode
from attnbench.dispatch import calls, nearest, origin
from attnbench.dispatch.nearest import CallKind, Ranking
from attnbench.dispatch.origin import Match, StaleTableWarning
from attnbench.records.case import Case, problem_label
from attnbench.studies.dispatch_table import Dispatch, read

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger("attnbench.dispatch")
MAX_KEYS = 4096  # decisions that are kept: a decode has another shape for every token
WITH_GRADIENTS = (Mode.FWD_BWD, Mode.BWD)  # of which the first that was measured counts


class Table:
    """A table of `attnbench recommend -o`, and what it decided for the shapes that were called."""

    def __init__(self, stored: Dispatch, name: str = "") -> None:
        self.stored, self.name = stored, name
        self.calls: dict[object, calls.Call] = {}  # by the key of a call
        self._index = nearest.index(stored.choices)
        self._matches: dict[torch.device, Match] = {}

    def first_call(self, key: object, case: Case, objection: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Call the best backend that takes the case, and keep it for the key; SDPA where there is none."""
        if len(self.calls) >= MAX_KEYS:
            self.calls.clear()
        label = problem_label(case.problem, case.mode)
        reasons = [objection] if objection else []
        for name, basis in () if objection else self._candidates(case, q.device, reasons):
            try:
                call = calls.prepare(name, case, q.device)
                out = call(q, k, v)
            except Exception as error:  # a library that does not fit this torch or GPU may raise anything
                reasons.append(f"{name}: {' '.join(str(error).split())[:300] or type(error).__name__}")
                continue
            logger.info("%s: %s, %s%s", label, name, basis, "".join(f"; not {reason}" for reason in reasons))
            self.calls[key] = call
            return out
        logger.info("%s: falls back to SDPA: %s", label, "; ".join(reasons))
        self.calls[key] = call = partial(calls.sdpa, causal=case.problem.causal, scale=case.problem.score.scale)
        return call(q, k, v)

    def _candidates(self, case: Case, device: torch.device, reasons: list[str]) -> Iterator[tuple[str, str]]:
        """The backends for a case with what they are based on; adds to the reasons where there is none."""
        match = self._match(device)
        if match.objection:
            reasons.append(match.objection)
            return
        ranking = self.ranking(case, match.device)
        if ranking is None:
            reasons.append(f"no problem on {match.device} within {nearest.MAX_OCTAVES:g} octaves was measured")
            return
        for name, over in ranking.backends.items():
            distance = f"{ranking.octaves:.1f} octaves from" if ranking.octaves else "measured as"
            yield name, f"{over:.2f}x the fastest, {distance} {ranking.nearest}"

    def ranking(self, case: Case, device: str) -> Ranking | None:
        """The backends for a case on a device of the table; None where no measured problem is near."""
        problem = nearest.plain(case.problem)
        assert problem
        for mode in WITH_GRADIENTS if case.mode.needs_grad else (Mode.FWD,):
            if measured := self._index.get(CallKind(device, problem.dtype, problem.mask, mode)):
                return nearest.rank(measured, problem)
        return None

    def _match(self, device: torch.device) -> Match:
        """The device of the table for a device; found once, with a warning where anything differs."""
        if device not in self._matches:
            self._matches[device] = match = self._find(device)
            table = f"dispatch table {self.name}".strip()
            again = "measure again with attnbench run, and attnbench recommend -o"
            if match.objection:
                warnings.warn(f"{table} is not used: {match.objection}; {again}", StaleTableWarning, stacklevel=5)
            elif match.changes:
                warnings.warn(f"{table} is stale: {'; '.join(match.changes)}; {again}", StaleTableWarning, stacklevel=5)
        return self._matches[device]

    def _find(self, device: torch.device) -> Match:
        source = self.stored.origin
        if source is None:
            return Match("", "the table does not say where it was measured")
        if device.type not in ("cpu", "cuda"):
            return Match("", f"attnbench does not measure on {device.type}")
        return origin.match(source, device.type, origin.current(device.type, device.index or 0))


def load(path: str | Path) -> Table:
    """Read a table of `attnbench recommend -o`. Raises StoreError or SchemaError for another file."""
    return Table(read(Path(path)), str(path))
