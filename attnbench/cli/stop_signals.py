"""Signals that stop a command: Ctrl-C (SIGINT), SIGTERM, and SIGHUP when the terminal closes.

The first asks a running sweep to stop after its block; the second, or the first where no sweep runs, stops at once.
Both let temporary folders be removed and workers be terminated. The exit code is 128 and the number of the signal.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from attnbench.errors import Exit

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `timeout` and process managers send SIGTERM to the process and to its group: within this time it counts as one.
REPEAT_S = 0.2
CLEANUP_S = 5.0  # signals are ignored for this long while a command cleans up


class StopSignals:
    """The signals of one command line."""

    def __init__(self) -> None:
        self.number = 0  # of the first signal
        self.at_once = False  # a signal ends the command without waiting for a block
        self.ask: Callable[[], bool] | None = None  # asks the sweep to stop; False if it cannot, or was asked before
        self._last = self._stopping = 0.0

    @property
    def exit_code(self) -> Exit:
        """The exit code of a command that was stopped: that of Ctrl-C where no signal was received."""
        return Exit(128 + self.number) if self.number else Exit.INTERRUPTED

    def receive(self, number: int, _frame: FrameType | None) -> None:
        since_s, self._last = time.monotonic() - self._last, time.monotonic()
        if self.at_once:  # workers are being terminated and temporary folders removed
            if time.monotonic() - self._stopping > CLEANUP_S:
                os._exit(self.exit_code)
        elif number == signal.SIGINT or since_s > REPEAT_S:
            self.number = self.number or number
            if not (self.ask and self.ask()):
                self.at_once, self._stopping = True, time.monotonic()
                raise KeyboardInterrupt


current = StopSignals()  # handlers of signals belong to the process


@contextlib.contextmanager
def handled() -> Iterator[StopSignals]:
    """Handle the signals meanwhile, if this is the main thread."""
    global current
    current = StopSignals()
    before = {}
    if threading.current_thread() is threading.main_thread():
        # `nohup` ignores SIGHUP. SIGINT is handled even where a shell ignores it for a command in the background.
        ignored = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN} - {signal.SIGINT}
        numbers = [number for number in SIGNALS if number not in ignored]
        before = {number: signal.signal(number, current.receive) for number in numbers}
    try:
        yield current
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def asking(ask: Callable[[], str]) -> Iterator[None]:
    """Let the first signal meanwhile ask for a stop. `ask` returns how it stops; empty if it cannot."""
    signals = current

    def announce() -> bool:
        if stopping := ask():
            again = "Ctrl-C again stops" if signals.number == signal.SIGINT else "a second signal stops"
            print(f"\n{stopping}; {again} at once", file=sys.stderr)
        return bool(stopping)

    signals.ask = announce
    try:
        yield
    finally:
        signals.ask = None
