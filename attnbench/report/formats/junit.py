"""The verdicts of a gate as JUnit XML."""

from xml.etree import ElementTree as ET

from attnbench.gate.judgement import RED, GateVerdicts
from attnbench.records.result import Outcome
from attnbench.report.terminal.gate_verdicts import annotation


def xml(judged: GateVerdicts, suite: str) -> str:
    """One test for each verdict: a red one is a failure, an inconclusive one is skipped."""
    failures = sum(verdict.outcome in RED for verdict in judged.verdicts)
    skipped = sum(verdict.outcome is Outcome.INCONCLUSIVE for verdict in judged.verdicts)
    root = ET.Element("testsuites")
    tests = ET.SubElement(
        root, "testsuite", name=_legal(suite), tests=str(len(judged.verdicts)), errors="0", failures=str(failures),
        skipped=str(skipped),
    )  # fmt: skip
    for verdict in judged.verdicts:
        timed = verdict.metric == "time_s" and verdict.head is not None
        test = ET.SubElement(
            tests, "testcase", classname=_legal(f"{suite}.{verdict.backend}"),
            name=_legal(f"{verdict.label}@{verdict.device} {verdict.metric}"),
            time=f"{verdict.head:.9f}" if timed else "0",
        )  # fmt: skip
        message = _legal(annotation(verdict))
        if verdict.outcome in RED:
            ET.SubElement(test, "failure", message=message, type=verdict.outcome.value).text = message
        elif verdict.outcome is Outcome.INCONCLUSIVE:
            ET.SubElement(test, "skipped", message=message)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _legal(text: str) -> str:
    """Drop the characters that XML 1.0 cannot represent: https://www.w3.org/TR/xml/#charsets."""
    return "".join(c for c in text if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff")
