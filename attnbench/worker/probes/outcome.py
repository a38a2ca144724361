"""What a backend does with unusual inputs: one outcome for each variant, judged against float64."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from msgspec.structs import replace

from attnbench.attention import inputs
from attnbench.attention.choices import Mode
from attnbench.backends import scope
from attnbench.worker import expected_values, failures
from attnbench.worker.correctness import judge

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.attention.inputs import Inputs
    from attnbench.attention.problem import Problem
    from attnbench.records.case import Case
    from attnbench.worker.prepared_case import PreparedCase

REFERENCE_S = 2.0  # of a float64 reference; of longer ones a part is computed
LASTING = "an ordinary call is wrong as well: the output depends on the calls before it"


class Reaction(StrEnum):
    """What a backend does with one variant."""

    RIGHT = "right"  # the output is that of the float64 reference
    TAKES = "takes"  # right, and torch makes no more copies than for contiguous inputs
    COPIES = "copies"  # right, with more copies
    FLUSHES = "flushes"  # right but for denormals, which become 0
    SPREADS = "spreads"  # NaN of keys that a row does not see reaches the row
    NAN = "nan"  # right but for NaN in rows for which the plain formula has no number
    REFUSES = "refuses"  # raises an error
    WRONG = "wrong"
    ABSENT = "absent"  # the variant does not exist for this case


class Judged(NamedTuple):
    """An outcome, and why, where it is not right."""

    outcome: Reaction
    reason: str = ""


class NotApplicableError(Exception):
    """The variant does not exist for this case; the message says why."""


class RefusedError(Exception):
    """The backend raised an error; the message holds it."""


class Variant(NamedTuple):
    """One unusual input or state."""

    what: str  # in words
    run: Callable[[PreparedCase], Judged]
    sources: tuple[str, ...]  # reports of kernels that were wrong


Figures = dict[str, object]
Output: TypeAlias = "Tensor | tuple[Tensor, ...]"  # as a prepared case has it
Variants = Mapping[str, Variant]


def outcomes(variants: Variants, case: PreparedCase) -> Figures:
    """Run variants on a case; the figures of each: outcome and reason."""
    figures: Figures = {}
    for name, variant in variants.items():
        case.fill(case.procedure.inputs)
        try:
            _require_core(case.problem)
            judged = variant.run(case)
        except NotApplicableError as error:
            judged = Judged(Reaction.ABSENT, str(error))
        except RefusedError as error:
            judged = Judged(Reaction.REFUSES, str(error))
        if judged.outcome is Reaction.WRONG and not _is_right(case):
            judged = Judged(Reaction.WRONG, f"{judged.reason}; {LASTING}")
        figures[name] = {"outcome": judged.outcome.value, "reason": judged.reason}
    return figures


def _is_right(case: PreparedCase) -> bool:
    """Whether an ordinary call of the case is right."""
    case.fill(case.procedure.inputs)
    try:
        return judged(case, own_inputs(case), lambda: attend(case, case.qkv)).outcome is Reaction.RIGHT
    except RefusedError:
        return False


def _require_core(problem: Problem) -> None:
    if problem.scope != "core" or problem.kv or problem.dropout:
        raise NotApplicableError("the variants are made for attention by itself, without latent cache and dropout")


def judged(case: PreparedCase, tensors: Inputs, call: Callable[[], Output], problem: Problem | None = None) -> Judged:
    """Judge what `call` returns for these inputs: right or wrong."""
    return judge_output(case, guarded(call), tensors, problem or case.problem)


def guarded(call: Callable[[], Output]) -> Output:
    """What the call returns. Raises RefusedError for any error of the backend."""
    try:
        return call()
    except Exception as error:
        raise RefusedError(failures.one_line(error)) from error


def judge_output(case: PreparedCase, returned: Output, tensors: Inputs, problem: Problem) -> Judged:
    """Judge what a backend returned for these inputs: right or wrong."""
    case.outputs = returned, ()
    try:
        named = case.named_outputs()
    except TypeError as error:
        return Judged(Reaction.WRONG, str(error))
    seed = case.procedure.seed
    with tempfile.TemporaryDirectory(prefix="attnbench-probe-") as folder:
        expected = expected_values.compute(
            problem, Mode.FWD, seed, "normal", Path(folder), REFERENCE_S, tensors=tensors
        )
        verdict = judge(expected, named, factor=case.backend.error_factor)
    return Judged(Reaction.RIGHT) if verdict.ok else Judged(Reaction.WRONG, verdict.reason)


def own_inputs(case: PreparedCase) -> Inputs:
    """The inputs of the case, as the float64 reference takes them."""
    return inputs.make(case.problem, case.procedure.seed, case.procedure.inputs)


def changed(tensors: Inputs, **others: Tensor) -> Inputs:
    """The same inputs with other tensors."""
    return replace(tensors, **others)


def placed(case: PreparedCase, tensors: Inputs) -> list[Tensor]:
    """q, k and v on the device, in the layout of the backend."""
    return [case.place(getattr(tensors, name), name) for name in "qkv"]


def attend(case: PreparedCase, qkv: Sequence[Tensor]) -> Output:
    """What the backend returns, without gradients."""
    q, k, v = qkv
    return case.attend_without_gradients(q, k, v)


def other_call(case: PreparedCase, other: Case, tensors: Inputs) -> Output:
    """What the backend returns for another case, without gradients."""
    import torch

    with case.state.backend_code(), torch.no_grad():
        prepared = scope.prepare(case.backend, other, str(case.q.device))
    qkv = [case.place(getattr(tensors, name), name, prepared) for name in "qkv"]
    with case.state.backend_code(), torch.no_grad():
        returned: Output = prepared.call(*qkv)
    return returned


def out(case: PreparedCase, qkv: Sequence[Tensor]) -> Tensor:
    """The output as float32: [batch, heads, seq_q, head_dim_v]."""
    case.outputs = guarded(lambda: attend(case, qkv)), ()
    return case.named_outputs()["out"].float()


def words(variant: Callable[..., object]) -> str:
    """The first sentence of its docstring."""
    return (variant.__doc__ or "").splitlines()[0].rstrip(".")
