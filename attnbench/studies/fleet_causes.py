"""What explains a slow node: its clocks, power limit, heat, memory bandwidth, load, noise, and software."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

import msgspec

from attnbench import units
from attnbench.records.result import Facts
from attnbench.units import whole_percent

MIN_SHARE = 0.25  # of the effect that a lower rate must explain
MIN_CHANGE = 0.01  # of a rate or a limit
MIN_POINTS = 0.1  # by which a share of blocks must exceed that of the others
MIN_DEGREES = 5.0
MIN_LOAD, MIN_LOAD_PER_CORE = 0.5, 0.1  # by which the load average must exceed that of the others
CLOCKS = {"sm_clock_hz": "SM clock", "frequency_hz": "CPU clock", "memory_clock_hz": "memory clock"}
SHARES = {
    "throttled": "slowed by heat or by the hardware",
    "power_capped": "held by the power limit",
    "stolen": "interrupted by the hypervisor",
    "preempted": "interrupted by other processes",
}
LOST = {"waiting_s": "waited for a core", "stolen_s": "lost to the hypervisor"}  # facts of a block
SOFTWARE = ("torch", "driver", "cuda", "governor", "huge_pages", "allocator", "vbios", "mig_mode", "kernel")


class NodeCondition(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded of one node; what is missing was not recorded."""

    clocks: dict[str, float] = {}  # by fact of a block: over those of the others in the same cases
    temperature_c: float | None = None
    shares: dict[str, float] = {}  # of the timed blocks, by tag
    lost: dict[str, float] = {}  # share of the timed seconds, by fact of a block
    load: float | None = None  # load average beside the timed blocks
    noisy: float | None = None  # share of the times
    memory_bytes_per_s: float | None = None  # of its calibration
    matmul_flop_per_s: dict[str, float] = {}  # by dtype
    facts: Facts = {}


def causes_of(node: NodeCondition, others: Sequence[NodeCondition], effect: float) -> Iterator[str]:
    """What differs from the other nodes and may explain the effect, a logarithm of time. Rates come first."""
    rates = sorted(_lower_rates(node, others), key=lambda rate: rate[1])
    for name, change in rates:
        if -change >= MIN_SHARE * effect and -change >= MIN_CHANGE:
            yield f"{name} {units.margin(-change)} lower"
    limit, limits = node.facts.get("power_limit_w"), _values(others, "power_limit_w")
    if limit and limits and limit < (1 - MIN_CHANGE) * median(limits):
        yield f"power limit {limit:.0f} W, of the others {median(limits):.0f} W"
    for tag, text in SHARES.items():
        beside = [other.shares[tag] for other in others if tag in other.shares]
        share = node.shares.get(tag, 0.0)
        if beside and share >= median(beside) + MIN_POINTS:
            yield f"{text} in {whole_percent(share)} of its blocks, the others in {whole_percent(median(beside))}"
    degrees = [other.temperature_c for other in others if other.temperature_c is not None]
    if node.temperature_c is not None and degrees and node.temperature_c >= median(degrees) + MIN_DEGREES:
        yield f"temperature {node.temperature_c:.0f} C, of the others {median(degrees):.0f} C"
    yield from _load_and_noise(node, others, effect)
    for name in SOFTWARE:
        beside_text = sorted({str(value) for value in _values(others, name)})
        if (value := node.facts.get(name)) and beside_text and str(value) not in beside_text:
            yield f"{name.replace('_', ' ')} {value}, of the others {' or '.join(beside_text)}"


def _load_and_noise(node: NodeCondition, others: Sequence[NodeCondition], effect: float) -> Iterator[str]:
    """What other processes and other guests of the machine took, and how steady the times were."""
    for fact, text in LOST.items():
        beside = [other.lost[fact] for other in others if fact in other.lost]
        share, usual = node.lost.get(fact, 0.0), median(beside or [1.0])
        if share >= usual + MIN_CHANGE and _longer(share) - _longer(usual) >= MIN_SHARE * effect:
            yield f"{text} {whole_percent(share)} of the time, the others {whole_percent(usual)}"
    loads = [other.load for other in others if other.load is not None]
    least = max(MIN_LOAD, MIN_LOAD_PER_CORE * float(node.facts.get("cores") or 0))
    if node.load is not None and loads and node.load >= median(loads) + least:
        yield f"load average {node.load:.1f}, of the others {median(loads):.1f}"
    noisy = [other.noisy for other in others if other.noisy is not None]
    if node.noisy is not None and noisy and node.noisy >= median(noisy) + MIN_POINTS:
        yield f"{whole_percent(node.noisy)} of its times noisy, of the others {whole_percent(median(noisy))}"


def _longer(lost: float) -> float:
    """The logarithm by which times are longer where this share is lost."""
    return -math.log1p(-min(lost, 0.99))


def not_recorded(node: NodeCondition, others: Sequence[NodeCondition]) -> Iterator[str]:
    """The causes that cannot be judged, since the node or all others lack them."""
    if not node.clocks:
        yield "clocks"
    if not node.facts.get("power_limit_w") or not _values(others, "power_limit_w"):
        yield "power limit"
    if node.temperature_c is None or all(other.temperature_c is None for other in others):
        yield "temperature"
    if not node.memory_bytes_per_s or not any(other.memory_bytes_per_s for other in others):
        yield "memory bandwidth (attnbench calibrate on each node, before the run)"


def _lower_rates(node: NodeCondition, others: Sequence[NodeCondition]) -> Iterator[tuple[str, float]]:
    """Each rate and its change relative to the others."""
    yield from ((CLOCKS[name], ratio - 1) for name, ratio in node.clocks.items())
    memory = [other.memory_bytes_per_s for other in others if other.memory_bytes_per_s]
    if node.memory_bytes_per_s and memory:
        yield "memory bandwidth", node.memory_bytes_per_s / median(memory) - 1
    products = [
        rate / median(beside)
        for dtype, rate in node.matmul_flop_per_s.items()
        if (beside := [other.matmul_flop_per_s[dtype] for other in others if dtype in other.matmul_flop_per_s])
    ]
    if products:
        yield "rate of matrix products", median(products) - 1


def _values(others: Sequence[NodeCondition], name: str) -> list[float]:
    return [other.facts[name] for other in others if other.facts.get(name)]
