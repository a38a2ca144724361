"""Shards of random suites: together the whole, no case twice; and their results merged are those of the whole."""

import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench import suite
from attnbench.engine import sweep
from attnbench.engine.plan import Plan
from attnbench.errors import UsageError
from attnbench.records import merge, run_directory
from attnbench.records.result import Result
from attnbench.records.run_directory import Manifest
from attnbench.records.run_writer import RunWriter
from attnbench.suite import Suite
from tests.samples import result

BACKENDS = ("naive", "sdpa:math", "sdpa:flash", "sdpa:cascade", "flex")


def some(*values: str) -> st.SearchStrategy[str]:
    """A comma list of these values."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True).map(",".join)


AXES = st.fixed_dictionaries(
    {"seq": some("1", "2", "3", "8", "9", "64")},
    optional={
        "batch": some("1", "2", "5"),
        "heads": some("2", "3"),
        "kv_heads": some("1", "2"),  # impossible beside 3 heads
        "mask": some("none", "causal", "window:4:0"),
        "mode": some("fwd", "bwd"),
        "dtype": some("fp32", "bf16"),
    },
)
NAMES = st.lists(st.sampled_from(BACKENDS), max_size=3).map(tuple)  # a repeated one is another copy


@st.composite
def suites(draw: st.DrawFn) -> list[Suite]:
    """One or two suites of one or two tables, which may have problems in common."""
    tables = st.builds(
        lambda axes, names: msgspec.structs.replace(suite.from_flags(axes).tables[0], backend=names), AXES, NAMES
    )
    drawn = draw(st.lists(st.lists(tables, min_size=1, max_size=2), min_size=1, max_size=2))
    return [Suite(name=f"s{number}", tables=tuple(each)) for number, each in enumerate(drawn)]


REQUESTS = st.builds(
    sweep.Request,
    device=st.sampled_from(["cpu:threads=1", "cpu:threads=1,cpu:threads=1:isa=avx2"]),
    backend=st.sampled_from(["naive,sdpa:math", "naive,naive,flex", ""]),
    shrink=st.sampled_from(["", "0.5", "0.3"]),
    only=st.sampled_from([(), ("seq=3..",)]),
    skip=st.sampled_from([(), ("backend=sdpa:math",)]),
)


def planned(request: sweep.Request, drawn: list[Suite]) -> Plan:
    """The plan; an empty one where nothing is left to run, or nothing is possible."""
    try:
        return sweep.prepare(request, suites=drawn).plan
    except UsageError:
        return Plan(groups=(), arms=())


def shards_of(request: sweep.Request, drawn: list[Suite], count: int) -> list[Plan]:
    shards = (f"{number + 1}/{count}" for number in range(count))
    return [planned(msgspec.structs.replace(request, shard=shard), drawn) for shard in shards]


def cases(plan: Plan) -> Counter[tuple[str, str]]:
    """Case and arm of everything that a plan measures or refuses."""
    groups = ((group.case(arm).id, arm.id) for group in plan.groups for arm in group.arms)
    return Counter([*groups, *((each.case.id, each.arm.id) for each in plan.refusals)])


@given(request=REQUESTS, drawn=suites(), count=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_shards_are_disjoint_and_together_the_whole(request: sweep.Request, drawn: list[Suite], count: int) -> None:
    whole = cases(planned(request, drawn))
    assert set(whole.values()) <= {1}
    assert sum(map(cases, shards_of(request, drawn, count)), Counter()) == whole


WHOLE = sweep.Request(axes={"seq": "1,2,8,64", "heads": "2,3", "kv_heads": "2"}, backend="naive,sdpa:math")
WHOLE = msgspec.structs.replace(WHOLE, device="cpu:threads=1")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """That of the whole, whose machine and packages are those of its shards."""
    return sweep.manifest(sweep.prepare(WHOLE), datetime(2026, 11, 30, tzinfo=UTC), ())


def results(plan: Plan) -> list[Result]:
    """Two restarts of each case, with a time that follows from the case alone."""
    return [
        msgspec.structs.replace(
            result([int(group.case(arm).id, 16) * 1e-15], problem=group.problem, restart=restart), arm=arm, group="",
            case=group.case(arm), case_id=group.case(arm).id,
        )
        for group in plan.groups for arm in group.arms for restart in (0, 1)
    ]  # fmt: skip


@given(data=st.data(), count=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_results_of_shards_merged_in_any_order_with_repetitions_are_those_of_the_whole(
    data: st.DataObject, count: int, manifest: Manifest
) -> None:
    shards = shards_of(WHOLE, [suite.from_flags(WHOLE.axes)], count)
    twice = data.draw(st.sets(st.integers(0, count - 1), max_size=2))
    order = data.draw(st.permutations([*range(count), *twice]))
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for place, shard in enumerate(shards[number] for number in order):
            of_shard = {"arms": shard.arms, "planned": shard.cases, "impossible": shard.impossible}
            with RunWriter(Path(folder) / str(place), msgspec.structs.replace(manifest, **of_shard)) as writer:
                writer.append(data.draw(st.permutations(results(shard))))
            runs.append(run_directory.read(Path(folder) / str(place)))
        conflicts = merge.merge(runs, Path(folder) / "merged")
        merged = run_directory.read(Path(folder) / "merged")
    whole = planned(WHOLE, [suite.from_flags(WHOLE.axes)])
    assert sorted(merged.results, key=lambda each: each.key) == sorted(results(whole), key=lambda each: each.key)
    assert len(conflicts) == sum(len(results(shards[number])) for number in twice)
    assert merged.manifest.planned == whole.cases
    assert set(merged.manifest.impossible) == set(whole.impossible) != set()
    assert set(merged.manifest.arms) == set(whole.arms)
