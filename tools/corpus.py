"""Judges the silent-bug corpus, stores the verdicts, and writes the tables of docs/numerics.md.

`python -m tools.corpus`; `--docs` writes the tables from the stored verdicts alone.
"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import msgspec

from attnbench._version import __version__
from attnbench.report.formats import corpus as report
from attnbench.studies.corpus import study
from attnbench.studies.corpus.study import RuleVerdict

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "reference" / "corpus" / "verdicts.json"
PAGE = ROOT / "docs" / "numerics.md"
BEGIN, END = "<!-- corpus: written by tools/corpus.py -->\n", "<!-- end of corpus -->\n"


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """All verdicts, and what they were made with."""

    date: str
    version: str
    torch: str
    verdicts: list[RuleVerdict]


def measure() -> Stored:
    """Judge all kernels by all rules."""
    import torch

    verdicts = list(study.judge(study.sample(None), study.RULES))
    return Stored(date=f"{date.today()}", version=__version__, torch=str(torch.__version__), verdicts=verdicts)


def stored() -> Stored:
    """The stored verdicts."""
    return msgspec.json.decode(RESULT.read_bytes(), type=Stored)


def page(text: str, verdicts: list[RuleVerdict]) -> str:
    """The text of the page with the tables of these verdicts."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{report.tables(verdicts)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Measure, unless told not to; write the page."""
    if "--docs" not in sys.argv:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(measure()), indent=1) + b"\n")
    PAGE.write_text(page(PAGE.read_text(), stored().verdicts))


if __name__ == "__main__":
    main()
