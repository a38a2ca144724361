"""The trend of a project as text and JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from attnbench import units
from attnbench.gate import history
from attnbench.gate.history import Point
from attnbench.report import jsonl


def text(seen: Mapping[str, Sequence[tuple[Point, float]]], as_json: bool) -> Iterator[str]:
    """One line a case, then its changes of level."""
    for case, values in seen.items():
        found = history.changes(case, values)
        first, last = values[0][1], values[-1][1]
        if as_json:
            yield jsonl.line({
                "type": "trend", "case": case, "points": len(values), "first_s": first, "last_s": last,
                "changes": [msgspec.to_builtins(one) | {"at": one.at.commit, "ratio": one.ratio} for one in found],
            })  # fmt: skip
            continue
        yield f"{case}: {units.seconds(first)} -> {units.seconds(last)} over {len(values)} points"
        for one in found:
            times = f"{units.seconds(one.before_s)} -> {units.seconds(one.after_s)}"
            yield f"    {units.change(one.ratio - 1)} at {one.at.name}, {one.at.measured_at}: {times}"
