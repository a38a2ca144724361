"""What a reader must know of the nodes that a run was measured on: how they differ, and which were left out."""

from collections.abc import Iterator, Mapping

from attnbench.records.result import Facts

MAX_CLOCK_S = 1.0  # of a node's clock from that of the driver, without a note
OF_MACHINE = ("cpu", "gpus", "cores", "memory_gib", "kernel", "python", "allocator", "governor")


def notes(nodes: Mapping[str, Facts]) -> Iterator[str]:
    """A sentence for each difference between nodes of one class of hardware, and for each that was lost or drained."""
    for hardware in dict.fromkeys(facts.get("hardware", "") for facts in nodes.values()):
        of_class = {name: facts for name, facts in nodes.items() if facts.get("hardware", "") == hardware}
        yield from _differences(hardware, of_class)
    for name, facts in nodes.items():
        if facts.get("lost"):
            yield f"Node {name} was lost."
        if reason := facts.get("drained"):
            yield f"Node {name} was given no more cases: {reason}."
        ahead_s = facts.get("clock_ahead_s", 0.0)
        if abs(ahead_s) > MAX_CLOCK_S:
            way = "ahead" if ahead_s > 0 else "behind"
            yield f"The clock of node {name} is {abs(ahead_s):.0f} s {way}; starts are stored on that of the driver."


def _differences(hardware: str, nodes: Mapping[str, Facts]) -> Iterator[str]:
    described = {name: dict(_properties(facts)) for name, facts in nodes.items()}
    for key in dict.fromkeys(key for properties in described.values() for key in properties):
        by_value: dict[str, list[str]] = {}
        for name, properties in described.items():
            by_value.setdefault(properties.get(key, "none"), []).append(name)
        if len(by_value) > 1:
            values = "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())
            yield f"Nodes{' with ' * bool(hardware)}{hardware} differ in {key}: {values}."


def _properties(facts: Facts) -> Iterator[tuple[str, str]]:
    """What should be equal, by name, as text."""
    machine = facts.get("machine", {})
    yield from ((key.replace("_gib", ""), str(machine.get(key))) for key in OF_MACHINE if key in machine)
    for gpu in machine.get("gpu_details") or ():
        yield "driver", str(gpu.get("driver"))
    yield from facts.get("packages", {}).items()
