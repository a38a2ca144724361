"""Reasons of refusals and failures as people read them: of one kind where only numbers differ, and not too long."""

import re
import textwrap

MAX_REASON = 100  # characters of a reason in a sentence
MAX_FOOTNOTE = 300  # characters of a reason below a table; `show --skipped` and the stored results have it whole
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)


def without_numbers(reason: str) -> str:
    """The reason with `#` in place of numbers: equal for failures of one kind."""
    return _NUMBER.sub("#", reason)


def shortened(reason: str, limit: int = MAX_REASON) -> str:
    """At most `limit` characters of a reason, whole words where they fit."""
    if len(reason) <= limit:
        return reason
    whole_words = textwrap.shorten(reason, limit, placeholder=" ...")
    return f"{reason[: limit - 4]} ..." if whole_words.strip() == "..." else whole_words
