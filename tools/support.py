"""Prints the table of docs/mechanisms.md that says which library takes which feature: `python tools/support.py`."""

from __future__ import annotations

from collections.abc import Iterator

from attnbench import backends
from attnbench.attention.problem import FEATURES

KINDS = ("cpu", "cuda")
APART = ("cascade", "mla")  # of several libraries, for shared prefixes or a latent cache alone


def lines() -> Iterator[str]:
    """A row for each feature, a column for each library; in a cell kinds of device, and how many of its backends."""
    libraries: dict[str, list[str]] = {}
    for name in backends.BUILTIN:
        library, _, kind = name.partition(":")
        column = kind if kind in APART else name if name == "sdpa:padded" else library
        libraries.setdefault(column, []).append(name)
    yield f"| feature | means | {' | '.join(libraries)} |"
    yield "|---" * (2 + len(libraries)) + "|"
    for word, meaning in FEATURES.items():
        cells = [_cell(names, word) for names in libraries.values()]
        yield f"| `{word}` | {meaning} | {' | '.join(cells)} |"


def _cell(names: list[str], word: str) -> str:
    found = []
    for kind in KINDS:
        there = [backend for name in names if kind in (backend := backends.load(name)).limits]
        takers = sum(
            word in backend.limits[kind].features or (word in ("requests", "empty") and backend.by_request)
            for backend in there
        )
        if takers:
            found.append(kind if takers == len(there) else f"{kind} {takers} of {len(there)}")
    return ", ".join(found) or "-"


if __name__ == "__main__":
    print("\n".join(lines()))
