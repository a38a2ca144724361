"""The verdicts of a gate as a code quality report of GitLab."""

import hashlib

from attnbench.gate.judgement import RED, GateVerdicts
from attnbench.records.result import Outcome
from attnbench.report.formats.exported_run import json_text
from attnbench.report.terminal.gate_verdicts import annotation

SEVERITIES = {Outcome.BROKEN: "blocker", Outcome.MISSING: "critical", Outcome.REGRESSED: "major"}


def json(judged: GateVerdicts, suite: str) -> str:
    """https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format."""
    issues = [
        {
            "description": annotation(verdict), "check_name": f"attnbench/{verdict.metric}",
            "severity": SEVERITIES.get(verdict.outcome, "info"),
            "fingerprint": hashlib.sha256(f"{verdict.case_id}/{verdict.device}/{verdict.metric}".encode()).hexdigest(),
            "location": {"path": suite, "lines": {"begin": 1}},
        }
        for verdict in judged.verdicts
        if verdict.outcome in (*RED, Outcome.INCONCLUSIVE)
    ]  # fmt: skip
    return json_text(issues)
