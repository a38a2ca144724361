"""Results of large files: indexed, not held, and the same as those that are."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from attnbench import comparison, crew, frame, lines
from attnbench.attention.problem import Problem
from attnbench.lines import Lines
from attnbench.result import Result, Status
from attnbench.store import Manifest, Run
from tests.samples import result


def made() -> list[Result]:
    """Two launches of three arms on four problems; one fails, one gets a later line."""
    found = []
    for n in (64, 128, 256, 512):
        for launch in (0, 1):
            for share, backend in ((1.0, "naive"), (0.5, "sdpa:flash"), (0.7, "flex")):
                values = [share * 1e-6 * n * (1 + 0.01 * k + 0.02 * launch) for k in range(6)]
                facts = {"reference": "naive@cpu:threads=1", "memory_saved": n}
                found.append(result(values, backend, launch=launch, problem=Problem(seq_q=n), facts=facts))
    found[5] = result((), "flex", launch=1, problem=Problem(seq_q=64), reason="broke", status=Status.CRASHED)
    return [*found, msgspec.structs.replace(found[0], facts={**found[0].facts, "memory_saved": 7})]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Their lines, with garbage between and a torn one at the end."""
    encoded = [msgspec.json.encode(one) + b"\n" for one in made()]
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"".join([*encoded[:3], b"garbage\n", b'{"case": 1}\n', *encoded[3:], encoded[0][:40]]))
    return path


@pytest.fixture
def both(file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Result], Lines]:
    """The file held, and the file indexed."""
    held, skipped = lines.read(file)
    monkeypatch.setattr(lines, "HELD_MOST", 0)
    indexed, also = lines.read(file)
    assert skipped == also == 3
    assert isinstance(held, list)
    assert isinstance(indexed, Lines)
    return held, indexed


def test_an_indexed_file_gives_the_same_results(both: tuple[list[Result], Lines]) -> None:
    held, indexed = both
    assert list(indexed) == held
    assert [indexed[place] for place in range(len(indexed))] == held
    assert list(indexed[2:5]) == held[2:5]
    assert indexed[-1] == held[-1]
    assert [head.key for head in indexed.heads] == [one.key for one in held]
    assert not any(head.samples for head in indexed.heads)


def test_rows_and_comparisons_are_the_same_too(both: tuple[list[Result], Lines]) -> None:
    held, indexed = both
    rows = frame.rows(held)
    assert frame.rows(indexed) == rows
    assert [row["backend"] for row in rows[:3]] == ["naive", "sdpa:flash", "flex"]
    assert rows[0]["saved_bytes"] == 64  # the most of two launches: the later line gave 7 for the first
    manifest = Manifest(schema_version=1, attnbench="0", created_at="", suite="made", fingerprint="f")
    one, other = (
        Run(path=Path(name), manifest=manifest, results=results) for name, results in zip("ab", both, strict=True)
    )
    found = comparison.compare(one, other)
    assert {pair.change.value for pair in found.pairs} == {"~", "-"}
    again = comparison.compare(one, other, sides=(comparison.sides_of(rows), comparison.sides_of(rows)))
    assert [(pair.label, pair.change, pair.old_s) for pair in again.pairs] == [
        (pair.label, pair.change, pair.old_s) for pair in found.pairs
    ]


def test_some_are_chosen_by_their_heads(both: tuple[list[Result], Lines]) -> None:
    held, indexed = both

    def keep(one: Result) -> bool:
        return one.arm.backend == "naive" and one.launch == 1

    assert list(lines.chosen(indexed, keep)) == lines.chosen(held, keep) != []


def test_nonsense_behind_a_good_head_is_an_error_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = msgspec.json.encode(made()[0])
    path = tmp_path / "results.jsonl"
    path.write_bytes(good.replace(b'"unit":"s"', b'"unit":5') + b"\n")
    assert lines.read(path) == ([], 1)
    monkeypatch.setattr(lines, "HELD_MOST", 0)
    (found,), skipped = lines.read(path)
    assert (found.status, found.reason, skipped) == (
        Status.ERROR,
        "byte 0 of results.jsonl: its line holds no result",
        0,
    )


@pytest.mark.parametrize("pooled", [False, True])
def test_work_is_shared_in_order_and_may_hold_what_cannot_be_sent(pooled: bool) -> None:
    unsendable = {"add": lambda value: value + 1}
    assert crew.share(lambda item: unsendable["add"](item), range(500), pooled, pieces=7) == list(range(1, 501))


def test_an_error_in_shared_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        crew.share(lambda item: 1 / item, [1, 0], pieces=1)
