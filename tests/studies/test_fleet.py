"""Nodes of one hardware model: a slow one is found with its cause, equal ones are not flagged."""

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attnbench import cli
from attnbench.analysis.node_effects import node_effects
from attnbench.attention.problem import Problem
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.ceilings import Ceilings, Point
from attnbench.records.result import Environment, Facts, Result, Status, TimedBlock, sample
from attnbench.records.run_directory import Run
from attnbench.records.run_writer import RunWriter
from attnbench.studies.fleet import HardwareModel, NodeReport, fleet
from tests.samples import ceilings, run

GPU = "NVIDIA H100"
CPU = "EPYC"
SEQS = tuple(range(64, 256, 16))
BACKENDS = ("naive", "sdpa:flash")


def measured(
    node: str,
    slower: float = 0.0,
    *,
    device: str = "cuda:0",
    restarts: int = 2,
    seed: int = 0,
    backends: tuple[str, ...] = BACKENDS,
    tags: tuple[str, ...] = (),
    noisy: bool = False,
    **block: float,
) -> list[Result]:
    """Results of a node that is slower by a share, with noise; `tags` and `block`: of its timed blocks.

    `noisy`: the fastest of three blocks takes two thirds of the others.
    """
    draw = random.Random(f"{node} {seed}")
    blocks = tuple(TimedBlock(round=number, position=0, readings=1, tags=tags, facts=block) for number in range(3))
    facts: Facts = {"node": node} if node else {}
    results = []
    for restart in range(restarts):
        shift = draw.gauss(0, 0.003)  # of all cases of a restart
        for seq in SEQS:
            for backend in backends:
                case = Case(problem=Problem(seq_q=seq), backend=backend)
                seconds = seq * 1e-6 * (1 + slower) * math.exp(shift + draw.gauss(0, 0.006))
                arm, values = (
                    Arm(backend=backend, device=device),
                    [seconds * (0.67 if noisy else 1.0), seconds, seconds],
                )
                samples = {"time": sample("s", values, blocks)}
                results.append(
                    Result(
                        case=case, case_id=case.id, arm=arm, status=Status.OK, restart=restart, samples=samples,
                        facts=facts,
                    )
                )  # fmt: skip
    return results


def on_cluster(*results: list[Result], model: str = GPU, **facts: Facts) -> Run:
    """One run on several nodes; further facts by node. No restart of a case is on two of them."""
    every = [
        msgspec.structs.replace(result, restart=10 * number + result.restart)
        for number, of_node in enumerate(results)
        for result in of_node
    ]
    nodes = {str(result.facts["node"]): {"machine": {"gpus": [model], "cpu": CPU}} for result in every}
    return run(*every, nodes={name: node | facts.get(name, {}) for name, node in nodes.items()})


def alone(name: str, results: list[Result], rates: Ceilings | None = None, **facts: float) -> Run:
    """A run of a single machine, named by its directory."""
    environments = {result.arm.id: Environment(device=GPU, facts=facts) for result in results}
    known = {"cuda:0": rates} if rates else {}
    return msgspec.structs.replace(run(*results, environments=environments, ceilings=known), path=Path(name))


def only(models: list[HardwareModel]) -> dict[str, NodeReport]:
    """The nodes of the one model, by name."""
    (model,) = models
    return {node.node: node for node in model.nodes}


@pytest.mark.parametrize("slower", [0.05, 0.2])
def test_a_slow_node_is_found_and_the_others_are_not_flagged(slower: float) -> None:
    nodes = only(fleet([on_cluster(measured("a"), measured("b"), measured("c", slower), measured("d"))], margin=0.02))
    assert {name: node.verdict for name, node in nodes.items()} == {"a": "", "b": "", "c": "slow", "d": ""}
    assert nodes["c"].change == pytest.approx(slower, abs=0.01)
    assert nodes["c"].by_backend == pytest.approx({"naive": slower, "sdpa:flash": slower}, abs=0.015)
    assert (nodes["c"].cases, nodes["c"].restarts) == (24, 2)


def test_of_two_nodes_the_slower_one_is_flagged_by_their_whole_difference() -> None:
    nodes = only(fleet([on_cluster(measured("a"), measured("b", 0.1))]))
    assert {name: node.verdict for name, node in nodes.items()} == {"a": "", "b": "slow"}
    assert nodes["b"].change == pytest.approx(0.1, abs=0.01)


def test_a_fast_node_and_a_slow_one_are_told_apart() -> None:
    others = [measured(name) for name in "abc"]
    nodes = only(fleet([on_cluster(*others, measured("d", -0.1), measured("e", 0.1))]))
    assert {name: node.verdict for name, node in nodes.items() if node.verdict} == {"d": "fast", "e": "slow"}


def test_equal_nodes_are_rarely_flagged_and_their_intervals_hold_zero() -> None:
    """100 fleets of equal nodes, whose restarts differ by 1 % and cases by 1 %: one in 20 may miss 0."""
    draw = random.Random(0)
    flagged = missed = 0
    for _ in range(100):
        times: dict[str, dict[str, dict[str, float]]] = {}
        for node in "abcd":
            shifts = [draw.gauss(0, 0.01) for _ in range(3)]
            times[node] = {
                str(case): {
                    str(number): math.exp(case + shift + draw.gauss(0, 0.01)) for number, shift in enumerate(shifts)
                }
                for case in range(12)
            }
        effects = node_effects(times).values()
        missed += any(effect.low > 0 or effect.high < 0 for effect in effects)
        flagged += any(effect.low > math.log(1.03) or effect.high < -math.log(1.03) for effect in effects)
    assert flagged <= 2
    assert missed <= 10  # 5 are expected


def test_nodes_that_share_a_part_of_the_cases_are_compared_by_that_part() -> None:
    """As the groups of a run on a cluster: each restart of a case is on some node."""
    draw = random.Random(1)
    times: dict[str, dict[str, dict[str, float]]] = {name: {} for name in "abc"}
    for case in range(60):
        for restart in range(3):
            node = draw.choice("abc")
            seconds = math.exp(draw.gauss(0, 0.005) + case / 10) * (1.2 if node == "c" else 1.0)
            times[node].setdefault(str(case), {})[str(restart)] = seconds
    effects = node_effects(times)
    assert math.exp(effects["c"].log) == pytest.approx(1.2, rel=0.01)
    assert effects["c"].low > math.log(1.1)
    assert all(effects[name].low < 0.01 and effects[name].high > -0.01 for name in "ab")


def test_a_lower_clock_is_named_as_the_cause() -> None:
    clocks = {"a": 1.98e9, "b": 1.98e9, "c": 1.78e9}
    slower = {"a": 0.0, "b": 0.0, "c": 0.11}
    nodes = only(fleet([on_cluster(*(measured(name, slower[name], sm_clock_hz=clocks[name]) for name in clocks))]))
    assert nodes["c"].causes == ("SM clock 10.1 % lower",)
    assert nodes["c"].not_recorded == (
        "power limit",
        "temperature",
        "memory bandwidth (attnbench calibrate on each node, before the run)",
    )


def test_a_lower_bandwidth_and_a_lower_power_limit_are_named_from_what_runs_of_single_machines_hold() -> None:
    points = {"a": 3.0e12, "b": 3.0e12, "c": 2.4e12}
    limits = {"a": 700.0, "b": 700.0, "c": 500.0}
    runs = [
        alone(
            name, measured("", 0.2 if name == "c" else 0.0, seed=ord(name), sm_clock_hz=1.98e9),
            ceilings(bandwidth={"copy": (Point(bytes=1 << 30, rate=points[name]),)}), power_limit_w=limits[name],
        )
        for name in "abc"
    ]  # fmt: skip
    nodes = only(fleet(runs))
    assert nodes["c"].causes == ("memory bandwidth 20.0 % lower", "power limit 500 W, of the others 700 W")
    assert nodes["c"].not_recorded == ("temperature",)


def test_a_lower_power_limit_is_named_from_what_a_run_on_a_cluster_holds() -> None:
    limits: dict[str, Facts] = {name: {"device_facts": {"power_limit_w": 700.0}} for name in "ab"}
    limits["c"] = {"device_facts": {"power_limit_w": 500.0}}
    stored = on_cluster(*(measured(name, 0.2 if name == "c" else 0.0) for name in "abc"), **limits)
    assert "power limit 500 W, of the others 700 W" in only(fleet([stored]))["c"].causes


def test_the_cores_of_a_worker_are_not_taken_for_those_of_its_machine() -> None:
    pinned: dict[str, Facts] = {
        name: {"machine": {"cpu": CPU, "cores": 8}, "device_facts": {"cores": [7]}} for name in "abc"
    }
    results = [
        measured(name, 0.2 * (name == "c"), seed=ord(name), device="cpu:threads=1", load=0.7 * (name == "c"))
        for name in "abc"
    ]
    assert only(fleet([on_cluster(*results, **pinned)]))["c"].causes == ()
    results[2] = measured("c", 0.2, seed=ord("c"), device="cpu:threads=1", load=1.0)
    assert only(fleet([on_cluster(*results, **pinned)]))["c"].causes == ("load average 1.0, of the others 0.0",)


def test_heat_is_named_with_what_it_does() -> None:
    hot = measured("c", 0.15, tags=("throttled",), temperature_c=88.0)
    nodes = only(fleet([on_cluster(measured("a", temperature_c=60.0), measured("b", temperature_c=62.0), hot)]))
    assert nodes["c"].causes == (
        "slowed by heat or by the hardware in 100 % of its blocks, the others in 0 %",
        "temperature 88 C, of the others 61 C",
    )


def test_load_steal_and_noise_of_the_machine_are_named_from_what_runs_of_one_machine_hold() -> None:
    """A fifth of the seconds lost makes times a quarter longer, by 1 / (1 - 0.2)."""
    busy = {"load": 3.2, "seconds": 1.0, "waiting_s": 0.16, "stolen_s": 0.04}
    quiet = {"load": 1.1, "seconds": 1.0, "waiting_s": 0.0, "stolen_s": 0.0}
    runs = [
        alone(name, measured("", 0.25 * (name == "c"), seed=ord(name), device="cpu:threads=1", noisy=name == "c",
                             **(busy if name == "c" else quiet)))
        for name in "abc"
    ]  # fmt: skip
    assert only(fleet(runs))["c"].causes == (
        "waited for a core 16 % of the time, the others 0 %",
        "load average 3.2, of the others 1.1",
        "100 % of its times noisy, of the others 0 %",
    )


def test_a_load_that_other_nodes_have_too_is_no_cause() -> None:
    facts = {"load": 3.2, "seconds": 1.0, "waiting_s": 0.1, "stolen_s": 0.0}
    runs = [alone(name, measured("", 0.25 * (name == "c"), seed=ord(name), **facts)) for name in "abc"]
    assert only(fleet(runs))["c"].causes == ()


def test_a_slow_node_that_nothing_explains_and_one_with_other_software() -> None:
    others = [measured("a", sm_clock_hz=1e9), measured("b", sm_clock_hz=1e9), measured("c", 0.2, sm_clock_hz=1e9)]
    assert only(fleet([on_cluster(*others)]))["c"].causes == ()
    torch = {name: {"packages": {"torch": "2.9" if name == "c" else "2.10"}} for name in "abc"}
    assert only(fleet([on_cluster(*others, **torch)]))["c"].causes == ("torch 2.9, of the others 2.10",)


def test_two_gpus_of_one_machine_are_two_nodes_and_models_are_apart() -> None:
    gpus = [*measured("h", seed=1), *measured("h", 0.2, device="cuda:1", seed=2)]
    stored = on_cluster(gpus, measured("h", device="cpu:threads=1"))
    stored.manifest.nodes["h"]["machine"]["gpus"] = [GPU, GPU]
    first, second = fleet([stored])
    assert (first.model, [node.node for node in first.nodes]) == (GPU, ["h cuda:1", "h cuda:0"])
    assert (second.model, second.nodes, second.alone) == (CPU, (), ("h",))


def test_a_case_that_fails_on_one_node_alone_is_counted() -> None:
    broken = measured("b")
    broken[0] = msgspec.structs.replace(broken[0], status=Status.INCORRECT, reason="wrong", samples={})
    nodes = only(fleet([on_cluster(measured("a"), broken)]))
    assert (nodes["a"].failed, nodes["b"].failed) == (0, 1)


def test_the_command_prints_a_table_and_the_cause_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = on_cluster(
        *(measured(name, 0.2 * (name == "c"), sm_clock_hz=1e9 / (1 + 0.2 * (name == "c"))) for name in "abc")
    )
    with RunWriter(tmp_path / "fleet", stored.manifest) as writer:
        writer.append(stored.results)
    assert cli.invoke(["fleet", str(tmp_path / "fleet")]) == 0
    text = capsys.readouterr().out
    assert "NVIDIA H100, 3 nodes, spread 2" in text
    assert "  why: SM clock 16.7 % lower" in text
    assert cli.invoke(["fleet", str(tmp_path / "fleet"), "--json", "--margin", "50%"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[0]["node"] == "c"
    assert {record["verdict"] for record in records} == {""}


def test_folders_of_runs_and_the_last_run_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("ab"):
        stored = alone(name, measured("", 0.2 * number, seed=number))
        with RunWriter(tmp_path / "runs" / f"2026010{number}T000000Z-{name}", stored.manifest) as writer:
            writer.append(stored.results)
    assert cli.invoke(["fleet", str(tmp_path / "runs")]) == 0
    assert "2 nodes, spread 19" in capsys.readouterr().out
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(tmp_path / "runs"))
    assert cli.invoke(["fleet"]) == 4
    assert "1 node\n" in capsys.readouterr().out


def test_runs_without_a_common_case_are_not_comparable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = on_cluster(measured("a"))
    with RunWriter(tmp_path / "one", stored.manifest) as writer:
        writer.append(stored.results)
    assert cli.invoke(["fleet", str(tmp_path / "one")]) == 4
    assert "no two nodes of one hardware model share a case" in capsys.readouterr().out


def test_two_nodes_are_spread_by_the_factor_between_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = on_cluster(measured("a", 2.2), measured("b"))
    with RunWriter(tmp_path / "two", stored.manifest) as writer:
        writer.append(stored.results)
    assert cli.invoke(["fleet", str(tmp_path / "two")]) == 0
    assert "NVIDIA H100, 2 nodes, spread 3.2x" in capsys.readouterr().out
    assert cli.invoke(["fleet", str(tmp_path / "two"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert record["spread"] == pytest.approx(2.2, abs=0.05)
    assert record["spread"] == record["change"]


def test_classes_of_hardware_are_named_as_the_reason_that_no_case_is_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = on_cluster(*(measured(name, device=f"cpu:threads=1:hardware={name.upper()}") for name in "ab"))
    with RunWriter(tmp_path / "classes", stored.manifest) as writer:
        writer.append(stored.results)
    assert cli.invoke(["fleet", str(tmp_path / "classes")]) == 4
    printed = " ".join(capsys.readouterr().out.split())
    assert "they were measured as hardware=A and hardware=B; only nodes of one class share cases" in printed
    assert "measure the same suite" not in printed


def test_equal_times_have_an_interval_of_no_width() -> None:
    times = {name: {f"case {number}": {"0": 1.0} for number in range(5)} for name in "ab"}
    assert node_effects(times) == dict.fromkeys("ab", (0.0, 0.0, 0.0, 5, 1))


def test_few_cases_give_no_interval() -> None:
    times = {name: {f"case {number}": {"0": 1.0} for number in range(4)} for name in "ab"}
    assert node_effects(times) == dict.fromkeys("ab", (0.0, -math.inf, math.inf, 4, 1))


def of_machine(name: str, number: int, **fields: Any) -> Run:
    """A run without the tag `node`."""
    stored = alone(name, measured("", 0.2 * number, seed=number))
    return msgspec.structs.replace(stored, manifest=msgspec.structs.replace(stored.manifest, **fields))


def test_runs_without_a_name_on_the_same_gpu_are_of_one_node() -> None:
    cards = [{"gpu_details": [{"uuid_hash": each}]} for each in ("one", "one", "other")]
    first, second, other = (of_machine(name, n, machine=cards[n]) for n, name in enumerate("abc"))
    (model,) = fleet([first, second])
    assert (model.nodes, model.alone, model.alike) == ((), ("a",), 0)
    assert set(only(fleet([first, second, other]))) == {"a", "c"}
    assert fleet([first, second, other])[0].alike == 0


def test_runs_without_a_name_that_may_be_of_one_machine_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    equal, elsewhere = [of_machine(name, n) for n, name in enumerate("ab")], of_machine("c", 2, fingerprint="g")
    named = [of_machine(name, n, tags={"node": name}) for n, name in enumerate("ab")]
    assert fleet([*equal, elsewhere])[0].alike == 2
    assert fleet(named)[0].alike == fleet([equal[0], elsewhere])[0].alike == 0
    for stored in equal:
        with RunWriter(tmp_path / stored.path, stored.manifest) as writer:
            writer.append(stored.results)
    assert cli.invoke(["fleet", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of these nodes are runs without the tag node, with one fingerprint: equal machines, or one" in printed
