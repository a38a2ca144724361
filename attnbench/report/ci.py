"""What continuous integration reads of a gate: JUnit, annotations of GitHub, code quality of GitLab."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from attnbench import units
from attnbench.gate.judgement import Judged
from attnbench.result import Outcome, Verdict

ANNOTATIONS_MOST = 10  # that GitHub shows of a step
RED = (Outcome.BROKEN, Outcome.MISSING, Outcome.REGRESSED)


def junit(judged: Judged, suite: str) -> str:
    """One test a verdict: red ones are failures, inconclusive ones skipped."""
    red = sum(one.outcome in RED for one in judged.verdicts)
    skipped = sum(one.outcome is Outcome.INCONCLUSIVE for one in judged.verdicts)
    root = ET.Element("testsuites")
    whole = ET.SubElement(
        root, "testsuite", name=_plain(suite), tests=str(len(judged.verdicts)), errors="0", failures=str(red),
        skipped=str(skipped),
    )  # fmt: skip
    for one in judged.verdicts:
        test = ET.SubElement(
            whole, "testcase", classname=_plain(f"{suite}.{one.backend}"), name=_plain(f"{one.label} {one.metric}"),
            time=f"{one.head:.9f}" if one.metric == "time_s" and one.head is not None else "0",
        )  # fmt: skip
        said = _plain(words(one))
        if one.outcome in RED:
            ET.SubElement(test, "failure", message=said, type=one.outcome.value).text = said
        elif one.outcome is Outcome.INCONCLUSIVE:
            ET.SubElement(test, "skipped", message=said)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def commands(judged: Judged) -> Iterator[str]:
    """Workflow commands of GitHub, the worst first; where there are more than it shows, the last says how many."""
    found = [one for one in judged.verdicts if one.outcome in (*RED, Outcome.INCONCLUSIVE)]
    shown = found if len(found) <= ANNOTATIONS_MOST else found[: ANNOTATIONS_MOST - 1]
    for one in shown:
        level = "error" if one.outcome in RED else "warning"
        yield f"::{level} title={_property(f'{one.outcome.value}: {one.label}')}::{_data(words(one))}"
    if len(shown) < len(found):
        yield f"::warning title=attnbench::and {len(found) - len(shown)} more"


def gitlab(judged: Judged, suite: str) -> str:
    """A code quality report: https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format."""
    severity = {Outcome.BROKEN: "blocker", Outcome.MISSING: "critical", Outcome.REGRESSED: "major"}
    found: list[dict[str, Any]] = [
        {
            "description": words(one), "check_name": f"attnbench/{one.metric}",
            "severity": severity.get(one.outcome, "info"),
            "fingerprint": hashlib.sha256(f"{one.case_id}/{one.device}/{one.metric}".encode()).hexdigest(),
            "location": {"path": suite, "lines": {"begin": 1}},
        }
        for one in judged.verdicts
        if one.outcome in (*RED, Outcome.INCONCLUSIVE)
    ]  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


def words(one: Verdict) -> str:
    """`b1 h8 ... naive@cpu: time_s +12.3 % (+11.0 % .. +13.6 %), margin 5.0 %: regressed`."""
    ends = f" ({units.change(one.interval[0])} .. {units.change(one.interval[1])})" if one.interval else ""
    change = f" {units.change(one.change)}{ends}, margin {units.change(one.margin)}" if one.change is not None else ""
    reason = f": {one.reason}" if one.reason else ""
    return f"{one.label}@{one.device}: {one.metric}{change}: {one.outcome.value}{reason}"


def _plain(value: str) -> str:
    """Without the characters that XML cannot hold at all."""
    return "".join(c for c in value if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff")


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
