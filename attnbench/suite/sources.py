"""Keys that say with which published files the shapes of a suite were compared."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from attnbench.errors import UsageError
from attnbench.suite.cells import ProblemTable
from attnbench.suite.readers import words

UNREAD = "no reason is given"

# A branch moves; a commit does not.
_LINK = re.compile(r"https://\S+/[0-9a-f]{40}/\S+")


class SourceCheck(TypedDict):
    """The fields of a table that say what its shapes were compared with; at most one of them is not empty."""

    checked: tuple[str, ...]
    unchecked: str


def read_comparison(raw: Mapping[str, object], place: str) -> SourceCheck:
    """The comparison that a file or a table states. Raises UsageError if a link has no commit."""
    links = words(raw["checked"], f"{place}checked") if "checked" in raw else ()
    for link in links:
        if not _LINK.fullmatch(link):
            hint = "https://github.com/OWNER/REPOSITORY/blob/COMMIT/PATH, with all 40 digits of the commit"
            raise UsageError(f"{place}checked: {link!r}: not a link to a file at a commit ({hint})")
    reason = str(raw.get("unchecked", "")) or (UNREAD if raw.get("check") else "")
    if links and reason:
        raise UsageError(f"{place}checked and {'unchecked' if 'unchecked' in raw else 'check'} exclude each other")
    return {"checked": links, "unchecked": reason}


def describe(tables: Sequence[ProblemTable]) -> tuple[str, ...]:
    """Lines for a reader: the files that the shapes were compared with, and why some were not compared."""
    links = [f"compared with: {link}" for table in tables for link in table.checked]
    reasons: dict[str, list[str]] = {}
    for table in tables:
        if table.unchecked:
            reasons.setdefault(table.unchecked, []).append(table.name)
    for reason, names in reasons.items():
        which = ", ".join(filter(None, names)) if links or len(reasons) > 1 else ""
        links.append("not compared" + (f" ({which})" if which else "") + f": {reason}")
    return tuple(dict.fromkeys(links))


def summarise(tables: Iterable[ProblemTable]) -> str:
    """For a list of suites: `yes`, `in part`, or why not."""
    states = [(bool(table.checked), table.unchecked) for table in tables]
    if all(checked for checked, _ in states):
        return "yes"
    if any(checked for checked, _ in states):
        return "in part"
    return "no: " + "; ".join(dict.fromkeys(reason or "nothing stated" for _, reason in states))
