"""Results of large files: indexed, with the same results as a file that is loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from attnbench.analysis import comparison, parallel
from attnbench.analysis.rows import rows_of
from attnbench.attention.problem import Problem
from attnbench.errors import StoreError
from attnbench.records import results_file
from attnbench.records.result import Cause, Result, Sample, Status, TimedBlock
from attnbench.records.results_file import Lines
from attnbench.records.run_directory import Manifest, Run
from tests.samples import result


def examples() -> list[Result]:
    """Two restarts of three arms on four problems; one fails, one gets a later line."""
    results = []
    for n in (64, 128, 256, 512):
        for restart in (0, 1):
            for share, backend in ((1.0, "naive"), (0.5, "sdpa:flash"), (0.7, "flex")):
                values = [share * 1e-6 * n * (1 + 0.01 * k + 0.02 * restart) for k in range(6)]
                facts = {"reference": "naive@cpu:threads=1", "memory_saved": n}
                results.append(result(values, backend, restart=restart, problem=Problem(seq_q=n), facts=facts))
    results[5] = result((), "flex", restart=1, problem=Problem(seq_q=64), reason="broke", status=Status.CRASHED)
    return [*results, msgspec.structs.replace(results[0], facts={**results[0].facts, "memory_saved": 7})]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Their lines, with garbage between and a torn one at the end."""
    encoded = [msgspec.json.encode(each) + b"\n" for each in examples()]
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"".join([*encoded[:3], b"garbage\n", b'{"case": 1}\n', *encoded[3:], encoded[0][:40]]))
    return path


@pytest.fixture
def both(file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Result], Lines]:
    """The file loaded, and the file indexed."""
    loaded, skipped = results_file.read(file)
    monkeypatch.setattr(results_file, "MAX_IN_MEMORY", 0)
    indexed, also = results_file.read(file)
    assert skipped == also == 3
    assert isinstance(loaded, list)
    assert isinstance(indexed, Lines)
    return loaded, indexed


def test_an_indexed_file_gives_the_same_results(both: tuple[list[Result], Lines]) -> None:
    loaded, indexed = both
    assert list(indexed) == loaded
    assert [indexed[place] for place in range(len(indexed))] == loaded
    assert list(indexed[2:5]) == loaded[2:5]
    assert indexed[-1] == loaded[-1]
    assert [head.key for head in indexed.heads] == [each.key for each in loaded]
    assert not any(head.samples for head in indexed.heads)


def test_plain_results_differ_in_the_tags_and_facts_of_blocks_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = TimedBlock(round=3, position=1, readings=2, calls=5, tags=("throttled",), facts={"load": 3.0})
    times = Sample(unit="s", values=(1.0, None), blocks=(block,))
    tagged = msgspec.structs.replace(examples()[0], samples={"time": times})
    file.write_bytes(msgspec.json.encode(tagged) + b"\n")
    monkeypatch.setattr(results_file, "MAX_IN_MEMORY", 0)
    results, _ = results_file.read(file)
    assert isinstance(results, Lines)
    assert list(results) == [tagged]
    (plain,) = results.plain()
    (plain_block,) = plain.samples["time"].blocks
    assert (plain.case, plain.arm, plain.facts) == (tagged.case, tagged.arm, tagged.facts)
    assert plain.samples["time"].values == times.values
    assert (plain_block.round, plain_block.position, plain_block.readings, plain_block.calls) == (3, 1, 2, 5)
    assert (plain_block.tags, plain_block.facts) == ((), {})


def test_a_line_with_an_unknown_key_holds_no_result_in_an_indexed_file_either(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = msgspec.json.encode(examples()[0])
    file.write_bytes(line[:-1] + b',"colour":"blue"}\n')
    assert results_file.read(file) == ([], 1)
    monkeypatch.setattr(results_file, "MAX_IN_MEMORY", 0)
    indexed, _ = results_file.read(file)
    assert [(each.status, each.samples) for each in indexed] == [(Status.ERROR, {})]


def test_rows_and_comparisons_are_the_same_too(both: tuple[list[Result], Lines]) -> None:
    loaded, indexed = both
    rows = rows_of(loaded)
    assert rows_of(indexed) == rows
    assert [row.backend for row in rows[:3]] == ["naive", "sdpa:flash", "flex"]
    assert rows[0].saved_bytes == 64  # the most of two restarts: the later line gave 7 for the first
    manifest = Manifest(schema_version=1, attnbench="0", created_at="", suite="examples", fingerprint="f")
    old, new = (
        Run(path=Path(name), manifest=manifest, results=results) for name, results in zip("ab", both, strict=True)
    )
    compared = comparison.compare(old, new)
    assert {pair.change.value for pair in compared.pairs} == {"undecided", "-"}
    again = comparison.compare(old, new, arms=(comparison.arms_of(rows), comparison.arms_of(rows)))
    assert [(pair.label, pair.change, pair.old_s) for pair in again.pairs] == [
        (pair.label, pair.change, pair.old_s) for pair in compared.pairs
    ]


def test_results_are_chosen_by_their_heads(both: tuple[list[Result], Lines]) -> None:
    loaded, indexed = both

    def keep(each: Result) -> bool:
        return each.arm.backend == "naive" and each.restart == 1

    assert list(results_file.chosen(indexed, keep)) == results_file.chosen(loaded, keep) != []


def test_a_line_with_a_valid_head_alone_is_an_error_with_its_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = msgspec.json.encode(examples()[0])
    path = tmp_path / "results.jsonl"
    path.write_bytes(good.replace(b'"unit":"s"', b'"unit":5') + b"\n")
    assert results_file.read(path) == ([], 1)
    monkeypatch.setattr(results_file, "MAX_IN_MEMORY", 0)
    (result,), skipped = results_file.read(path)
    assert (result.status, result.reason, skipped) == (
        Status.ERROR,
        "byte 0 of results.jsonl: its line holds no result",
        0,
    )


@pytest.mark.parametrize("pooled", [False, True])
def test_work_is_shared_in_order_and_may_hold_what_cannot_be_sent(pooled: bool) -> None:
    unsendable = {"add": lambda value: value + 1}
    assert parallel.share(lambda item: unsendable["add"](item), range(500), pooled, pieces=7) == list(range(1, 501))


def test_an_error_in_shared_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        parallel.share(lambda item: 1 / item, [1, 0], pieces=1)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("budget", Cause.BUDGET),
        ("budget: 45 s are over", Cause.BUDGET),
        ("a case no larger timed out at b1 h8 q64", Cause.NO_LARGER),
        ("needs 16.1 GiB, limit 9.6 GiB", Cause.MEMORY),
        ("no reference to verify against: expect: exited with code 1", Cause.NO_REFERENCE),
        ("something else", None),
    ],
)
def test_a_skipped_line_of_version_0_1_0_gets_its_cause_from_the_reason(reason: str, cause: Cause | None) -> None:
    line = msgspec.json.encode(result((), status=Status.SKIPPED, reason=reason))
    assert b"cause" not in line
    decoded = results_file.decoded(line)
    assert decoded is not None
    assert decoded.cause is cause


def test_only_a_skipped_line_gets_a_cause() -> None:
    decoded = results_file.decoded(msgspec.json.encode(result((), status=Status.ERROR, reason="budget")))
    assert decoded is not None
    assert decoded.cause is None


def test_a_stored_cause_counts_whatever_the_reason() -> None:
    skipped = result((), status=Status.SKIPPED, reason="needs time", cause=Cause.BUDGET)
    assert results_file.decoded(msgspec.json.encode(skipped)) == skipped


def test_a_file_that_cannot_be_read_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=f"{file.parent} cannot be read: Is a directory"):
        results_file.read(file.parent)
    monkeypatch.setattr(results_file, "MAX_IN_MEMORY", 0)
    results, _ = results_file.read(file)
    assert isinstance(results, Lines)
    with file.open("ab") as unreadable, pytest.raises(StoreError, match=f"{file} cannot be read: Bad file descriptor"):
        list(Lines(file, results.marks, unreadable))
