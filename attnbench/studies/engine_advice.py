"""The flag by which vLLM, sglang or transformers picks the backend that a dispatch table recommends, and why."""

import math
from collections.abc import Sequence

import msgspec

from attnbench.analysis import serving_flags
from attnbench.analysis.serving_flags import VERSIONS, EngineSetting
from attnbench.attention.choices import Mode
from attnbench.errors import UnknownNameError
from attnbench.studies.dispatch_table import Choice, Dispatch

ENGINES = {name.lower(): name for name in VERSIONS}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend compares with the others over the problems of a phase."""

    backend: str
    phase: str  # prefill, decode, or all
    fastest: int  # problems in which it is fastest, or tied with it
    runs: int  # problems in which it is ranked
    of: int
    mean: float  # geometric mean of its time over the fastest

    @property
    def text(self) -> str:
        """`flash-attn:3 is fastest or tied in 5 of 8 problems and takes 1.03x the fastest by geometric mean`."""
        problems = f"{self.phase} problems" if self.phase != "all" else "problems"
        lacks = f" of the {self.runs} that it runs" if self.runs < self.of else ""
        mean = f"takes {self.mean:.2f}x the time of the fastest (geometric mean{lacks})"
        return f"{self.backend} is fastest or tied in {self.fastest} of {self.of} {problems} and {mean}"


class EngineAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """What to set in one engine for one device of a table."""

    engine: str
    version: str  # that the names are of
    device: str
    setting: str  # empty: the engine has none for any backend of the table
    notes: tuple[str, ...]  # why the best backend has no setting
    ground: tuple[Standing, ...]


def advise(table: Dispatch, engine: str) -> list[EngineAdvice]:
    """The setting for each device of a table. Raises UnknownNameError for an unknown engine."""
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES, where="--to")
    by_device: dict[str, list[Choice]] = {}
    for choice in table.choices:
        by_device.setdefault(choice.device, []).append(choice)
    return [_advise(ENGINES[engine], device, choices) for device, choices in by_device.items()]


def _advise(engine: str, device: str, choices: Sequence[Choice]) -> EngineAdvice:
    forward = [choice for choice in choices if choice.mode == Mode.FWD] or choices
    by_phase = {"all": forward}
    if engine == serving_flags.BY_PHASE:
        by_phase = {"decode": [choice for choice in forward if choice.axes.seq_q == 1]}
        by_phase["prefill"] = [choice for choice in forward if choice.axes.seq_q > 1]
    picked: dict[str, str] = {}
    notes: list[str] = []
    ground: list[Standing] = []
    for phase, of_phase in by_phase.items():
        ranked = standings(of_phase, phase)
        named = [each for each in ranked if _setting(engine, {phase: each.backend}).setting]
        picked |= {phase: named[0].backend} if named else {}
        if ranked and ranked[:1] != named[:1]:
            notes.append(_setting(engine, {phase: ranked[0].backend}).note)
        ground += list(dict.fromkeys((*ranked[:1], *named[:1])))
    setting = _setting(engine, picked)
    return EngineAdvice(
        engine=engine, version=VERSIONS[engine], device=device, setting=setting.setting,
        notes=tuple(dict.fromkeys(filter(None, (*notes, setting.note)))), ground=tuple(ground),
    )  # fmt: skip


def _setting(engine: str, picked: dict[str, str]) -> EngineSetting:
    settings = serving_flags.settings(picked.get("all"), picked.get("decode"), picked.get("prefill"))
    return next((each for each in settings if each.engine == engine), EngineSetting(engine=engine))


def standings(choices: Sequence[Choice], phase: str = "all") -> list[Standing]:
    """The backends of these choices; those that are ranked in the most come first, then the fastest."""
    factors: dict[str, list[float]] = {}
    for choice in choices:
        for each in choice.ranking:
            factors.setdefault(each.backend, []).append(each.over)
    ranked = [
        Standing(
            backend=backend, phase=phase, runs=len(values), of=len(choices),
            fastest=sum(backend in (choice.backend, *choice.tied) for choice in choices),
            mean=math.exp(math.fsum(map(math.log, values)) / len(values)),
        )
        for backend, values in factors.items()
    ]  # fmt: skip
    return sorted(ranked, key=lambda each: (-each.runs, each.mean))
