"""Read traces of served requests: Mooncake, Azure, BurstGPT, and JSON Lines of attnbench.

Every reader is a stream, so that a trace may be larger than memory. Lengths are in tokens of the trace's own tokenizer.
"""

import csv
import heapq
import itertools
import math
import random
import re
from collections import Counter
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
_GUESSED_FIELDS = 2  # of the three that a format needs, by which a file is taken for one

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
    """The names that a format has for the fields of a request, and the tokenizer that counted its tokens."""

    arrival: str
    input: str
    output: str
    hashes: str = ""
    arrival_unit_s: float = 1.0
    model: str = ""  # the column that names the model which answered; of CSV
    csv: bool = False  # else JSON Lines
    tokenizer: str = ""  # empty: not stated
    vocabulary: int = 0  # of this tokenizer

    @property
    def needed(self) -> tuple[str, str, str]:
        """The fields that every request has."""
        return self.arrival, self.input, self.output


COLUMNS = {
    # The tokenizer of Moonshot's open models: https://huggingface.co/moonshotai/Moonlight-16B-A3B
    TraceFormat.MOONCAKE: Columns(
        "timestamp", "input_length", "output_length", "hash_ids", 1e-3, tokenizer="Kimi", vocabulary=163_840
    ),
    TraceFormat.AZURE: Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", csv=True),
    # cl100k_base: https://github.com/openai/tiktoken
    TraceFormat.BURSTGPT: Columns(
        "Timestamp", "Request tokens", "Response tokens", model="Model", csv=True, tokenizer="ChatGPT and GPT-4",
        vocabulary=100_277,
    ),
    TraceFormat.ATTNBENCH: Columns("arrival_s", "input_tokens", "output_tokens", "hash_ids"),
}  # fmt: skip


class TraceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the requests of a trace are changed or selected when they are read."""

    speed: float = 1.0  # divides the times of arrival
    jitter_s: float = 0.0
    seed: int = 0  # of the jitter
    tokens_scale: float = 1.0  # multiplies the lengths
    model: str = ""  # only requests that this model answered; empty: all


class Trace:
    """A trace in a file. Each iteration reads the file again, and counts what it leaves out."""

    def __init__(self, path: Path, name: str = "", options: TraceOptions | None = None) -> None:
        self.path, self.options = path, options or TraceOptions()
        self.format = TraceFormat(name) if name else detect(path)
        self.columns = COLUMNS[self.format]
        if self.options.model and not self.columns.model:
            raise UsageError(
                f"--trace-model {self.options.model}: traces of the format {self.format} name no models: leave it out"
            )
        self.skipped = 0  # requests without a response
        self.models: Counter[str] = Counter()  # requests of each model that is named

    def __iter__(self) -> Iterator[TracedRequest]:
        """The requests by arrival. Raises UsageError for a line that is no request."""
        self.skipped, self.models = 0, Counter()
        requests = _jittered(self._requests(), self.options.jitter_s, self.options.seed)
        first = next(requests, None)
        if first is None:
            raise UsageError(f"{self.path}: an empty trace: {self._lacks()}")
        for request in itertools.chain((first,), requests):
            arrival_s = (request.arrival_s - first.arrival_s) / self.options.speed
            yield _scaled(msgspec.structs.replace(request, arrival_s=arrival_s), self.options.tokens_scale)

    def _lacks(self) -> str:
        if self.options.model and self.models:
            known = f"the column {self.columns.model!r} has {', '.join(sorted(self.models))}"
            return f"no request to --trace-model {self.options.model}; {known}"
        without = f" with a response ({self.skipped} without)" if self.skipped else ""
        return f"it has no request{without}; use a file with requests"

    def _requests(self) -> Iterator[TracedRequest]:
        columns, before_s, before = self.columns, -math.inf, 0
        try:
            with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                lines = _csv_lines if columns.csv else _json_lines
                for number, fields in lines(file, columns, f"{self.path}:"):
                    request = _Line(f"{self.path}:{number}", fields, columns).request(number)
                    if request.arrival_s < before_s:
                        value = _shown(fields[columns.arrival])
                        text = f"is before line {before}: sort the trace by {columns.arrival!r}"
                        raise UsageError(f"{self.path}:{number}: {columns.arrival}={value} {text}")
                    before_s, before = request.arrival_s, number
                    if self._is_used(request, str(fields.get(columns.model, ""))):
                        yield request
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from error

    def _is_used(self, request: TracedRequest, model: str) -> bool:
        """Whether it has a response, of the model that is selected; counts both."""
        if not request.output_tokens:
            self.skipped += 1
            return False
        if model:
            self.models[model] += 1
        return not self.options.model or model == self.options.model


def _scaled(request: TracedRequest, scale: float) -> TracedRequest:
    """The request in tokens of which there are `scale` for each token of the trace.

    A part of the prompt is equal to that of another request if all parts of the trace in it are.
    """
    if scale == 1.0:
        return request
    tokens = max(1, round(request.input_tokens * scale))
    parts: list[int] = []
    for part in range(-(-tokens // HASHED_TOKENS) if request.prefix_hashes else 0):
        end = math.ceil(min((part + 1) * HASHED_TOKENS, tokens) / scale / HASHED_TOKENS)
        parts.append(hash((part, request.prefix_hashes[min(end, len(request.prefix_hashes)) - 1])))
    output = max(1, round(request.output_tokens * scale))
    return msgspec.structs.replace(request, input_tokens=tokens, output_tokens=output, prefix_hashes=tuple(parts))


def detect(path: Path) -> TraceFormat:
    """The format of a file, from the names in its first line. Raises UsageError if it is none that is known."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            number, first = next(
                ((number, line.strip()) for number, line in enumerate(file, 1) if line.strip()), (0, "")
            )
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if not first:
        raise UsageError(f"{path}: an empty trace: it has no line; use a file with requests")
    if first.startswith("version https://git-lfs"):
        raise UsageError(f"{path}: a pointer of Git LFS, not the trace: fetch the file, as with git lfs pull")
    names = {name.strip().casefold() for name in re.findall(r'"([^"]*)"' if first.startswith("{") else "[^,]+", first)}
    fitting = {
        name: len(names.intersection(map(str.casefold, columns.needed)))
        for name, columns in COLUMNS.items()
        if columns.csv != first.startswith("{")
    }
    best = max(fitting, key=lambda name: fitting[name])
    if fitting[best] >= _GUESSED_FIELDS:
        return best  # if a field is missing, the reader names it
    known = "; ".join(
        f"{name} ({'CSV' if columns.csv else 'JSON Lines'}): {', '.join(columns.needed)}"
        for name, columns in COLUMNS.items()
    )
    raise UsageError(f"{path}:{number}: not a known trace: {_shown(first)}; use a file with the fields of one: {known}")


def _json_lines(file: TextIO, columns: Columns, place: str) -> Iterator[tuple[int, Fields]]:
    decode = msgspec.json.Decoder(dict[str, object]).decode
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, decode(line)
        except ValueError as error:
            text = f"is no JSON object ({error}): use one with {', '.join(columns.needed)}"
            raise UsageError(f"{place}{number}: {_shown(line.strip())} {text}") from None


def _csv_lines(file: TextIO, columns: Columns, place: str) -> Iterator[tuple[int, Fields]]:
    reader = csv.reader(file)
    try:
        names = [name.strip() for name in next(reader, [])]
        for name in columns.needed:
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
        value = self.fields[name]
        quoted = ", without quotes" if isinstance(value, str) and not self.columns.csv else ""
        shown = _shown(f'"{value}"' if quoted else value)
        return UsageError(f"{self.place}: {name}={shown}: use {expected}{quoted}")

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
        if isinstance(value, bool) or not isinstance(value, str if self.columns.csv else int | float):
            raise self._error(name, expected)
        try:
            return parse(str(value))
        except (ValueError, OverflowError):
            raise self._error(name, expected) from None

    def _hashes(self) -> tuple[int, ...]:
        """The hashes, each joined with those before it, as equal blocks after different prefixes are no hits."""
        name = self.columns.hashes
        ids = self.fields.get(name)
        if name not in self.fields and self.columns.arrival_unit_s == 1.0:
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
