"""From stored results of base and head to verdicts, exit codes, and what CI reads; nothing is measured."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from attnbench import cli
from attnbench.attention.problem import Problem
from attnbench.errors import Exit, NotComparableError, UsageError
from attnbench.gate import judgement
from attnbench.gate.record import DEFAULT_SETTINGS
from attnbench.records import run_writer
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Cause, Outcome, Result, Status, sample
from attnbench.records.run_directory import Manifest, Run
from attnbench.report.formats import gate_comment, github_annotations, gitlab_code_quality, junit
from attnbench.report.terminal import gate_verdicts
from tests.samples import timed

WOBBLE = (0.0, 0.002, -0.002, 0.001, -0.001, 0.003)


def lines(
    head: float = 1.0, restarts: int = 18, n: int = 64, backend: str = "naive",
    base_fields: dict[str, Any] | None = None,
    head_fields: dict[str, Any] | None = None, twin: float | None = None, memory: tuple[int, int] = (2**20, 2**20),
    errors: tuple[float, float] = (1e-7, 1e-7), noise: float = 1.0,
) -> list[Result]:  # fmt: skip
    """One case of base and head over restarts, head slower by a factor; the last two stages in full."""
    case = Case(problem=Problem(seq_q=n), backend=backend)
    results = []
    for restart in range(restarts):
        shift = math.exp(noise * WOBBLE[restart % len(WOBBLE)])
        for number, factor, fields in ((1, 1.0, base_fields), (2, head * shift, head_fields), (3, twin, None)):
            if factor is None:
                continue
            facts = {"errors": {"out": {"max_abs": 1e-6, "rms": errors[number == 2]}}}
            samples = {"time": timed([1e-3 * factor] * 5), "peak_memory": sample("B", [float(memory[number == 2])])}
            plain: dict[str, Any] = {"status": Status.OK, "samples": samples, "facts": facts}
            if fields and fields.get("status", Status.OK) is not Status.OK:
                plain = {"samples": {}, "facts": {}}
            side = ("head",) if number == 2 else ("base",)
            results.append(
                Result(
                    case=case, case_id=case.id,
                    arm=Arm(backend=backend, device="cpu:threads=1", path=side, copy=number),
                    restart=restart, group="g", **{**plain, **(fields or {})},
                )
            )  # fmt: skip
    return results


def gated(*results: Result, **record: Any) -> Run:
    """A stored gate."""
    plain = {
        "base": {"name": "HEAD~1"}, "head": {"name": "the working tree"}, "screen_launches": 6, "today": "2026-11-21",
        "settings": msgspec.to_builtins(DEFAULT_SETTINGS), "seeds": {},
        "floor": {"factor": 0.0, "runs": 0, "resolution_s": 0.0},
    }  # fmt: skip
    manifest = Manifest(
        schema_version=1, attnbench="0", created_at="2026-11-21T00:00:00Z", suite="ci", fingerprint="f",
        gate=plain | record,
    )  # fmt: skip
    return Run(path=Path("gate"), manifest=manifest, results=list(results))


def outcome(run: Run, metric: str = "time_s") -> Outcome:
    (verdict,) = [verdict for verdict in judgement.judge(run).verdicts if verdict.metric == metric]
    return verdict.outcome


REFUSED = {"status": Status.UNSUPPORTED, "reason": "no such mask"}
CUT = {"status": Status.SKIPPED, "reason": "budget", "cause": Cause.BUDGET}
WRONG = {"status": Status.INCORRECT, "reason": "out: error 0.3"}


@pytest.mark.parametrize(
    ("results", "code"),
    [
        (lines(), Exit.OK),
        (lines(head=1.5), Exit.REGRESSED),
        (lines(head=0.5), Exit.OK),  # better is no failure
        (lines(restarts=1), Exit.INCONCLUSIVE),
        (lines(head_fields=WRONG), Exit.FAILED),
        (lines(head_fields=REFUSED), Exit.FAILED),
        (lines(head_fields={"status": Status.OOM, "reason": "no memory"}), Exit.FAILED),
        (lines(base_fields=REFUSED) + lines(n=128), Exit.OK),
        (lines(base_fields=REFUSED, head_fields=REFUSED), Exit.NOTHING_MEASURED),
        (lines(base_fields=WRONG, head_fields=WRONG), Exit.FAILED),
        ([line for line in lines() if line.arm.copy == 1], Exit.FAILED),
        ([line for line in lines() if line.arm.copy == 2] + lines(n=128), Exit.OK),
        (lines(memory=(2**24, 2**25)), Exit.REGRESSED),
        (lines(memory=(2**24, 2**24 + 2**19)), Exit.OK),
        (lines(head=1.5) + lines(n=128, head_fields=WRONG), Exit.FAILED),  # the first that holds of 6, 5, 1, 3
        (lines(head=1.5) + lines(n=128, restarts=1), Exit.REGRESSED),
        (lines(head_fields=CUT) + lines(n=128), Exit.INCONCLUSIVE),
        (lines(head_fields=CUT, base_fields=CUT) + lines(n=128), Exit.INCONCLUSIVE),
        (lines(head_fields=CUT) + lines(n=128, head_fields=CUT, base_fields=CUT), Exit.NOTHING_MEASURED),
        (lines() + lines(restarts=20, head_fields=CUT)[-2:] + lines(n=128), Exit.OK),  # only its last restart was cut
        ([], Exit.NOTHING_MEASURED),
    ],
)
def test_the_exit_code_is_that_of_the_worst(results: list[Result], code: Exit) -> None:
    judged = judgement.judge(gated(*results))
    assert gate_verdicts.exit_code(judged) is code
    accepted = Exit.OK if code is Exit.INCONCLUSIVE else code
    assert gate_verdicts.exit_code(judged, inconclusive_ok=True) is accepted


def test_a_base_that_runs_nothing_is_not_comparable() -> None:
    broken = {"status": Status.ERROR, "reason": "open: SyntaxError: '(' was never closed"}
    with pytest.raises(NotComparableError, match=r"HEAD~1 runs none of the cases.*never closed"):
        judgement.judge(gated(*lines(base_fields=broken), *lines(n=128, base_fields=broken)))
    # One case that both can run is something to compare; and what is broken in head comes first.
    assert gate_verdicts.exit_code(judgement.judge(gated(*lines(base_fields=broken), *lines(n=128)))) is Exit.OK
    assert (
        gate_verdicts.exit_code(judgement.judge(gated(*lines(base_fields=broken, head_fields=broken)))) is Exit.FAILED
    )
    absent = {"status": Status.UNAVAILABLE, "reason": "no file 'k.py'"}
    assert gate_verdicts.exit_code(judgement.judge(gated(*lines(base_fields=absent)))) is Exit.OK


def test_an_open_case_may_be_let_pass() -> None:
    judged = judgement.judge(gated(*lines(restarts=1)))
    assert gate_verdicts.exit_code(judged, inconclusive_ok=True) is Exit.OK


def test_a_new_backend_that_base_lacks_is_new_and_one_that_head_lost_is_broken() -> None:
    new = judgement.judge(gated(*lines(base_fields=REFUSED))).verdicts
    assert [(each.metric, each.outcome, gate_verdicts.cells(each)[:3]) for each in new] == [
        ("time_s", Outcome.NEW, ("-", "1.00 ms", "-"))
    ]
    verified_alone = judgement.judge(gated(*lines(base_fields=REFUSED, head_fields={"samples": {}}))).verdicts
    assert [(each.metric, each.outcome) for each in verified_alone] == [("status", Outcome.NEW)]
    assert outcome(gated(*lines(head_fields=REFUSED)), "status") is Outcome.BROKEN
    assert outcome(gated(*[line for line in lines() if line.arm.copy == 1]), "status") is Outcome.MISSING


def test_errors_must_grow_on_every_seed() -> None:
    grown = lines(errors=(1e-7, 2e-7))
    key = f"{grown[0].case.id}@cpu:threads=1"
    assert outcome(gated(*grown), "rms_err") is Outcome.SAME  # one seed alone says nothing
    more = {key: [(1e-7, 2e-7)] * 4}
    assert outcome(gated(*grown, seeds=more), "rms_err") is Outcome.REGRESSED
    more = {key: [(1e-7, 2e-7)] * 3 + [(1e-7, 1e-7)]}
    assert outcome(gated(*grown, seeds=more), "rms_err") is Outcome.SAME


def test_a_tolerance_holds_for_what_it_matches_and_until_its_day() -> None:
    slower = lines(head=1.08)
    table = {"tolerance": [{"match": "*naive", "time": "20%", "reason": "new masks", "expires": "2026-11-30"}]}
    assert outcome(gated(*slower)) is Outcome.REGRESSED
    assert outcome(gated(*slower, settings=table)) is Outcome.SAME
    assert outcome(gated(*slower, settings=table, today="2026-11-30")) is Outcome.SAME  # its last day
    late = gated(*slower, settings=table, today="2026-12-01")
    assert outcome(late) is Outcome.REGRESSED
    assert "expired on 2026-11-30: 2% holds again" in judgement.judge(late).notes[0]


def test_an_a_a_control_that_differs_makes_all_inconclusive() -> None:
    judged = judgement.judge(gated(*lines(head=1.5, twin=1.3)))
    assert {verdict.outcome for verdict in judged.verdicts if verdict.metric == "time_s"} == {Outcome.INCONCLUSIVE}
    assert "too noisy to judge" in judged.doubt
    assert gate_verdicts.exit_code(judged) is Exit.INCONCLUSIVE


def test_a_time_that_cannot_be_computed_with_leaves_the_case_open() -> None:
    broken = [
        msgspec.structs.replace(line, samples={"time": timed([float("nan")] * 5)}) if line.arm.copy == 2 else line
        for line in lines()
    ]
    judged = judgement.judge(gated(*broken, *lines(n=128)))
    assert gate_verdicts.exit_code(judged) is Exit.INCONCLUSIVE
    assert "no restart has a finite time" in next(verdict.reason for verdict in judged.verdicts if verdict.reason)


def test_a_plain_run_is_not_a_gate() -> None:
    with pytest.raises(UsageError, match="not a gate run"):
        judgement.judge(Run(path=Path("r"), manifest=plain(), results=[]))


def plain() -> Manifest:
    return Manifest(schema_version=1, attnbench="0", created_at="", suite="ci", fingerprint="f")


# -- what is read ------------------------------------------------------------------------------------------------------


def mixed() -> tuple[Run, judgement.GateVerdicts]:
    evil = "<b>|`x`,\u202e:::%0A.py:f"
    run = gated(
        *lines(head=1.5), *lines(n=128), *lines(n=256, head_fields=WRONG), *lines(n=512, restarts=1, backend=evil)
    )
    return run, judgement.judge(run)


def test_the_table_says_what_changed_first_and_what_to_do() -> None:
    run, judged = mixed()
    text = "\n".join(gate_verdicts.text(run, judged, 100))
    places = [text.index(word) for word in ("broken", "regressed", "inconclusive")]
    assert places == sorted(places)
    assert "the working tree against HEAD~1" in text
    (closer, *_) = [
        line.partition(": attnbench profile ")[2] for line in text.splitlines() if "attnbench profile" in line
    ]
    assert cli.invoke(["run", *shlex.split(closer), "--dry-run"]) == 0  # profile takes the same options
    assert "q128" not in text
    assert "q128" in "\n".join(gate_verdicts.text(run, judged, 100, everything=True))
    assert text.splitlines()[-1] == "4 cases: 1 broken, 1 regressed, 1 inconclusive, 1 same."


def test_a_slower_clock_is_no_slower_kernel() -> None:
    """On a GPU a regression must be one in cycles too."""

    def clocked(measured: Result, hertz: float) -> Result:
        time = measured.samples["time"]
        blocks = tuple(
            msgspec.structs.replace(block, facts={"sm_clock_hz_before": hertz, "sm_clock_hz": hertz})
            for block in time.blocks
        )
        samples = measured.samples | {"time": msgspec.structs.replace(time, blocks=blocks)}
        return msgspec.structs.replace(measured, samples=samples)

    slower = lines(head=1.25)
    same_clock = gated(*(clocked(line, 1.5e9) for line in slower))
    assert outcome(same_clock) is Outcome.REGRESSED
    lower = gated(*(clocked(line, 1.1e9 if line.arm.copy == 2 else 1.5e9) for line in slower))
    (verdict,) = [verdict for verdict in judgement.judge(lower).verdicts if verdict.metric == "time_s"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "not in cycles" in verdict.reason
    faster = gated(*(clocked(line, 1.9e9 if line.arm.copy == 2 else 1.5e9) for line in lines(head=0.8)))
    assert outcome(faster) is Outcome.INCONCLUSIVE


def looked_at(restarts: int = 18, **record: Any) -> list[str]:
    request = {"suites": ["ci"], "axes": {"seq": "64"}, "backend": "kernel.py:f", "device": "cpu:threads=1"}
    run = gated(*lines(head=1.5, restarts=restarts), **record)
    run = msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, request=request))
    return list(gate_verdicts.details(run, judgement.judge(run).verdicts))


def test_a_red_case_shows_its_restarts() -> None:
    label, strip, legend, *_ = looked_at(restarts=12)
    assert label == "b1 h8 q64 kv64 d64 none fp32 fwd naive@cpu:threads=1"
    assert strip.startswith("  restarts: 0.0 % [|")
    assert strip.endswith("] +50.5 %")
    shown = strip.partition("[")[2].partition("]")[0]
    assert len(shown) == gate_verdicts.STRIP
    # Twelve restarts of six values close to one another: every mark stands right of the margin.
    assert shown.index("|") == 0
    assert shown.index("|") < shown.index(":") < min(shown.index(c) for c in shown if c.isdigit() or c == "o")
    assert sorted(set(shown) - {" ", "|", ":"}) == ["#", "2"]  # ten and two
    assert "margin 2.1 %" in legend


def test_json_has_every_verdict_and_a_summary() -> None:
    run, judged = mixed()
    records = [gate_verdicts.record(verdict) for verdict in judged.verdicts]
    assert {"time_s", "rms_err", "peak_bytes", "status"} <= {record["metric"] for record in records}
    last = gate_verdicts.summary(run, judged, Exit.FAILED)
    assert last["exit_code"] == 5
    assert sum(last["verdicts"].values()) == len(records)
    json.dumps([records, last], allow_nan=False)


def test_markdown_is_escaped_and_cut() -> None:
    run, judged = mixed()
    text = gate_comment.markdown(run, judged)
    assert "<b>" not in text
    assert "q128" not in text
    folded = text.partition("<details>")[2].partition("</details>")[0]
    assert 0 < text.count("attnbench profile ") == folded.count("attnbench profile ")
    short = gate_comment.markdown(run, judged, max_bytes=1200)
    assert len(short.encode()) <= 1200
    assert "more rows: attnbench gate gate\n" in short


def test_junit_is_xml_with_a_test_for_each_verdict() -> None:
    _, judged = mixed()
    suite = ET.fromstring(junit.xml(judged, "ci"))[0]
    assert int(suite.get("tests", "0")) == len(judged.verdicts) == len(suite)
    assert int(suite.get("failures", "0")) == len(suite.findall("testcase/failure")) == 2
    assert int(suite.get("skipped", "0")) == len(suite.findall("testcase/skipped")) == 1


def test_annotations_are_at_most_ten_the_worst_first() -> None:
    _, judged = mixed()
    commands = list(github_annotations.commands(judged))
    assert [line.split()[0] for line in commands] == ["::error", "::error", "::warning"]
    assert not any("\n" in line for line in commands)
    assert "%250A" in commands[-1]
    many = judgement.judge(gated(*(line for n in range(1, 15) for line in lines(head=2.0, n=n))))
    commands = list(github_annotations.commands(many))
    assert len(commands) == 10
    assert commands[-1].endswith("and 5 more")


def test_gitlab_gets_fingerprints_that_stay() -> None:
    _, judged = mixed()
    entries = json.loads(gitlab_code_quality.json(judged))
    assert {"description", "check_name", "fingerprint", "severity", "location"} <= set(entries[0])
    assert len({entry["fingerprint"] for entry in entries}) == len(entries) == 3
    assert json.loads(gitlab_code_quality.json(judged)) == entries


def test_a_stored_gate_is_judged_again_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = mixed()
    with run_writer.RunWriter(tmp_path / "gate", run.manifest) as writer:
        writer.append(run.results)
    files = {name: tmp_path / name for name in ("comment.md", "junit.xml", "gitlab.json")}
    options = [
        "--markdown",
        str(files["comment.md"]),
        "--junit",
        str(files["junit.xml"]),
        "--gitlab",
        str(files["gitlab.json"]),
    ]
    assert cli.invoke(["gate", str(tmp_path / "gate"), *options]) == 5
    out, err = capsys.readouterr()
    assert "1 regressed" in out
    assert all(path.stat().st_size > 100 for path in files.values())
    assert all(f"wrote {path}\n" in err for path in files.values())
    assert cli.invoke(["gate", str(tmp_path / "gate"), "--json"]) == 5
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[-1]["type"] == "summary"


def test_two_stored_runs_are_for_another_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = mixed()
    old, new = (tmp_path / name for name in ("old", "new"))
    for path in (old, new):
        with run_writer.RunWriter(path, msgspec.structs.replace(run.manifest, gate={})) as writer:
            writer.append(run.results)
    assert cli.invoke(["gate", str(old), str(new)]) == 2
    err = capsys.readouterr().err
    assert f"to compare two: attnbench compare {old} {new}, or with verdicts: " in err
    assert err.endswith(f"attnbench gate {new} --baseline {old}\n")
    assert cli.invoke(["gate", "ci", str(new)]) == 2
    assert f"{new} is a stored run, which gate takes alone" in capsys.readouterr().err
    assert cli.invoke(["gate", str(new)]) == 2
    assert "new is not a gate run: judge it against a stored run with --baseline RUN" in capsys.readouterr().err


def test_the_step_summary_the_output_and_annotations_on_github(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = mixed()
    with run_writer.RunWriter(tmp_path / "gate", run.manifest) as writer:
        writer.append(run.results)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    (tmp_path / "output").write_text("verdict=nothing measured\n")
    assert cli.invoke(["gate", str(tmp_path / "gate"), "--github"]) == 5
    assert "::error title=regressed%3A" in capsys.readouterr().out
    assert (tmp_path / "summary.md").read_text().startswith("### attnbench gate: **failed**")
    assert (tmp_path / "output").read_text() == "verdict=nothing measured\nverdict=failed\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no base: give one of --base-ref REF"),
        (["--noop", "--base-ref", "HEAD"], "--base-ref and --noop name the base twice"),
        (["--noop", "--inconclusive", "maybe"], "--inconclusive: no choice 'maybe'; there are fail, ok"),
        (["--noop", "-b", "naive,naive"], "naive twice: a gate has one base and one head"),
        (["nowhere", "--noop"], "no suite 'nowhere'"),
        (["nowhere"], "no run or suite 'nowhere'; there are bart-large"),
        (["results/x"], "no suite and no run of the name 'results/x'; "),
        (["results/x", "--noop"], "/results/ holds no run; suites: attnbench list suites"),
        (["results/x", "--baseline", "main"], "no suite and no run of the name 'results/x'; "),
        (["ci"], "no base: give one of --base-ref REF"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(tmp_path / "results"))
    assert cli.invoke(["gate", *options]) == 2
    assert message in capsys.readouterr().err
