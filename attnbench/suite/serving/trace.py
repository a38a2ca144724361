"""Read traces of served requests: Mooncake, Azure, BurstGPT, and JSON Lines of attnbench.

Every reader is a stream, so that a trace may be larger than memory. Lengths are in tokens of the trace's own tokenizer.
"""

import csv
import heapq
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TextIO, TypeVar

import msgspec

from attnbench.errors import UsageError
from attnbench.units import MAX_INTEGER

HASHED_TOKENS = 512  # of a prompt for each hash: https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release
_MAX_SHOWN = 40  # characters of a value in a message

T = TypeVar("T")
Fields = Mapping[str, object]  # of one line, by the names of its format


class TraceFormat(StrEnum):
    """The formats of `--trace-format`."""

    MOONCAKE = "mooncake"
    AZURE = "azure"
    BURSTGPT = "burstgpt"
    ATTNBENCH = "attnbench"


class TracedRequest(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    # One for each block of HASHED_TOKENS of the prompt, the last of which may be partial. Equal hashes mean equal
    # tokens in this block and in all before it.
    prefix_hashes: tuple[int, ...] = ()
    line: int = 0  # in its file


class Columns(msgspec.Struct, frozen=True):
    """The names that a format has for the fields of a request."""

    arrival: str
    input: str
    output: str
    hashes: str = ""
    arrival_unit_s: float = 1.0


COLUMNS = {
    TraceFormat.MOONCAKE: Columns("timestamp", "input_length", "output_length", "hash_ids", 1e-3),
    TraceFormat.AZURE: Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    TraceFormat.BURSTGPT: Columns("Timestamp", "Request tokens", "Response tokens"),
    TraceFormat.ATTNBENCH: Columns("arrival_s", "input_tokens", "output_tokens", "hash_ids"),
}
_JSON_LINES = (TraceFormat.MOONCAKE, TraceFormat.ATTNBENCH)


class Trace:
    """A trace in a file. Each iteration reads the file again; `skipped` counts requests without a response."""

    def __init__(self, path: Path, name: str = "", *, speed: float = 1.0, jitter_s: float = 0.0, seed: int = 0) -> None:
        self.path, self.speed, self.jitter_s, self.seed = path, speed, jitter_s, seed
        self.format = TraceFormat(name) if name else detect(path)
        self.skipped = 0

    def __iter__(self) -> Iterator[TracedRequest]:
        """The requests by arrival. Raises UsageError for a line that is no request."""
        self.skipped = 0
        requests = _jittered(self._requests(), self.jitter_s, self.seed)
        first = next(requests, None)
        if first is None:
            without = f" with a response ({self.skipped} without)" if self.skipped else ""
            raise UsageError(f"{self.path}: an empty trace: it has no request{without}; use a file with requests")
        for request in itertools.chain((first,), requests):
            arrival_s = (request.arrival_s - first.arrival_s) / self.speed
            yield msgspec.structs.replace(request, arrival_s=arrival_s)

    def _requests(self) -> Iterator[TracedRequest]:
        columns = COLUMNS[self.format]
        before_s, before = -math.inf, 0
        try:
            with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
                lines = _json_lines if self.format in _JSON_LINES else _csv_lines
                for number, fields in lines(file, columns, f"{self.path}:"):
                    request = _Line(f"{self.path}:{number}", fields, columns).request(number)
                    if request.arrival_s < before_s:
                        value = _shown(fields[columns.arrival])
                        text = f"is before line {before}: sort the trace by {columns.arrival!r}"
                        raise UsageError(f"{self.path}:{number}: {columns.arrival}={value} {text}")
                    before_s, before = request.arrival_s, number
                    if request.output_tokens:
                        yield request
                    else:
                        self.skipped += 1
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from error


def detect(path: Path) -> TraceFormat:
    """The format of a file, from its first line. Raises UsageError if it is none that is known."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = next((line.strip() for line in file if line.strip()), "")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if not first:
        raise UsageError(f"{path}: an empty trace: it has no line; use a file with requests")
    names = _names(first)
    for known, columns in COLUMNS.items():
        if {columns.arrival, columns.input} <= names:
            return known
    expected = "; ".join(f"{name}: {item.arrival}, {item.input}, {item.output}" for name, item in COLUMNS.items())
    raise UsageError(f"{path}:1: not a known trace: {_shown(first)}; give --trace-format and these fields: {expected}")


def _names(line: str) -> set[str]:
    if not line.startswith("{"):
        return {name.strip() for name in line.split(",")}
    try:
        read = msgspec.json.decode(line)
    except ValueError:
        return set()
    return set(read) if isinstance(read, dict) else set()


def _json_lines(file: TextIO, columns: Columns, place: str) -> Iterator[tuple[int, Fields]]:
    decode = msgspec.json.Decoder(dict[str, object]).decode
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, decode(line)
        except ValueError:
            text = f"is no JSON object: use one with {columns.arrival}, {columns.input} and {columns.output}"
            raise UsageError(f"{place}{number}: {_shown(line.strip())} {text}") from None


def _csv_lines(file: TextIO, columns: Columns, place: str) -> Iterator[tuple[int, Fields]]:
    reader = csv.reader(file)
    try:
        names = [name.strip() for name in next(reader, [])]
        for name in (columns.arrival, columns.input, columns.output):
            if name not in names:
                text = f"has no column {name!r}: use a file with it, or another --trace-format"
                raise UsageError(f"{place}1: the heading {_shown(','.join(names))} {text}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise UsageError(f"{place}{reader.line_num}: {len(row)} values: use {len(names)}, one for each column")
            yield reader.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UsageError(f"{place}{reader.line_num}: not CSV: {error}") from None


class _Line:
    """The fields of one line, as a request."""

    def __init__(self, place: str, fields: Fields, columns: Columns) -> None:
        self.place, self.fields, self.columns = place, fields, columns

    def request(self, number: int) -> TracedRequest:
        names = self.columns
        output_tokens = self._count(names.output, 0)
        return TracedRequest(
            arrival_s=self._arrival() * names.arrival_unit_s,
            input_tokens=self._count(names.input, min(output_tokens, 1)),  # a failed request may have none
            output_tokens=output_tokens,
            prefix_hashes=self._hashes() if names.hashes else (),
            line=number,
        )

    def _value(self, name: str, expected: str) -> object:
        if name not in self.fields:
            raise UsageError(f"{self.place}: no field {name!r}: add it, with {expected}, or give --trace-format")
        return self.fields[name]

    def _error(self, name: str, expected: str) -> UsageError:
        return UsageError(f"{self.place}: {name}={_shown(self.fields[name])}: use {expected}")

    def _arrival(self) -> float:
        name = self.columns.arrival
        if name == COLUMNS[TraceFormat.AZURE].arrival:
            expected = "a time such as 2023-11-16 18:15:46.68"
            return self._parsed(name, expected, _since_epoch)
        expected = "a number of " + ("milliseconds" if self.columns.arrival_unit_s < 1 else "seconds")
        seconds = self._parsed(name, expected, float)
        if not math.isfinite(seconds):
            raise self._error(name, expected)
        return seconds

    def _count(self, name: str, minimum: int) -> int:
        expected = f"a number of tokens, at least {minimum}"
        tokens = self._parsed(name, expected, _whole)
        if not minimum <= tokens <= MAX_INTEGER:
            raise self._error(name, expected)
        return tokens

    def _parsed(self, name: str, expected: str, parse: Callable[[str], T]) -> T:
        value = self._value(name, expected)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._error(name, expected)
        try:
            return parse(str(value))
        except (ValueError, OverflowError):
            raise self._error(name, expected) from None

    def _hashes(self) -> tuple[int, ...]:
        """The hashes, each joined with those before it, as equal blocks after different prefixes are no hits."""
        name = self.columns.hashes
        ids = self.fields.get(name)
        if ids is None and name not in self.fields and self.columns.arrival_unit_s == 1.0:
            return ()
        expected = f"a list of whole numbers, one for each {HASHED_TOKENS} tokens of the prompt"
        ids = self._value(name, expected)
        if not isinstance(ids, list) or not all(type(item) is int for item in ids):
            raise self._error(name, expected)
        tokens = self._count(self.columns.input, 0)
        if len(ids) != (needed := -(-tokens // HASHED_TOKENS)):
            raise UsageError(
                f"{self.place}: {name} has {len(ids)} hashes for {self.columns.input}={tokens}: use {needed}, one for "
                f"each {HASHED_TOKENS} tokens"
            )
        return tuple(itertools.accumulate(ids, lambda parent, item: hash((parent, item))))


def _since_epoch(text: str) -> float:
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _whole(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d{1,18}(\.0*)?\s*", text):
        raise ValueError(text)
    return int(float(text)) if "." in text else int(text)


def _shown(value: object) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")


def _jittered(requests: Iterable[TracedRequest], jitter_s: float, seed: int) -> Iterator[TracedRequest]:
    """Arrivals later by a random time below `jitter_s`, in order again; holds only requests of one such time."""
    if not jitter_s:
        yield from requests
        return
    draw = random.Random(seed)
    waiting: list[tuple[float, int, TracedRequest]] = []
    for number, request in enumerate(requests):
        while waiting and waiting[0][0] <= request.arrival_s:
            yield heapq.heappop(waiting)[2]
        arrival_s = request.arrival_s + jitter_s * draw.random()
        heapq.heappush(waiting, (arrival_s, number, msgspec.structs.replace(request, arrival_s=arrival_s)))
    while waiting:
        yield heapq.heappop(waiting)[2]
