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
from attnbench.machine import identity
from attnbench.records.case import Case
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
        self._grounds: set[tuple[str, ...]] = set()  # of the decisions that were logged at level INFO

    def first_call(
        self, key: object, case: Case, label: str, objection: str, tensors: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Call the best backend that takes the case, and keep it for the key; SDPA where there is none."""
        if len(self.calls) >= MAX_KEYS:
            self.calls.clear()
            self._grounds.clear()
        device = tensors[0].device
        reasons = [objection] if objection else []
        for name, basis, nearby in () if objection else self._candidates(case, device, reasons):
            try:
                call = calls.prepare(name, case, device)
                out = call(*tensors)
            except Exception as error:  # a library that does not fit this torch or GPU may raise anything
                reasons.append(f"{name}: {' '.join(str(error).split())[:300] or type(error).__name__}")
                continue
            passed_over = "".join(f"; not {reason}" for reason in reasons)
            self._log((name, nearby, *reasons), f"{label}: {name}, {basis}{passed_over}")
            self.calls[key] = call
            return out
        self._log(tuple(reasons), f"{label}: falls back to SDPA: {'; '.join(reasons)}")
        self.calls[key] = call = partial(calls.sdpa, causal=case.problem.causal, scale=case.problem.score.scale)
        return call(*tensors)

    def _log(self, ground: tuple[str, ...], text: str) -> None:
        """Log a decision; at level INFO the first on each ground, since a decode has another shape for every token."""
        logger.log(logging.DEBUG if ground in self._grounds else logging.INFO, "%s", text)
        self._grounds.add(ground)

    def _candidates(self, case: Case, device: torch.device, reasons: list[str]) -> Iterator[tuple[str, str, str]]:
        """The backends for a case, on what each is based, and the nearest problem; adds to the reasons for none."""
        match = self._match(device)
        if match.objection:
            reasons.append(match.objection)
            return
        ranking = self.ranking(case, match.device)
        if ranking is None:
            reasons.append(self._missing(case, match.device))
            return
        for name, over in ranking.backends.items():
            distance = f"{ranking.octaves:.1f} octaves from" if ranking.octaves else "measured as"
            yield name, f"{over:.2f}x the fastest, {distance} {ranking.nearest}", ranking.nearest

    def ranking(self, case: Case, device: str) -> Ranking | None:
        """The backends for a case on a device of the table; None where no measured problem is near."""
        problem = nearest.plain(case.problem)
        assert problem
        for mode in _modes(case):
            if measured := self._index.get(CallKind(device, problem.dtype, problem.mask, mode)):
                return nearest.rank(measured, problem)
        return None

    def _missing(self, case: Case, device: str) -> str:
        """What the table lacks for a case that it does not rank."""
        problem = nearest.plain(case.problem)
        assert problem
        kinds = [kind for kind in self._index if kind.device == device]
        if not kinds:
            return f"no dense or causal problem was measured on {device}"
        mask, modes = problem.mask, _modes(case)
        counted = " (a single causal query counts as that)" if mask != case.problem.mask else ""
        words = f"{problem.dtype} problem"
        for name, values, more in (
            ("dtype", (problem.dtype,), ""),
            ("mask", (mask,), f" with mask {mask}{counted}"),
            ("mode", modes, f" of mode {modes[0]}"),
        ):
            words += more
            matching = [kind for kind in kinds if getattr(kind, name) in values]
            if not matching:
                there = ", ".join(dict.fromkeys(str(getattr(kind, name)) for kind in kinds))
                return f"no {words} was measured on {device}; the table has {there}"
            kinds = matching
        return f"no {words} within {nearest.MAX_OCTAVES:g} octaves was measured on {device}"

    def _match(self, device: torch.device) -> Match:
        """The device of the table for a device; found once, with a warning where anything differs."""
        if device not in self._matches:
            self._matches[device] = match = self._find(device)
            table = f"dispatch table {self.name}".strip()
            if match.objection:
                warnings.warn(
                    f"{table} is not used: {match.objection}; {match.remedy}", StaleTableWarning, stacklevel=5
                )
            elif match.changes:
                warnings.warn(
                    f"{table} is stale: {'; '.join(match.changes)}; {match.remedy}", StaleTableWarning, stacklevel=5
                )
        return self._matches[device]

    def _find(self, device: torch.device) -> Match:
        source = self.stored.origin
        if source is None:
            return Match("", "the table does not say where it was measured")
        if device.type not in ("cpu", "cuda"):
            return Match("", f"attnbench does not measure on {device.type}")
        here = origin.current(device.type, device.index or 0)
        return origin.match(source, device.type, here, fingerprint=identity.fingerprint()[0])


def _modes(case: Case) -> tuple[Mode, ...]:
    """The modes of problems that count for a case, the first measured one first."""
    return WITH_GRADIENTS if case.mode.needs_grad else (Mode.FWD,)


def load(path: str | Path) -> Table:
    """Read a table of `attnbench recommend -o`. Raises StoreError or SchemaError for another file."""
    return Table(read(Path(path)), str(path))
