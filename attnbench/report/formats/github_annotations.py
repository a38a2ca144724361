"""The verdicts of a gate as workflow commands of GitHub Actions.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from collections.abc import Iterator

from attnbench.gate.judgement import RED, GateVerdicts
from attnbench.records.result import Outcome
from attnbench.report.terminal.gate_verdicts import annotation

MAX_ANNOTATIONS = 10  # GitHub shows no more of one step


def commands(judged: GateVerdicts) -> Iterator[str]:
    """Errors and warnings, worst first; if there are more than GitHub shows, the last one says how many."""
    verdicts = [verdict for verdict in judged.verdicts if verdict.outcome in (*RED, Outcome.INCONCLUSIVE)]
    shown = verdicts if len(verdicts) <= MAX_ANNOTATIONS else verdicts[: MAX_ANNOTATIONS - 1]
    for verdict in shown:
        level = "error" if verdict.outcome in RED else "warning"
        title = (
            _escape(f"{verdict.outcome.value}: {verdict.label}@{verdict.device}")
            .replace(":", "%3A")
            .replace(",", "%2C")
        )
        yield f"::{level} title={title}::{_escape(annotation(verdict))}"
    if len(shown) < len(verdicts):
        yield f"::warning title=attnbench::and {len(verdicts) - len(shown)} more"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
