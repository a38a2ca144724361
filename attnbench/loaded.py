"""One case ready to run in a worker: inputs in the backend's layout, and the call that is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attnbench import verify
from attnbench.attention import inputs as made
from attnbench.attention.problem import Mode, Returns
from attnbench.backends import Backend, Layout, around
from attnbench.case import Case
from attnbench.result import Procedure

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.device import Instrument, Pace


INPUTS = ("q", "k", "v", "dout")


class Loaded:
    """One case ready to run: inputs in the backend's layout, and the call that is timed."""

    def __init__(self, case: Case, procedure: Procedure, backend: Backend, instrument: Instrument) -> None:
        self.case, self.procedure, self.backend, self.instrument = case, procedure, backend, instrument
        self.sign = 1  # inputs are negated between blocks; so are out and gradients, exactly
        self.outputs: Any = None
        self.pace: Pace | None = None
        self.expected: verify.Expected | None = None
        given = made.make(case.problem, procedure.seed, procedure.inputs)
        self.digest = made.digest(given)
        self.prepared = around.prepare(backend, case, instrument.torch_device)
        self.q, self.k, self.v, self.dout = (self.place(getattr(given, name), name) for name in INPUTS)
        if case.mode.needs_grad:
            for tensor in (self.q, self.k, self.v):
                tensor.requires_grad_()
        self.call = self._build()

    def place(self, tensor: Tensor, name: str) -> Tensor:
        """That input on the device, in the backend's layout, contiguous there; k and v in pages where they are kept."""
        if self.prepared.stored and name in ("k", "v"):
            return self.prepared.stored(tensor).to(self.instrument.torch_device)  # type: ignore[no-any-return]
        turned = tensor.transpose(1, 2).contiguous() if self.backend.layout is Layout.BSHD else tensor
        return turned.to(self.instrument.torch_device)

    def _build(self) -> Callable[[], Any]:
        """The timed call. It gives its outputs back, and keeps those of the last call for `Check`."""
        import torch

        call, inputs = self.prepared.call, (self.q, self.k, self.v)

        def forward() -> Any:
            with torch.no_grad():
                self.outputs = call(*inputs), ()
            return self.outputs

        def both() -> Any:
            out = call(*inputs)
            self.outputs = out, self._gradients(out)
            return self.outputs

        def backward() -> Any:
            self.outputs = self._out, self._gradients(self._out, retain_graph=True)
            return self.outputs[1]

        if self.case.mode is Mode.BWD:
            self._out = call(*inputs)
        return {Mode.FWD: forward, Mode.FWD_BWD: both, Mode.BWD: backward}[self.case.mode]

    def _gradients(self, out: Any, **options: bool) -> tuple[Tensor, ...]:
        """dq, dk, dv; those of the weights of a scope are computed as training does, and dropped."""
        import torch

        inputs = self.q, self.k, self.v
        if not self.prepared.weights:
            return torch.autograd.grad(_first(out), inputs, self.dout, **options)
        every = (*inputs, *self.prepared.weights)
        return torch.autograd.grad(out, every, self.dout, materialize_grads=True, **options)[:3]

    def forward(self) -> Any:
        """The forward pass as a backward pass needs it: what it keeps hangs on what it gives back."""
        return self.prepared.call(self.q, self.k, self.v)

    def fill(self, distribution: str) -> None:
        """Put other inputs into the same tensors."""
        given = made.make(self.case.problem, self.procedure.seed, distribution)
        self._rewrite(lambda name, tensor, fresh: tensor.copy_(self.place(fresh, name)), given)
        self.sign = 1

    def negate(self) -> None:
        """Turn the sign of inputs, in place, as `verify.negates` has it: a cached output would now be wrong."""
        self._rewrite(lambda _, tensor, __: tensor.neg_(), None, verify.negates(self.case.problem)[0])
        self.sign = -self.sign

    def _rewrite(
        self, change: Callable[[str, Tensor, Any], Any], given: made.Inputs | None, names: tuple[str, ...] = INPUTS
    ) -> None:
        import torch

        self.outputs = None
        with torch.no_grad():
            for name in names:
                change(name, getattr(self, name), getattr(given, name) if given else None)
        if self.case.mode is Mode.BWD:
            self._out = self.prepared.call(self.q, self.k, self.v)
        self.instrument.synchronize()

    def named_outputs(self) -> dict[str, Tensor]:
        """out, lse, dq, dk, dv of the last call, as [batch, heads, seq, dim], as far as the case gives them."""
        import torch

        outputs, gradients = self.outputs
        named: dict[str, Any] = {"out": outputs}
        if (second := self.case.problem.returns) is not Returns.OUT:
            if not (isinstance(outputs, tuple) and len(outputs) == 2):
                raise TypeError(f"the backend was asked for (out, {second}) and gave {_describe(outputs)}")
            named = {"out": outputs[0], second.value: outputs[1]}
        named.update(zip(("dq", "dk", "dv"), gradients, strict=False))
        for name, tensor in named.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} is {_describe(tensor)}, not a tensor")
            if name not in ("lse", "weights") and self.backend.layout is Layout.BSHD and tensor.ndim == 4:
                named[name] = tensor.transpose(1, 2)
        return named


def _first(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _describe(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
