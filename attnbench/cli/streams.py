"""Standard output and error to which writing never raises: what could not be written is known at the end.

A command measures and stores to its end, whatever happens to its output: a reader that closed the pipe, a closed
descriptor, a full disk, an encoding that lacks a character.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

REPLACE = "attnbench.replace"  # name of the error handler of the encodings
# What stands for a character that the encoding lacks; `?` for others. The shades of pictures keep their width.
REPLACEMENTS = {
    "░": ".", "▒": "+", "▓": "%", "█": "#", "─": "-", "│": "|", "├": "|", "└": "`",
    "·": "-", "±": "+-", "×": "x", "²": "^2", "ᵀ": "^T", "…": "...", "→": "->",
}  # fmt: skip


class OutputBuffer(io.BufferedIOBase):
    """The buffer of a standard stream. The first error ends the output; it is kept in `error`."""

    def __init__(self, buffer: io.BufferedIOBase | None) -> None:
        self._buffer = buffer
        self._absent = buffer is None
        self.error = ""

    @property
    def name(self) -> str:
        """The name of the stream: `<stdout>`."""
        return str(getattr(self._buffer, "name", "<closed>"))

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._buffer is not None and self._buffer.isatty()

    def fileno(self) -> int:
        if self._buffer is None:
            raise io.UnsupportedOperation("fileno")
        return self._buffer.fileno()

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data)
        if self._absent and view:
            self.error = "it is closed"
        with self._errors_kept():
            left = view
            while left and self._buffer:
                left = left[self._buffer.write(left) or 0 :]
        return len(view)

    def flush(self) -> None:
        with self._errors_kept():
            if self._buffer:
                self._buffer.flush()

    @contextlib.contextmanager
    def _errors_kept(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._discard()  # the reader has seen enough (`| head`): no failure
        except OSError as wrong:
            self._discard()
            self.error = wrong.strerror or str(wrong)

    def _discard(self) -> None:
        """Send all further output to the null device, also what Python still holds when the process ends."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
        self._buffer = None


@contextlib.contextmanager
def safe() -> Iterator[tuple[OutputBuffer, OutputBuffer]]:
    """Replace stdout and stderr meanwhile; give the buffers of both."""
    codecs.register_error(REPLACE, _replace)
    before = sys.stdout, sys.stderr
    out, err = (OutputBuffer(getattr(stream, "buffer", None)) for stream in before)
    sys.stdout, sys.stderr = _text(before[0], out), _text(before[1], err)
    try:
        yield out, err
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def open_missing_descriptors() -> None:
    """Open the null device in place of closed standard streams, so that no file gets their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _text(stream: TextIO | None, buffer: OutputBuffer) -> TextIO:
    if stream is not None and not hasattr(stream, "buffer"):
        return stream  # in memory: a notebook, a test
    encoding = stream.encoding if stream else "utf-8"
    line_buffering = bool(getattr(stream, "line_buffering", False))
    return io.TextIOWrapper(buffer, encoding, REPLACE, line_buffering=line_buffering, write_through=True)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(REPLACEMENTS.get(letter, "?") for letter in error.object[error.start : error.end]), error.end
