"""Keeps state that code of a backend sets for the whole process away from inputs, references, judgements and times."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attnbench.worker.process_settings import Owner, Setting, inter_op_threads_kept, settings


class ProcessState:
    """The settings of the process as attnbench needs them, and as the code of the backend left them.

    The values at the time of creation are attnbench's. They are in force wherever `backend_code` and `timed_calls` are
    not. One object belongs to a process. As without attnbench, code of the backend runs with what it set before.
    """

    def __init__(self) -> None:
        self._settings = settings()
        self._scoped = [setting for setting in self._settings if setting.scoped]
        self._ours = {setting.name: setting.read() for setting in self._settings}
        self.intended: frozenset[str] = frozenset()  # changes that are not noted: a backend of attnbench makes them
        self._theirs: dict[str, object] = {}  # settings of Owner.BACKEND that differ
        self._changes: dict[str, str] = {}
        self._changes_of_arm: dict[str, str] = {}

    @property
    def changes(self) -> list[str]:
        """What code of the backend has changed: `default dtype: float32 -> bfloat16`."""
        return [f"{name}: {text}" for name, text in self._changes.items()]

    def change_owner(self, intended: frozenset[str]) -> None:
        """Another backend follows, which changes these settings on purpose: nothing that was set before holds."""
        self.intended, self._theirs = intended, {}

    def imported(self) -> None:
        """The backend is imported and the worker set up: take attnbench's settings as they are now."""
        self._ours = {setting.name: setting.read() for setting in self._settings}

    def called(self) -> None:
        """The first call has been made, which may set up what later calls need."""
        self._changes_of_arm.clear()

    @property
    def objection(self) -> str:
        """Why the times would not be comparable: calls after the first change settings of the arm. Empty if none do."""
        changes = "; ".join(f"{name}: {text}" for name, text in self._changes_of_arm.items())
        return f"every call changes a setting that belongs to the arm: {changes}" if changes else ""

    @contextmanager
    def backend_code(self) -> Iterator[None]:
        """Code of the backend runs inside. What it changes is noted, and undone for attnbench's own steps."""
        with self._surrounded():
            self._apply(self._theirs)
            try:
                with inter_op_threads_kept(self._changes):
                    yield
            finally:
                self._theirs = {}
                self.take_back()

    @contextmanager
    def _surrounded(self) -> Iterator[None]:
        """Inside, values set by a `with` block of attnbench that is open count as attnbench's."""
        ours = self._ours
        self._ours = ours | {setting.name: setting.read() for setting in self._scoped}
        try:
            yield
        finally:
            self._ours = ours

    @contextmanager
    def other_code(self) -> Iterator[None]:
        """Code of a user that is not the backend's runs inside. What it changes is noted, and is not in force again."""
        theirs, self._theirs = self._theirs, {}
        with self.backend_code():
            yield
        self._theirs = theirs

    @contextmanager
    def timed_calls(self) -> Iterator[None]:
        """Calls run inside. What they change is noted by the next `take_back`, which takes a millisecond."""
        with self._surrounded():
            self._apply(self._theirs)
            try:
                yield
            finally:
                for setting in self._settings:
                    if setting.name in self._theirs:
                        self._theirs[setting.name] = setting.read()
                self._apply({name: self._ours[name] for name in self._theirs})
                self._take_back(self._scoped)  # the next code of the backend takes them for attnbench's

    def _apply(self, values: dict[str, object]) -> None:
        # Functions come first in the list, and must be in force last: the others are written with the original ones.
        for setting in reversed(self._settings):
            if setting.name in values:
                setting.write(values[setting.name])

    def take_back(self) -> None:
        """Note what code of the backend has changed, and undo it. What it set before stays its own."""
        self._take_back(self._settings)

    def _take_back(self, among: Iterable[Setting]) -> None:
        for setting in among:
            ours, now = self._ours[setting.name], setting.read()
            if now == ours:
                continue
            text = setting.describe(ours, now)
            if text and setting.name not in self.intended:
                self._changes[setting.name] = text
                if setting.owner is Owner.ARM:
                    self._changes_of_arm[setting.name] = text
            if setting.owner is Owner.BACKEND:
                self._theirs[setting.name] = now
            self._restore(setting, ours)

    def _restore(self, setting: Setting, ours: object) -> None:
        setting.write(ours)
        if setting.read() != ours:
            raise RuntimeError(f"the backend's code changed the process in a way that cannot be undone: {setting.name}")
