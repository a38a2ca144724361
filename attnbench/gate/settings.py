"""`[gate]` of a suite: what change is minded, case by case, until when, and what a renamed case was called before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from attnbench.errors import SuiteError
from attnbench.gate import rule
from attnbench.units import parse_share


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `[[gate.tolerance]]`."""

    match: str  # a glob over labels: `*causal*sdpa:flash`
    time: str  # a share: 5%
    reason: str
    expires: date | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole table."""

    time: str = "2%"
    tolerance: tuple[Tolerance, ...] = ()
    alias: dict[str, str] = {}  # label now -> label then

    def of(self, label: str, today: date) -> float:
        """The tolerance of a case: the last entry that matches and has not expired, else the general one."""
        found = self.time
        for one in self.tolerance:
            if fnmatchcase(label, one.match) and not (one.expires and one.expires < today):
                found = one.time
        return parse_share(found, "[gate] time")

    def expired(self, today: date) -> list[str]:
        """Words on entries whose day has passed: they no longer count."""
        return [
            f"[gate] tolerance {one.match!r} ({one.reason}) expired on {one.expires}: {self.time} holds again"
            for one in self.tolerance
            if one.expires and one.expires < today
        ]


def read(table: Mapping[str, Any], where: str) -> Settings:
    """Raises SuiteError that names the key."""
    try:
        found = msgspec.convert(dict(table), Settings, strict=False)
        for text in (found.time, *(one.time for one in found.tolerance)):
            parse_share(text, f"{where}: [gate] time")
    except msgspec.ValidationError as wrong:
        raise SuiteError(f"{where}: [gate]: {wrong}") from None
    return found


DEFAULT = Settings(time=f"{100 * rule.TOLERANCE:g}%")
