"""A dispatch table and the regret of fixed choices, in words."""

from __future__ import annotations

from collections.abc import Iterator

from attnbench import units
from attnbench.studies.recommend import Dispatch


def lines(found: Dispatch) -> Iterator[str]:
    """Each shape with its backend, then what each backend would cost if it were taken for all."""
    wide = max((len(one.problem) for one in found.choices), default=0)
    for device in dict.fromkeys(one.device for one in found.choices):
        yield device
        for one in (one for one in found.choices if one.device == device):
            beside = f", as good: {', '.join(one.tied)}" if one.tied else ""
            gain = f", {one.gain:.2f}x {one.second}" if one.gain else ""
            yield f"  {one.problem.ljust(wide)}  {one.backend} {units.seconds(one.time_s)}{gain}{beside}"
    for device, regrets in found.by_device.items():
        yield ""
        yield f"one backend for everything on {device}: its time over the least, by geometric mean"
        for regret in regrets:
            share = "" if regret.runs == regret.of else f", runs {regret.runs} of {regret.of}"
            yield f"  {regret.backend:<14}{regret.mean:5.2f}x, at worst {regret.worst:.2f}x at {regret.worst_at}{share}"
    if not found.choices:
        yield "nothing was measured in this run"
