"""The glossary of the documentation and that of the report."""

from __future__ import annotations

from pathlib import Path

from attnbench.report.glossary import TERMS

PAGE = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")


def test_documentation_and_report_define_terms_alike() -> None:
    for term, meaning in TERMS.items():
        assert f"| **{term}** | {meaning} |" in PAGE
