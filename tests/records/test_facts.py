"""Facts have ranges; one outside is an error in tests, and left out with a note elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from attnbench.analysis.rows import rows_of
from attnbench.records import facts
from attnbench.records.facts import RANGES, FactRangeError, within_ranges
from attnbench.records.result import Environment
from attnbench.records.run_directory import VERSION, Manifest, read
from attnbench.records.run_writer import RunWriter
from tests.samples import result

STORED = Path(__file__).parents[1] / "stored"
MANIFEST = Manifest(schema_version=VERSION, attnbench="0", created_at="2026-01-01T00:00:00+00:00", suite="s")


def test_a_fact_outside_its_range_raises_an_error_with_its_name(tmp_path: Path) -> None:
    wrong = result([1e-3], facts={"block_sparsity": -12700.0})
    with RunWriter(tmp_path / "run", MANIFEST) as writer, pytest.raises(FactRangeError, match="block_sparsity"):
        writer.append([wrong])


def test_outside_of_tests_the_fact_is_left_out_and_the_result_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "STRICT", False)
    wrong = result([1e-3], facts={"block_sparsity": -12700.0, "energy": {"calls": -1}, "absent": {"a": "b"}})
    (block,) = wrong.samples["time"].blocks
    hot = msgspec.structs.replace(block, facts={"temperature_c": 4e9, "load": 0.5})
    time = msgspec.structs.replace(wrong.samples["time"], blocks=(hot,))
    with RunWriter(tmp_path / "run", MANIFEST) as writer:
        writer.append([msgspec.structs.replace(wrong, samples={"time": time})])
        (stored,) = writer.run.results
    assert stored.facts["energy"] == {}
    assert set(stored.facts["absent"]) == {"a", "block_sparsity", "calls", "temperature_c"}
    assert stored.samples["time"].blocks[0].facts == {"load": 0.5}
    assert "block_sparsity is missing: -12700.0 was reported" in str(rows_of([stored])[0].notes)


def test_facts_of_an_environment_have_ranges_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(
        device="CPU", facts={"threads": 0, "isa": "AVX2", "timer_resolution_s": 4e-8, "mkl": True}
    )
    with RunWriter(tmp_path / "run", MANIFEST) as writer:
        with pytest.raises(FactRangeError, match="threads"):
            writer.update(environments={"arm": environment}, seconds={})
        monkeypatch.setattr(facts, "STRICT", False)
        writer.update(environments={"arm": environment}, seconds={})
    stored = read(tmp_path / "run").manifest.environments["arm"].facts
    assert set(stored) == {"isa", "timer_resolution_s", "mkl", "absent"}
    assert "threads is missing: 0 was reported" in stored["absent"]["threads"]


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_of_a_range_are_kept_and_what_is_below_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "STRICT", False)
    low, high = RANGES[name]
    assert within_ranges({name: low}) == ({name: low}, {})
    assert within_ranges({name: high}) == ({name: high}, {})
    assert set(within_ranges({name: math.nextafter(low, -math.inf)})[1]) == {name}


def numbers(values: dict[str, object]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name


def test_every_number_among_stored_facts_has_a_range() -> None:
    names: set[str] = set()
    for path in STORED.rglob("results.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            held = json.loads(line)
            names |= set(numbers(held.get("facts", {})))
            for sample in held.get("samples", {}).values():
                for block in sample.get("blocks", ()):
                    names |= set(numbers(block.get("facts", {})))
    for path in STORED.rglob("run.json"):
        for environment in json.loads(path.read_text(encoding="utf-8")).get("environments", {}).values():
            names |= set(numbers(environment.get("facts", {})))
    assert "timer_resolution_s" in names
    assert {name.removesuffix("_before") for name in names} <= set(RANGES)
