"""The fastest backend of each shape, and what one backend for all shapes would cost."""

from collections.abc import Iterator

from attnbench import units
from attnbench.report.terminal.text_layout import terminal_width, wrap
from attnbench.studies.recommend import Dispatch


def lines(dispatch: Dispatch) -> Iterator[str]:
    """Each shape with its backend, then each backend with its time over the fastest if it were used for all."""
    width = max((len(choice.problem) for choice in dispatch.choices), default=0)
    for device in dict.fromkeys(choice.device for choice in dispatch.choices):
        yield device
        for choice in dispatch.choices:
            if choice.device == device:
                tied = f", as good: {', '.join(choice.tied)}" if choice.tied else ""
                gain = f", {choice.gain:.2f}x {choice.second}" if choice.gain else ""
                yield f"  {choice.problem.ljust(width)}  {choice.backend} {units.seconds(choice.time_s)}{gain}{tied}"
    for device, regrets in dispatch.by_device.items():
        yield ""
        yield f"one backend for everything on {device}: its time over the least, by geometric mean"
        for regret in regrets:
            share = "" if regret.runs == regret.of else f", runs {regret.runs} of {regret.of}"
            yield f"  {regret.backend:<14}{regret.mean:5.2f}x, at worst {regret.worst:.2f}x at {regret.worst_at}{share}"
    if dispatch.preferences:
        yield ""
    for preference in dispatch.preferences:
        yield from wrap(preference.text, terminal_width(), indent=2)
    if not dispatch.choices:
        yield "nothing was measured in this run"
