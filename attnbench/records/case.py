"""A Case: one problem, one backend, one mode; its label for people and its stable id for programs."""

import hashlib
import json
from enum import Enum
from functools import cache, lru_cache

import msgspec

from attnbench.attention import requests, shared_prefix
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem

# Fields of a problem that a label shows without their names.
_IN_LABEL = frozenset({
    "batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "head_dim_v", "dtype", "mask", "requests", "lengths",
})  # fmt: skip


class Case(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False, cache_hash=True
):
    """What is measured: the same problem on two backends is two cases."""

    problem: Problem
    backend: str
    mode: Mode = Mode.FWD

    def __post_init__(self) -> None:
        if type(self.mode) is not Mode:
            msgspec.structs.force_setattr(self, "mode", Mode(self.mode))

    @property
    def id(self) -> str:
        """12 hex digits that depend on the values alone, not on how the case was written down."""
        return _id(self)

    @property
    def label(self) -> str:
        """Such as `b4 h32/8 q4096 kv4096 d128 causal bf16 fwd sdpa:flash`, with every field not at its default."""
        return f"{problem_label(self.problem, self.mode)} {self.backend}"


@lru_cache(maxsize=1024)  # a plan asks for each backend of a problem in turn
def problem_label(problem: Problem, mode: Mode) -> str:
    """The label of a case without its backend."""
    heads = f"h{problem.heads}" + (f"/{problem.kv_heads}" if problem.kv_heads != problem.heads else "")
    sizes = [requests.short(problem.requests)] if problem.requests else [f"q{problem.seq_q}", f"kv{problem.seq_kv}"]
    parts = [f"b{problem.batch}", heads, *sizes, f"d{problem.head_dim}"]
    if problem.head_dim_v != problem.head_dim:
        parts.append(f"dv{problem.head_dim_v}")
    parts += [problem.mask, problem.dtype, mode]
    rest: dict[str, object] = {}
    for name, value in canonical(problem, leave_out=_IN_LABEL).items():
        rest |= value if isinstance(value, dict) else {name: value}
    if problem.lengths:
        rest["lengths"] = requests.short_lengths(problem.lengths)
    if problem.shared_prefix:
        rest["shared_prefix"] = shared_prefix.short(problem.shared_prefix)
    parts += [f"{name}={spell(value)}" for name, value in sorted(rest.items())]
    return " ".join(parts)


def canonical(record: msgspec.Struct, leave_out: frozenset[str] = frozenset()) -> dict[str, object]:
    """A record as plain values, without fields equal to their default and without empty records, recursively.

    An encoder would not do: msgspec drops defaults by identity, so 30 and 30.0 would give two ids.
    """
    plain: dict[str, object] = {}
    for name, default in _defaults(type(record), leave_out):
        value = getattr(record, name)
        if value == default:
            continue
        if isinstance(value, msgspec.Struct):
            if nested := canonical(value):
                plain[name] = nested
        else:
            plain[name] = _plain(value)
    return plain


@cache
def _defaults(kind: type[msgspec.Struct], leave_out: frozenset[str]) -> tuple[tuple[str, object], ...]:
    """Name and default of every other field. Cached: msgspec evaluates the annotations of a class at every call."""
    fields = msgspec.structs.fields(kind)
    return tuple((field.name, field.default) for field in fields if field.name not in leave_out)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@lru_cache(maxsize=200_000)
def _id(case: Case) -> str:
    text = json.dumps(canonical(case), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def spell(value: object) -> str:
    """A value as text that no other value of its field has."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
