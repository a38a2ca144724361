"""Options of `attnbench run` that change no measured value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from attnbench.cli.engine_options import EngineOptions
from attnbench.cli.options import Format, Progress, option


class RunOptions(EngineOptions, frozen=True, kw_only=True):
    """How `run` is started and shown; none of it changes a measured value."""

    dry_run: Annotated[bool, option("--dry-run", help="Print the plan without measuring.")] = False
    fail_fast: Annotated[bool, option("--fail-fast", help="Stop at the first failure.")] = False
    strict: Annotated[
        bool, option("--strict", help="Exit with code 5 also if a case is oom, skipped or unavailable.")
    ] = False
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            help="Run directory; an existing run in it is continued. By default a new one in results/.",
            metavar="DIR",
        ),
    ] = None
    resume: Annotated[
        str, option(help="Continue an existing run: its directory, its name, or `last`.", metavar="RUN")
    ] = ""
    retry_failed: Annotated[
        bool, option("--retry-failed", help="Measure the failed cases of a continued run again.")
    ] = False
    force: Annotated[bool, option("--force", help="Continue a run although the machine has changed.")] = False
    format: Format = "table"
    json: Annotated[bool, option("--json", help="Print JSON Lines: one object per case, then a summary.")] = False
    no_save: Annotated[bool, option("--no-save", help="Keep no run directory.")] = False
    report: Annotated[bool, option("--report", help="Also write the report, as `attnbench report` does.")] = False
    progress: Progress = "auto"

    @property
    def output_format(self) -> str:
        """The output format; `--json` is JSON Lines."""
        return "jsonl" if self.json else self.format
