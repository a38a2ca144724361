"""One record for each option that several commands share; the parameters of the commands follow from the records.

`with_options(PROBLEM, ARMS, SEED)` gives a command these options, and one Request of their values. Everything here is
imported by `attnbench --help`: no numpy, and the packages that completion needs are imported when it runs.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args, get_type_hints

import msgspec
import typer

from attnbench.cli import checks, completion
from attnbench.cli.checks import Check, ClosedSet, callback
from attnbench.errors import UsageError
from attnbench.suite.keys import AXES

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request

T = TypeVar("T")
Parameters = Iterator[inspect.Parameter]
TIMINGS, CACHES = ("wall", "events", "graph", "cupti", "all"), ("cold", "warm")
STYLES = ("auto", "bar", "lines", "none")  # of progress
COLORS = ("auto", "always", "never")
# From the strongest source to the weakest: these are the names of Typer's enumeration.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option, by the field of Request that it fills."""

    name: str  # of the parameter; a configuration file has it as a key
    help: str
    kind: object = str | None  # the type of the parameter
    default: object = None
    metavar: str | None = None
    flags: tuple[str, ...] = ()  # as typed; by default the name with hyphens
    names: Callable[[], Iterable[str]] | None = None  # values that completion offers
    check: Check | None = None  # of the value, where it is parsed
    older: str = ""  # a former name, accepted and hidden in the help
    argument: bool = False  # given by position

    def info(self) -> object:
        """The description of the option for Typer, used in `Annotated`."""
        if self.argument:
            return typer.Argument(metavar=self.metavar, help=self.help)
        flags = self.flags or (f"--{self.name.replace('_', '-')}",)
        return option(*flags, help=self.help, metavar=self.metavar, names=self.names, check=self.check)

    def parameters(self) -> Parameters:
        """What Typer builds the option from."""
        yield _parameter(self.name, operator.getitem(Annotated, (self.kind, self.info())), self.default)
        if self.older:
            checked = callback(self.check) if self.check else None
            older = operator.getitem(Annotated, (self.kind, typer.Option(hidden=True, callback=checked)))
            yield _parameter(self.older, older, None)

    def but(self, **changes: object) -> Option:
        """The same option with other words or another default."""
        return msgspec.structs.replace(self, **changes)


def option(
    *flags: str, help: str, metavar: str | None = None,  # noqa: A002
    names: Callable[[], Iterable[str]] | None = None, check: Check | None = None,
) -> object:  # fmt: skip
    """The description of an option for Typer, used in `Annotated`. `names`: by default those of a closed set."""
    names = check.names if isinstance(check, ClosedSet) else names
    return typer.Option(
        *flags, help=help, metavar=metavar, autocompletion=completion.of_list(names) if names else None,
        callback=callback(check) if check else None,
    )  # fmt: skip


def _parameter(name: str, annotation: object, default: object = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _text(
    name: str, metavar: str, summary: str, check: Check, default: str = "",
    names: Callable[[], Iterable[str]] | None = None,
) -> Option:  # fmt: skip
    return Option(name=name, help=summary, kind=str, default=default, metavar=metavar, names=names, check=check)


def _repeatable(
    name: str, metavar: str, summary: str, check: Check | None = None,
    names: Callable[[], Iterable[str]] | None = None,
) -> Option:  # fmt: skip
    return Option(name=name, help=summary, kind=list[str] | None, metavar=metavar, names=names, check=check)


SUITES = _repeatable("suites", "SUITE", "Suites: names of `attnbench list suites`, or suite files.").but(argument=True)
SUITE = _repeatable(
    "suite", "SUITE", "Suite of `attnbench list suites`, or a suite file; may be repeated.", checks.suite
)
SET = _repeatable(
    "set", "KEY=VALUES", "Set any other suite key: weighting=hard:topk=32.", checks.settings, completion.set_names
).but(flags=("--set",))
PROBLEM = (
    *(
        Option(name=axis.name, help=axis.summary, metavar=axis.metavar, names=axis.names, check=checks.axis(axis.name))
        for axis in AXES.values()
        if axis.option
    ),
    SET,
)
DTYPE = next(each for each in PROBLEM if each.name == "dtype")


def backend_option(default: str) -> Option:
    """Which backends, and in words those by default."""
    return Option(
        name="backend", flags=("--backend", "-b"), metavar="LIST", names=completion.backend_names,
        check=checks.backends,
        help="Backends: names, auto, libraries (those of a CPU that are installed), all, my_kernel.py:attend, "
        f"package.module:attend or kernels:FOLDER (Hugging Face); by default {default}. "
        "A name that is given twice is two arms.",
    )  # fmt: skip


BACKEND = backend_option("those of the suite, or auto")
DEVICE = Option(
    name="device",
    help="Devices: cpu, cpu:threads=1, cpu:isa=avx2, cpu:cores=0-3, cuda:0; by default the first GPU, or the CPU.",
    metavar="LIST",
    names=completion.device_names,
    check=checks.devices,
)
HARDWARE = _text(
    "hardware", "LIST",
    "Classes of hardware of --engine ray, each measured in full: H100,A100,cpu; by default the only one.",
    checks.hardware,
)  # fmt: skip
BACKEND_PYTHON = _repeatable(
    "backend_python", "NAME=PYTHON",
    "Start the workers of a backend, or of a library as ort:*, in another interpreter: jax=/path/to/venv/bin/python.",
    checks.backend_python,
)  # fmt: skip
ARMS = (BACKEND, DEVICE, BACKEND_PYTHON)
REFERENCE = _text(
    "reference", "NAME", "Backend that speed-ups are relative to; by default naive, else the first that can serve.",
    checks.backend, names=completion.backend_names,
)  # fmt: skip
BUDGET = _text(
    "budget",
    "TIME",
    "Time limit of the command: 45s or 5m, 0 for no limit; by default that of the suite, or 5m.",
    checks.duration,
)
ROUNDS = _text(
    "rounds",
    "LO..HI",
    "Minimum and maximum number of rounds; at the end of the budget 3 suffice, and noisy cases get 30 more.",
    checks.rounds,
    "5..30",
)
RESTARTS = Option(
    name="restarts",
    older="launches",
    help="Number of worker restarts.",
    kind=int,
    default=1,
    metavar="N",
    check=checks.at_least(1),
)
TIMEOUT = _text("timeout", "TIME", "Time limit of each phase of a case.", checks.limit, "60s")
MEM_LIMIT = _text(
    "mem_limit", "SIZE", "Memory limit: a share of the free memory, or a size such as 8GiB.", checks.size, "80%"
)
TIMING = _text(
    "timing", "MODE", "Timer: wall, events, graph, cupti or all; by default wall on a CPU, events on a GPU.",
    checks.one_of("mode", lambda: TIMINGS),
)  # fmt: skip
CACHE = _text(
    "cache",
    "STATE",
    "Caches before each call: cold or warm; by default warm on a CPU, cold on a GPU.",
    checks.one_of("state", lambda: CACHES),
)
REL_CI = _text(
    "rel_ci",
    "SHARE",
    "Stop when the half-width of the 95 % interval is within this share of the median.",
    checks.share,
    "2%",
)
SEED = Option(
    name="seed", help="Random seed for inputs and order.", kind=int, default=0, metavar="N", check=checks.at_least(0)
)
INPUTS = _text(
    "inputs", "NAME", "Inputs: normal, peaked, uniform, outlier, large, sink, heavy, low, zeros or file:x.safetensors.",
    checks.inputs, "normal", completion.input_names,
)  # fmt: skip
PROBE = _text(
    "probe", "LIST",
    "More checks: layouts, values, lengths, state, noise, adversarial, determinism, batch, double_backward, "
    "quantisation, soft.",
    checks.some_of("probe", checks.names_in("worker.probes:PROBES")),
)  # fmt: skip
PROFILE = Option(
    name="profile", help="Profile each case after its rounds, and store the traces in the run.", kind=bool,
    default=False, flags=("--profile",),
)  # fmt: skip
ONLY = _repeatable(
    "only", "KEY=VALUES", "Take only matching cases: seq=..4k.", checks.case_filter, completion.filter_names
)
SKIP = _repeatable(
    "skip", "KEY=VALUES", "Leave matching cases out: backend=flex.", checks.case_filter, completion.filter_names
)
SHRINK = _text("shrink", "SHARE", "Scale lengths and batches by this factor, for a small machine: 0.25.", checks.shrink)
SHARD = _text("shard", "K/N", "Measure one part of all cases: 3/8 is the third of eight.", checks.shard)
METRICS = _text(
    "metrics", "LIST",
    "Additional columns: memory, roofline, energy, timers, errors, once, or names of `attnbench list metrics`.",
    checks.metrics, names=completion.metric_names,
)  # fmt: skip
TAG = _repeatable("tag", "KEY=VALUE", "Store this tag with the run.", checks.tag)

# Options that fill no field of Request.
Json = Annotated[bool, option("--json", help="Print one JSON object per line.")]
Format = Annotated[
    str,
    option(
        "--format", help="Output format: table, md, csv or jsonl.", metavar="FORMAT",
        check=checks.one_of("format", checks.names_in("report.formats:FORMATS")),
    ),
]  # fmt: skip
Progress = Annotated[
    str,
    option(
        "--progress", help="Progress display: auto, bar, lines or none.", metavar="STYLE",
        check=checks.one_of("progress style", lambda: STYLES),
    ),
]  # fmt: skip
RunName = Annotated[str, typer.Argument(help="Run directory, its name, or `last`.", metavar="RUN")]
Machine = Annotated[
    str,
    option(
        "--machine", help="Fingerprint of the machine, or FINGERPRINT/NODE; this one by default.", metavar="MACHINE"
    ),
]
Only = Annotated[list[str] | None, ONLY.info()]
Skip = Annotated[list[str] | None, SKIP.info()]
Metrics = Annotated[str, METRICS.info()]
Set = Annotated[list[str] | None, SET.info()]


class OptionGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one command that it receives as one object; a field is `Annotated` with an `option`."""


def typed(group: OptionGroup, leave_out: Collection[str] = ()) -> list[str]:
    """The options of a group that differ from their defaults, as they are typed."""
    hints = get_type_hints(type(group), include_extras=True)
    words: list[str] = []
    for field in msgspec.structs.fields(group):
        value = getattr(group, field.name)
        if value != field.default and field.name not in leave_out:
            info = get_args(hints[field.name])[1]
            # Typer keeps the first flag as the default until it builds the command.
            flag = info.default if isinstance(info.default, str) else f"--{field.name.replace('_', '-')}"
            words += [flag, *([] if value is True else [str(value)])]
    return words


def refuse_beside(context: typer.Context, reader: str, taken: Collection[str]) -> None:
    """Raise UsageError if the command line has an option that a command which only reads would ignore."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE" and name not in taken:
            raise UsageError(f"{reader} reads a stored run, and takes no {max(parameter.opts, key=len)}: leave it out")


class GlobalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options before the command, and the application that parsed them."""

    app: typer.Typer
    verbose: bool = False
    quiet: bool = False
    color: str = "auto"

    def progress(self, style: str) -> str:
        return "none" if self.quiet else style


def global_options(context: typer.Context) -> GlobalOptions:
    """The options before the command."""
    shared = context.obj
    assert isinstance(shared, GlobalOptions)
    return shared


def with_options(*options: Option | Sequence[Option]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command these options as `request`, and the options of its OptionGroups as these objects."""
    flat = [item for group in options for item in ((group,) if isinstance(group, Option) else group)]

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        names = inspect.signature(command).parameters
        hints = get_type_hints(command, localns={"Request": object}, include_extras=True)
        groups = {
            name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, OptionGroup)
        }

        @wraps(command)
        def call(context: typer.Context, **values: object) -> T:
            objects: dict[str, object] = {"context": context}
            if "request" in names:
                objects["request"] = _request(flat, context, values)
            for name, group in groups.items():
                objects[name] = group(**{field: values[field] for field in group.__struct_fields__})
            return command(**{name: objects[name] if name in objects else values[name] for name in names})

        parameters = list(_parameters(names, hints, groups, flat))
        vars(call)["__signature__"] = inspect.Signature(parameters)
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _parameters(
    names: Mapping[str, inspect.Parameter], hints: Mapping[str, object], groups: Mapping[str, type[OptionGroup]],
    options: Sequence[Option],
) -> Parameters:  # fmt: skip
    """What Typer reads in place of the parameters of the command."""
    yield _parameter("context", typer.Context)
    for name, parameter in names.items():
        if name == "request":
            for item in options:
                yield from item.parameters()
        elif name in groups:
            yield from _fields(groups[name])
        elif name != "context":
            yield parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)


def _fields(group: type[OptionGroup]) -> Parameters:
    hints = get_type_hints(group, include_extras=True)
    for field in msgspec.structs.fields(group):
        yield _parameter(field.name, hints[field.name], field.default)


def _request(options: Sequence[Option], context: typer.Context, values: Mapping[str, object]) -> Request:
    """The values of the options; what is not given has the default of Request."""
    from attnbench.engine.sweep import Request

    chosen = {item.name: value for item in options if (value := _value(item, context, values)) is not None}
    axes, of_set = {name: str(chosen.pop(name)) for name in AXES if name in chosen}, axes_of_set(chosen.pop("set", ()))
    for name in axes.keys() & of_set:
        if axes[name] != of_set[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {axes[name]} and --set {name}={of_set[name]} give one key twice: use one of them")
    fields: dict[str, object] = {
        "axes": axes | of_set,
        "suites": (*_list(chosen.pop("suites", ())), *_list(chosen.pop("suite", ()))),
        "tags": pairs(chosen.pop("tag", ()), "--tag"),
    }
    fields |= {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    make: Callable[..., Request] = Request
    return make(**fields)


def _value(item: Option, context: typer.Context, values: Mapping[str, object]) -> object:
    """The value of an option under either of its names: the one from the stronger source."""
    names = [item.name, item.older] if item.older and values[item.older] is not None else [item.name]
    return values[min(names, key=lambda name: _strength(context, name))]


def _strength(context: typer.Context, name: str) -> int:
    source = context.get_parameter_source(name)
    return _SOURCES.index(source.name) if source and source.name in _SOURCES else len(_SOURCES)


def _list(value: object) -> Sequence[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else ()


def axes_of_set(items: object) -> dict[str, str]:
    """The axes given by `--set`."""
    return {key.replace("-", "_"): text for key, text in pairs(items, "--set").items()}


def pairs(items: object, flag: str) -> dict[str, str]:
    """KEY=VALUE of a repeatable option."""
    values = {}
    for item in _list(items):
        key, equals, value = item.partition("=")
        if not equals or not key.strip() or not value:
            raise UsageError(f"{flag}: not KEY=VALUE: {item!r}")
        values[key.strip()] = value
    return values
