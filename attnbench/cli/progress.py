"""Progress on stderr: one live line on a terminal, otherwise one plain line per case."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from attnbench.units import counted

if TYPE_CHECKING:
    from attnbench.records.arm import Arm
    from attnbench.records.result import Result, Status


NameOf = Callable[["Arm"], str]  # the name of an arm beside the others that are measured
AS_BEFORE = "as in an earlier restart"


def observer(style: str, total: int, name_of: NameOf | None = None) -> Plain | Bar | Silent:
    """The progress display of that style; `auto` is a bar on a terminal outside CI."""
    if style == "auto":
        style = "bar" if sys.stderr.isatty() and not os.environ.get("CI") else "lines"
    return {"bar": Bar, "lines": Plain, "none": Silent}[style](total, name_of)


@contextlib.contextmanager
def steps(first: str) -> Iterator[Callable[[str], None]]:
    """Show the current step as one live line on a terminal outside CI; otherwise print nothing."""
    if not sys.stderr.isatty() or os.environ.get("CI"):
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as status:
        yield lambda text: status.update(text)


class Silent:
    """Print nothing."""

    def __init__(self, total: int, name_of: NameOf | None = None) -> None:
        self.total, self.count = total, 0
        self.name_of: NameOf = name_of or attrgetter("name")

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def phase(self, text: str) -> None:
        """Show the current phase."""

    def result(self, result: Result, remaining_s: float) -> None:
        self.count += 1

    def more(self, count: int, why: str = "") -> None:
        """Change the total, and show why where the progress is shown."""
        self.total += count
        if why:
            self._show(f"{count:+,} results: {why}")

    def _show(self, text: str) -> None:
        """Print a line of the progress."""

    def note(self, text: str) -> None:
        """Print a line, as errors are, in every style."""
        print(text, file=sys.stderr, flush=True)


class Plain(Silent):
    """`[27/40] ok b1 h8 q1024 kv1024 d64 causal fp32 fwd sdpa:flash 8.78 ms +-1.00 % 245 GFLOP/s peak 5.2 MiB`.

    The refusals of the plan are one line: tables show their reasons. Cases that were skipped have a line for each
    reason, at the end. Of cases that a backend refuses for one reason the first has a line. What fails in further
    restarts for the same reason refers to the first.
    """

    def __init__(self, total: int, name_of: NameOf | None = None) -> None:
        super().__init__(total, name_of)
        self._refused = 0  # without a line yet
        self._skipped: dict[str, set[tuple[str, str]]] = {}  # case and arm, by reason
        self._unfit: dict[tuple[Status, str, str], set[tuple[str, str]]] = {}  # case and device, by backend and reason
        self._failed: set[tuple[str, str, str]] = set()  # case, arm and reason

    def __exit__(self, *_: object) -> None:
        self._print_refused()
        for reason, cases in self._skipped.items():
            self._print(f"{counted(len(cases), 'case')} skipped: {reason}")
        more: Counter[str] = Counter()
        for (status, _backend, _reason), cases in self._unfit.items():
            more[status.value] += len(cases) - 1
        for word, count in (+more).items():
            self._print(f"{counted(count, 'more case')} {word}, for the same reasons")

    def result(self, result: Result, remaining_s: float) -> None:
        from msgspec.structs import replace

        from attnbench.records.result import Status

        if not result.group:  # of the plan
            super().result(result, remaining_s)
            self._refused += 1
            return
        self._print_refused()
        super().result(result, remaining_s)
        if result.status is Status.SKIPPED:
            self._skipped.setdefault(result.reason, set()).add((result.case.id, result.arm.id))
            return
        if result.status in (Status.UNSUPPORTED, Status.UNAVAILABLE):
            cases = self._unfit.setdefault((result.status, result.arm.backend, result.reason), set())
            is_first = not cases
            cases.add((result.case.id, result.arm.device))
            if not is_first:
                return
        elif result.reason:
            failure = result.case.id, result.arm.id, result.reason
            result = replace(result, reason=AS_BEFORE) if failure in self._failed else result
            self._failed.add(failure)
        self._print(line(result, self.name_of(result.arm)))

    def _show(self, text: str) -> None:
        self._print_refused()
        self._print(text)

    def _print_refused(self) -> None:
        if self._refused:
            self._print(f"{counted(self._refused, 'case')} refused")
        self._refused = 0

    def _print(self, text: str) -> None:
        print(f"[{self.count}/{self.total}] {text}", file=sys.stderr, flush=True)


class Bar(Silent):
    """A bar with the finished cases, the time left, and the current phase."""

    def __init__(self, total: int, name_of: NameOf | None = None) -> None:
        super().__init__(total, name_of)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            BarColumn(bar_width=26),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True, highlight=False),
            transient=True,
            # A redrawing thread would disturb the timed blocks, so the bar is drawn at events, not by a timer.
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=total, left="")
        self._drawn = 0.0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        if time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            self._progress.update(self._task, refresh=True, description=text[:60])

    def _show(self, text: str) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def result(self, result: Result, remaining_s: float) -> None:
        super().result(result, remaining_s)
        left = f"{int(remaining_s // 60)}:{int(remaining_s % 60):02d} left"
        self._drawn = time.monotonic()
        self._progress.update(self._task, refresh=True, total=self.total, completed=self.count, left=left)


def line(result: Result, arm: str) -> str:
    """One result as one line, with this name of its arm."""
    from attnbench.analysis.metrics import METRICS
    from attnbench.analysis.restarts import Restarts
    from attnbench.records.case import problem_label
    from attnbench.units import percent, rate, seconds, size

    name = f"{result.status.value} {problem_label(result.case.problem, result.case.mode)} {arm}"
    if result.reason:
        return f"{name}: {result.reason}"
    restarts = Restarts([result])
    time_s, low_s, high_s, peak = (
        METRICS[key].compute(restarts) for key in ("time_s", "time_low_s", "time_high_s", "total_bytes")
    )
    if time_s is None:
        return name
    of_process = " of the process" if "memory_method" in result.facts else ""  # else of torch's allocator
    spread = (high_s - low_s) / (2 * time_s) if time_s and low_s is not None and high_s is not None else None
    parts = [
        name,
        seconds(time_s),
        f"+-{percent(spread)}",
        rate(METRICS["flop_per_s"].compute(restarts), "FLOP/s"),
        *([] if peak is None else [f"peak {size(peak)}{of_process}"]),  # it is measured in the first restarts alone
    ]
    return " ".join(parts)
