"""Shares of small counts, and the intervals that such counts allow."""

from __future__ import annotations


def share(hits: int, count: int) -> str:
    """The share as text, with its counts."""
    return f"{hits} of {count}, {100 * hits / count:.0f} %" if count else "-"


def at_most(hits: int, count: int) -> str:
    """The exact upper bound of a share, one-sided at 95 % (Clopper and Pearson 1934)."""
    if not count:
        return "-"
    from scipy.stats import binomtest

    high = binomtest(hits, count).proportion_ci(confidence_level=0.90, method="exact").high
    return f"at most {100 * high:.1f} % at 95 %"


def wilson(hits: int, count: int) -> str:
    """The 95 % interval of a share (Wilson 1927)."""
    if not count:
        return "-"
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
