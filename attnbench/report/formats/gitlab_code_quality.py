"""The verdicts of a gate as a code quality report of GitLab."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from attnbench import backends
from attnbench.gate.judgement import RED, GateVerdicts
from attnbench.records.result import Outcome
from attnbench.report.formats.exported_run import json_text
from attnbench.report.terminal.gate_verdicts import annotation

SEVERITIES = {Outcome.BROKEN: "blocker", Outcome.MISSING: "critical", Outcome.REGRESSED: "major"}


def json(judged: GateVerdicts, suites: Sequence[str] = ()) -> str:
    """https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format.

    `suites` are those of the run, by name or file.
    """
    issues = [
        {
            "description": annotation(verdict), "check_name": f"attnbench/{verdict.metric}",
            "severity": SEVERITIES.get(verdict.outcome, "info"),
            "fingerprint": hashlib.sha256(f"{verdict.case_id}/{verdict.device}/{verdict.metric}".encode()).hexdigest(),
            "location": {"path": _path(verdict.backend, suites), "lines": {"begin": 1}},
        }
        for verdict in judged.verdicts
        if verdict.outcome in (*RED, Outcome.INCONCLUSIVE)
    ]  # fmt: skip
    return json_text(issues)


def _path(backend: str, suites: Sequence[str]) -> str:
    """A file of the repository, as GitLab needs one: of the kernel, else of the suite, else of the pipeline."""
    root = Path(os.environ.get("CI_PROJECT_DIR", ".")).resolve()
    for file in (backends.source_file(backend), *(Path(name) for name in suites if name.endswith(".toml"))):
        if file and (path := file.expanduser().resolve()).is_relative_to(root):
            return path.relative_to(root).as_posix()
    return os.environ.get("CI_CONFIG_PATH") or ".gitlab-ci.yml"
