"""One case ready to run in a worker: inputs in the backend's layout, and the call that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from attnbench.attention import inputs, transformations
from attnbench.attention.choices import Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.attention.transformations import Transformation
from attnbench.backends import Backend, CaseRefusedError, Layout, Prepared, scope
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.worker import process
from attnbench.worker.process_state import ProcessState
from attnbench.worker.protocol import CasePrepared

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.machine.device.instrument import Instrument, Pace


class PreparedCase:
    """One case ready to run. q, k, v and dout are on the device, in the backend's layout."""

    def __init__(
        self,
        case: Case,
        procedure: Procedure,
        backend: Backend,
        instrument: Instrument,
        state: ProcessState | None = None,
    ) -> None:
        self.case, self.procedure, self.backend, self.instrument = case, procedure, backend, instrument
        self.state = state or ProcessState()
        self.problem, self.mode = case.problem, case.mode
        self._set_transformation(transformations.identity(case.problem, gradients=case.mode.needs_grad))
        self.inputs_number = 0  # of the transformations so far
        self.orders = 0  # of sums that transformations have led to: outputs keep their bits within one
        # Of the last call: what the backend returned, and the gradients.
        self.outputs: tuple[Tensor | tuple[Tensor, ...], tuple[Tensor, ...]] | None = None
        self.kept: tuple[Tensor | tuple[Tensor, ...], tuple[Tensor, ...]] | None = None  # of the call to be judged
        self.pace: Pace | None = None
        self.call_s = self.change_s = 0.0  # of the last untimed call, and of the last change of the inputs
        values = inputs.make(case.problem, procedure.seed, procedure.inputs)
        self.digest = inputs.digest(values)
        with self.state.backend_code():
            self.prepared = scope.prepare(backend, case, instrument.torch_device)
        self.q, self.k, self.v = (self.place(getattr(values, name), name) for name in "qkv")
        self.qkv = self.q, self.k, self.v
        self.pack_s = self._seconds_of_packing(values)
        # k and v before a library stored them, where their form hides tokens and channels.
        self._plain = {name: getattr(values, name) for name in "kv"} if self.prepared.library_cache else {}
        self.dout = self.place(values.dout, "dout")
        if case.mode.needs_grad:
            for tensor in self.qkv:
                tensor.requires_grad_()
        self.call = self._timed_call()

    def place(self, tensor: Tensor, name: str, prepared: Prepared | None = None) -> Tensor:
        """That input on the device, contiguous in the backend's layout; k and v as it stores them, if it does.

        `prepared`: of another problem.
        """
        prepared = prepared or self.prepared
        store = prepared.stored_v if name == "v" and prepared.stored_v else prepared.stored
        if store and name in ("k", "v"):
            with self.state.backend_code():
                return store(tensor).to(self.instrument.torch_device)
        return ordered(self.backend, self.problem, tensor).to(self.instrument.torch_device)

    def _seconds_of_packing(self, values: inputs.Inputs) -> float | None:
        """The time to write k and v in the form of the library; None where the call itself does all that is needed."""
        store_k = self.prepared.stored
        if not (self.prepared.library_cache and store_k):
            return None
        store_v = self.prepared.stored_v or store_k
        with self.state.backend_code():
            started = time.perf_counter()
            store_k(values.k)
            store_v(values.v)
            return time.perf_counter() - started

    def _timed_call(self) -> Callable[[], object]:
        """The timed call. It returns its outputs, and keeps those of the last call, to be checked."""
        import torch

        call, qkv = self.prepared.call, self.qkv  # no attribute is looked up in a timed call

        def forward() -> object:
            with torch.no_grad():
                self.outputs = call(*qkv), ()
            return self.outputs

        def both() -> object:
            out = call(*qkv)
            self.outputs = out, self._gradients(out)
            return self.outputs

        def backward() -> object:
            self.outputs = self._out, self._gradients(self._out, retain_graph=True)
            return self.outputs[1]

        if self.mode is Mode.BWD:
            self._out = self.attend(*qkv)
        return {Mode.FWD: forward, Mode.FWD_BWD: both, Mode.BWD: backward}[self.mode]

    def call_once(self, state: AbstractContextManager[None], look: Callable[[], None] = lambda: None) -> None:
        """One untimed call, to its end on the device; `state`: of `backend_code` or `timed_calls`.

        `look` runs when the call has returned, before the device is waited for.
        """
        self.outputs = None
        with state:
            started = time.perf_counter()
            self.call()
            look()
            self.instrument.synchronize()
            self.call_s = time.perf_counter() - started

    def _gradients(self, out: Tensor | tuple[Tensor, ...], **options: bool) -> tuple[Tensor, ...]:
        """dq, dk, dv. Gradients of the weights of a scope are computed, as in training, and dropped."""
        import torch

        if not self.prepared.weights:
            return torch.autograd.grad(first_output(out), self.qkv, self.dout, **options)
        leaves = (*self.qkv, *self.prepared.weights)
        return torch.autograd.grad(out, leaves, self.dout, materialize_grads=True, **options)[:3]

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        """The forward pass. What it saves for the backward pass lives as long as its output."""
        outputs: Tensor | tuple[Tensor, ...] = self.prepared.call(*self.qkv)
        return outputs

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The forward pass on any inputs, untimed."""
        with self.state.backend_code():
            outputs: Tensor | tuple[Tensor, ...] = self.prepared.call(q, k, v)
        return outputs

    def attend_without_gradients(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The forward pass on any inputs under torch.no_grad, which is no change of the backend's code."""
        import torch

        with self.state.backend_code(), torch.no_grad():
            outputs: Tensor | tuple[Tensor, ...] = self.prepared.call(q, k, v)
        return outputs

    def fill(self, distribution: str, seed: int | None = None) -> inputs.Inputs:
        """Write inputs of another distribution, or of another seed, into the same tensors; return them."""
        import torch

        values = inputs.make(self.problem, self.procedure.seed if seed is None else seed, distribution)
        with torch.no_grad():
            for name in ("q", "k", "v", "dout"):
                getattr(self, name).copy_(self.place(getattr(values, name), name))
        self._plain = {name: getattr(values, name) for name in self._plain}
        self._set_transformation(transformations.identity(self.problem, gradients=self.mode.needs_grad))
        self._inputs_changed()
        return values

    def renew_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Put the inputs into new tensors; return the old q, k and v, which the backend may have kept."""
        old = self.qkv
        self.q, self.k, self.v, self.dout = (_copy(getattr(self, name)) for name in ("q", "k", "v", "dout"))
        self.qkv = self.q, self.k, self.v
        self.call = self._timed_call()
        return old

    def change(self, seed: int, moves: bool, reorder: bool) -> None:
        """Transform the inputs in place, by a draw from the seed: outputs of earlier calls become wrong.

        `moves`: not only factors change, which takes longer; `reorder`: sums may have another order. Otherwise a
        deterministic kernel returns the same bits, once the transformation is undone.
        """
        started = time.perf_counter()
        of_file = self.procedure.inputs.startswith(inputs.FILE)  # its numbers may be near the limit of the dtype
        allowed = transformations.freedom(
            self.problem, gradients=self.mode.needs_grad, moves=moves, reorder=reorder, scaled=not of_file
        )
        step = transformations.step(self.problem, allowed, seed, self._total)
        self.orders += reorder
        self.inputs_number += 1
        self._set_transformation(step.after(self._total))
        for name, tensor in self._tensors():
            if name in self._plain:
                step.apply_to(name, self._plain[name])
                tensor.copy_(self.place(self._plain[name], name))
                continue
            in_pages = self.prepared.stored is not None and name in ("k", "v")
            step.apply_to(name, tensor, head_axis=2 if in_pages or self.backend.layout is Layout.BSHD else 1)
        self.change_s = time.perf_counter() - started
        self._inputs_changed()

    def shift(self, places: Sequence[int]) -> None:
        """Shift the tokens of q, k, v and dout, each by its number: inputs whose outputs are not known, made fast."""
        import torch

        for distance, (name, tensor) in zip(places, self._tensors(), strict=False):
            if name in self._plain:
                self._plain[name] = self._plain[name].roll(distance, 2)
                tensor.copy_(self.place(self._plain[name], name))
                continue
            in_pages = self.prepared.stored is not None and name in ("k", "v")
            axis = 0 if in_pages else 1 if self.backend.layout is Layout.BSHD else 2
            bits = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
            bits.copy_(bits.roll(distance, axis))
        self._inputs_changed()

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """The inputs as torch's counter of versions does not see them: no kernel can tell a change by it."""
        self.outputs = self.kept = None
        return [
            (name, getattr(self, name).data) for name in ("q", "k", "v", "dout")[: 4 if self.mode.needs_grad else 3]
        ]

    def _set_transformation(self, total: Transformation) -> None:
        """The transformation of the inputs so far; `undo` makes outputs those of the inputs before it."""
        self._total, self.undo = total, total.inverse()

    def keep(self) -> None:
        """Keep the outputs of the last call, to be judged in place of those of a later one."""
        self.kept = self.outputs

    def take_kept(self) -> None:
        """Make the kept outputs those that are judged, if there are any."""
        if self.kept is not None:
            self.outputs, self.kept = self.kept, None

    def _inputs_changed(self) -> None:
        self.outputs = None
        if self.mode is Mode.BWD:
            self._out = self.attend(*self.qkv)
        self.instrument.synchronize()

    def named_outputs(self) -> dict[str, Tensor]:
        """out, lse, dq, dk, dv of the last call, as far as the case has them: [batch, heads, seq, width].

        Raises TypeError if the backend returned something else.
        """
        import torch

        assert self.outputs
        outputs, gradients = self.outputs
        named: dict[str, object] = {"out": outputs}
        if (second := self.problem.returns) is not Returns.OUT:
            if not (isinstance(outputs, tuple) and len(outputs) == 2):
                raise TypeError(f"the backend must return (out, {second}), and returned {_describe(outputs)}")
            named = {"out": outputs[0], second.value: outputs[1]}
        named.update(zip(("dq", "dk", "dv"), gradients, strict=False))
        tensors: dict[str, Tensor] = {}
        for name, tensor in named.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} is {_describe(tensor)}, not a tensor")
            heads_last = name not in ("lse", "weights") and self.backend.layout is Layout.BSHD and tensor.ndim == 4
            tensors[name] = tensor.transpose(1, 2) if heads_last else tensor
        return tensors


def _copy(tensor: Tensor) -> Tensor:
    """A tensor with the same numbers at the same places of a new memory."""
    import torch

    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


def ordered(backend: Backend, problem: Problem, tensor: Tensor) -> Tensor:
    """[batch, heads, seq, width] in the backend's layout; requests in memory token by token, as in a server."""
    if backend.layout is Layout.BSHD:
        return tensor.transpose(1, 2).contiguous()
    return tensor.transpose(1, 2).contiguous().transpose(1, 2) if problem.requests else tensor


def prepare(
    case: Case, procedure: Procedure, backend: Backend, instrument: Instrument, state: ProcessState
) -> tuple[PreparedCase, CasePrepared]:
    """Build the case, call it once and time both."""
    started = time.perf_counter()
    prepared = PreparedCase(case, procedure, backend, instrument, state)
    instrument.synchronize()
    allocated = instrument.allocated()
    prepare_s = time.perf_counter() - started
    facts = dict(prepared.prepared.facts)
    if backend.outside_torch:
        facts = _flags() | facts | _first_call(prepared, state)
    else:
        prepared.call_once(state.backend_code())
    state.called()
    if allocated is not None:
        prepared.outputs = None  # what stays allocated is no result: workspaces that libraries keep
        facts["memory_first_kept"] = max((instrument.allocated() or 0) - allocated, 0)
    with state.backend_code():
        late_facts = prepared.prepared.late_facts() if prepared.prepared.late_facts else {}
    seconds = {"prepare": prepare_s, "first_call": prepared.call_s, **prepared.prepared.seconds}
    if prepared.pack_s is not None:
        seconds["pack"] = prepared.pack_s
    if (compile_s := late_facts.pop("compile_s", None)) is not None:
        seconds["compile"] = compile_s
    facts.update(late_facts, input_digest=prepared.digest, layout=backend.layout.value)
    if runtimes := process.openmp_runtimes():
        facts["openmp_runtimes"] = runtimes
    if state.changes:
        facts["changed_state"] = state.changes
    return prepared, CasePrepared(seconds=seconds, facts=facts)


def _flags() -> dict[str, object]:
    """Read back, for libraries that report less."""
    return {"denormals": "flushed" if process.flushes_denormals() else "kept"}


def _first_call(case: PreparedCase, state: ProcessState) -> dict[str, object]:
    """The first call, and the growth of the process in it: later calls reuse what a library keeps.

    Raises CaseRefusedError for threads of the library that run on CPUs of other arms.
    """
    from attnbench.machine.device import process_memory

    before = process_memory.reset()
    case.call_once(state.backend_code())
    if names := process.unpinned_threads():
        raise CaseRefusedError(f"its threads run on CPUs that are not the arm's: {', '.join(dict.fromkeys(names))}")
    growth = {} if before is None else {"memory_first_call": process_memory.grown(before)}
    return {"affinity": "kept", **growth}


def first_output(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """`out` of what a backend returns."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _describe(value: object) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
