"""Generated traces: arrivals in bursts, lengths of a skewed distribution, prompts with a common prefix.

Gamma arrivals are those of vLLM's `--burstiness`: the intervals vary by 1 / sqrt(burstiness) of their mean.
"""

import math
import random
from collections.abc import Iterable, Iterator

import msgspec

from attnbench.errors import UnknownNameError, UsageError
from attnbench.suite.serving.trace import HASHED_TOKENS, TracedRequest
from attnbench.units import integer

_MAY_BE_ZERO = ("prefixes", "prefix_tokens", "input_variation", "output_variation")
GENERATED = "generated:"  # a trace that starts with it is made, not read


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a generated trace is like; by default short conversations."""

    requests: int = 1000
    requests_per_s: float = 5.4
    burstiness: float = 1.0  # 1: independent arrivals; below 1: bursts
    input_tokens: float = 1155.0  # mean
    input_variation: float = 1.0  # standard deviation over the mean
    output_tokens: float = 211.0
    output_variation: float = 0.8
    prefixes: int = 0  # different prefixes, of which each request has one
    prefix_tokens: int = 2 * HASHED_TOKENS  # of each prefix, in whole hashed parts
    max_tokens: int = 32768  # of a prompt


def generate(traffic: Traffic, seed: int) -> Iterator[TracedRequest]:
    """The requests by arrival."""
    draw, now_s = random.Random(seed), 0.0
    for number in range(traffic.requests):
        prompt = _length(draw, traffic.input_tokens, traffic.input_variation, traffic.max_tokens)
        output = _length(draw, traffic.output_tokens, traffic.output_variation, traffic.max_tokens)
        hashes: tuple[int, ...] = ()
        if traffic.prefixes:
            prefix, parts = draw.randrange(traffic.prefixes), traffic.prefix_tokens // HASHED_TOKENS
            prompt += parts * HASHED_TOKENS
            shared = [prefix * parts + part for part in range(parts)]
            # Numbers above those of all prefixes, and different for each request.
            base = traffic.prefixes * parts + number * -(-2 * traffic.max_tokens // HASHED_TOKENS)
            hashes = (*shared, *(base + part for part in range(-(-prompt // HASHED_TOKENS) - parts)))
        yield TracedRequest(round(now_s, 3), prompt, output, hashes)
        now_s += draw.gammavariate(traffic.burstiness, 1 / (traffic.burstiness * traffic.requests_per_s))


def _length(draw: random.Random, mean: float, variation: float, longest: int) -> int:
    """Lognormal, with this mean before it is cut."""
    variance = math.log1p(variation**2)
    return min(max(1, round(draw.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance)))), longest)


def json_lines(requests: Iterable[TracedRequest]) -> Iterator[bytes]:
    """A trace in attnbench's own format."""
    for request in requests:
        line: dict[str, object] = {
            "arrival_s": request.arrival_s, "input_tokens": request.input_tokens, "output_tokens": request.output_tokens
        }  # fmt: skip
        if request.prefix_hashes:
            line["hash_ids"] = request.prefix_hashes
        yield msgspec.json.encode(line)


def parse_traffic(text: str) -> Traffic:
    """`requests=2k:prefixes=3`: the fields of Traffic. Raises UsageError, which names the field."""
    fields = {field.name: field for field in msgspec.structs.fields(Traffic)}
    values: dict[str, int | float] = {}
    for part in text.split(":") if text else ():
        name, _, value = part.partition("=")
        if name not in fields:
            raise UnknownNameError("field", name, fields, where=f"{GENERATED}{text}")
        place = f"{GENERATED}{text}: {name}"
        values[name] = integer(value, place) if fields[name].type is int else _number(value, place)
        if not values[name] and name not in _MAY_BE_ZERO:
            raise UsageError(f"{place}: {value!r}: a number above 0")
    return Traffic(**values)  # type: ignore[arg-type]


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"{place}: {text!r}: not a number (try 0.5 or 1200)")
    return value
