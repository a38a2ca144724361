"""The names of `attnbench.kernels.gluon` on a simulated block: values are torch tensors, layouts mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.kernels.simulated.block import Barrier, Block, Misuse, Operation, join


class Int(int):
    """A scalar of 32 bits that divides as a GPU does: only what is not negative divides alike everywhere."""


def _arithmetic(name: str) -> None:
    """As `int` computes it, which has no answer where the other is no integer."""
    compute, divides, reflected = getattr(int, name), name.endswith(("floordiv__", "mod__")), name.startswith("__r")

    def method(self: Int, other: Any) -> Any:
        if divides and isinstance(other, int):
            left, right = (other, self) if reflected else (self, other)
            if left < 0 or right <= 0:
                raise Misuse(f"{left} and {right} divide otherwise on a GPU")
        found = compute(self, other)
        if found is NotImplemented:
            return found
        if -(2**31) < found < 2**31:
            return Int(found)
        raise Misuse(f"{self} and {other}: beyond 32 bits")

    setattr(Int, name, method)


for _name in ("add", "sub", "mul", "floordiv", "mod", "and", "xor"):
    _arithmetic(f"__{_name}__")
    _arithmetic(f"__r{_name}__")


class Launch:
    """One program of a grid at work; the functions of this module act on the one that runs."""

    now: Launch

    def __init__(self, program: int, programs: int, block: Block) -> None:
        self.program, self.programs, self.block = program, programs, block
        self.allocations = 0


@dataclass
class Place:
    """A tile in shared memory, or a ring of them: data, and which rows of which tile they are."""

    data: Tensor
    buffer: int
    slot: int = 0
    low: int = 0
    high: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, slot: int) -> Place:
        data = self.data[slot]
        return Place(data, self.buffer, int(slot), 0, data.shape[-2])

    def reshape(self, shape: list[int]) -> Place:
        return Place(self.data.view(shape), self.buffer, self.slot, self.low, self.high)

    def permute(self, order: tuple[int, ...]) -> Place:
        return Place(self.data.permute(order), self.buffer, self.slot, self.low, self.high)

    def slice(self, start: int, length: int) -> Place:
        low = self.low + start
        return Place(self.data.narrow(0, start, length), self.buffer, self.slot, low, low + length)

    def touch(self, agent: Any, write: bool, direct: bool) -> None:
        Launch.now.block.access(agent, (self.buffer, self.slot), self.low, self.high, write, direct)

    def load(self, _layout: Any) -> Tensor:
        self.touch(Launch.now.block.current.agent, write=False, direct=False)
        return self.data.clone()

    def store(self, value: Tensor) -> None:
        self.touch(Launch.now.block.current.agent, write=True, direct=False)
        self.data.copy_(value)


@dataclass
class Barriers:
    """Barriers in shared memory."""

    each: list[Barrier]

    def index(self, place: int) -> Barriers:
        return Barriers([self.each[place]])

    @property
    def one(self) -> Barrier:
        (barrier,) = self.each
        return barrier


@dataclass
class Descriptor:
    """A tensor [batch, heads, rows, D] and the box that is copied of it."""

    tensor: Tensor
    block_shape: list[int]
    layout: Any = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def block_type(self) -> Any:
        numbers = self.block_shape[2] * self.block_shape[3]
        return SimpleNamespace(nbytes=numbers * self.tensor.element_size())

    def box(self, corner: list[int]) -> Tensor:
        """What of it lies within the tensor."""
        batch, head, row, column = corner
        if not (0 <= batch < self.tensor.shape[0] and 0 <= head < self.tensor.shape[1]):
            raise Misuse(f"no batch {batch} and head {head} in {list(self.tensor.shape)}")
        rows, columns = self.block_shape[2:]
        return self.tensor[batch, head, row : row + rows, column : column + columns]


@dataclass
class Pointer:
    """Into a tensor; what it points to may be a tensor of places."""

    base: Tensor
    offset: Any = 0

    def __add__(self, steps: Any) -> Pointer:
        return Pointer(self.base, self.offset + steps)


@dataclass
class Product:
    """A product under way; its result is there when it has been waited for."""

    operation: Operation | None = None
    result: Tensor | None = None


def allocate_shared_memory(dtype: Any, shape: list[int], _layout: Any) -> Any:
    """Nothing is in it."""
    launch = Launch.now
    if dtype is torch.int64:
        made = [Barrier(f"barrier {launch.allocations}.{slot}") for slot in range(shape[0])]
        launch.allocations += 1
        launch.block.barriers.extend(made)
        return Barriers(made)
    launch.allocations += 1
    return Place(torch.full(shape, float("nan")).to(dtype), launch.allocations)


def init(barriers: Barriers, count: int) -> None:
    """A barrier for so many arrivals."""
    barriers.one.count = barriers.one.pending = count


def _usable(barriers: Barriers) -> Barrier:
    barrier = barriers.one
    if not barrier.count or not barrier.fenced:
        raise Misuse(f"{barrier.name} is used before it is initialised and fenced")
    return barrier


def arrive(barriers: Barriers, count: int = 1) -> None:
    """What this partition has done comes before what those do who wait for this."""
    barrier, agent = _usable(barriers), Launch.now.block.current.agent
    join(barrier.gathered, agent.clock)
    agent.tick()
    barrier.pending -= count
    barrier.settle()
    Launch.now.block.until(None, "")


def expect(barriers: Barriers, size: int) -> None:
    """Arrive, and let the phase end only when so many bytes have come."""
    barriers.one.bytes += size
    arrive(barriers)


def wait(barriers: Barriers, parity: int) -> None:
    """Until the phase of this parity has ended."""
    barrier, block = _usable(barriers), Launch.now.block
    if parity not in (0, 1):
        raise Misuse(f"{barrier.name}: a parity of {parity}")
    partition = block.current
    block.until(lambda: barrier.phase & 1 != parity, f"phase {parity} of {barrier.name}")
    join(partition.agent.clock, barrier.released)


def fetch(source: Descriptor, corner: list[int], barriers: Barriers, place: Place) -> None:
    """Begin to copy a box into shared memory; zeros where it lies beyond the tensor."""
    barrier = _usable(barriers)

    def perform(agent: Any) -> None:
        place.touch(agent, write=True, direct=True)
        inside = source.box(corner)
        place.data.zero_()
        place.data[0, 0, : inside.shape[0], : inside.shape[1]] = inside
        join(barrier.gathered, agent.clock)
        barrier.bytes -= source.block_type.nbytes
        barrier.settle()

    Launch.now.block.begin("fetch", perform)


def send(target: Descriptor, corner: list[int], place: Place) -> None:
    """Begin to copy a box out of shared memory, as far as the tensor goes."""

    def perform(agent: Any) -> None:
        place.touch(agent, write=False, direct=True)
        inside = target.box(corner)
        if not inside.isnan().all():
            raise Misuse(f"rows at {corner} are written twice")
        inside.copy_(place.data[0, 0, : inside.shape[0], : inside.shape[1]])

    block = Launch.now.block
    block.begin("send", perform, block.current.sends)


def sent(pending: int) -> None:
    """Until all but so many copies out have read shared memory."""
    block = Launch.now.block
    block.finish(block.current.sends, pending, "copies out of shared memory")


def warpgroup_mma(a: Any, b: Place, acc: Any, use_acc: bool = True, is_async: bool = False) -> Product:
    """Begin a product; operands in shared memory are read at some time until it is waited for."""
    if not is_async:
        raise Misuse("only asynchronous products are simulated")
    block = Launch.now.block
    made = Product()

    def perform(agent: Any) -> None:
        for place in (a, b):
            if isinstance(place, Place):
                place.touch(agent, write=False, direct=True)
        left = a.data if isinstance(a, Place) else a
        before = acc.result if isinstance(acc, Product) else acc
        product = left.float() @ b.data.float()
        made.result = before + product if use_acc else product

    made.operation = block.begin("product", perform, block.current.products)
    return made


def warpgroup_mma_wait(pending: int, deps: tuple[Product, ...]) -> Any:
    """Until all but so many products are done; their results."""
    block = Launch.now.block
    products = block.current.products
    block.finish(products, pending, f"all but {pending} products")
    if any(made.operation in products.begun for made in deps):
        raise Misuse("a result is taken before its product is waited for")
    found = [made.result for made in deps]
    return found[0] if len(found) == 1 else tuple(found)


def fence_async_shared() -> None:
    """What this partition wrote may be read by copies and products."""
    Launch.now.block.fence()


def _either(compute: Any, choose: Any) -> Any:
    def function(left: Any, right: Any) -> Any:
        if isinstance(left, Tensor) or isinstance(right, Tensor):
            return compute(torch.as_tensor(left), torch.as_tensor(right))
        return Int(choose(left, right))

    return function


def _where(condition: Any, one: Any, other: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, one, other)
    return one if condition else other


def _least(values: Tensor, axis: int) -> Any:
    found = values.amin(axis)
    return Int(found) if found.ndim == 0 else found


def _most(values: Tensor, axis: int) -> Any:
    found = values.amax(axis)
    return Int(found) if found.ndim == 0 else found


def _load(pointer: Pointer, mask: Tensor | None = None, other: float = 0) -> Any:
    flat = pointer.base.flatten()
    if mask is None:
        return float(flat[pointer.offset])
    return torch.where(mask, flat[torch.where(mask, pointer.offset, 0)], other)


def _store(pointer: Pointer, values: Tensor, mask: Tensor) -> None:
    flat, places = pointer.base.view(-1), pointer.offset[mask]
    if not flat[places].isnan().all():
        raise Misuse("numbers are written twice")
    flat[places] = values[mask]


def _static_range(count: int) -> Iterator[int]:
    return iter(range(count))


class _Layout(SimpleNamespace):
    def __init__(self, *of: Any) -> None:
        super().__init__(parent=of[1] if len(of) > 1 else None)


gl = SimpleNamespace(
    constexpr=lambda value: value, float32=torch.float32, int64=torch.int64,
    SliceLayout=_Layout, BlockedLayout=_Layout, NVMMADistributedLayout=_Layout, DotOperandLayout=_Layout,
    allocate_shared_memory=allocate_shared_memory, static_range=_static_range,
    program_id=lambda axis: Int(Launch.now.program), num_programs=lambda axis: Int(Launch.now.programs),
    num_warps=lambda: 4, cdiv=lambda size, of: (size + of - 1) // of,
    minimum=_either(torch.minimum, min), maximum=_either(torch.maximum, max), where=_where, min=_least, max=_most,
    sum=lambda values, axis: values.sum(axis), exp2=torch.exp2, log2=torch.log2,
    arange=lambda start, end, layout=None: torch.arange(start, end),
    full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
    zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype), zeros_like=torch.zeros_like,
    convert_layout=lambda value, layout: value, cast=lambda value, dtype: int(value), load=_load, store=_store,
    warp_specialize=lambda functions, warps, registers: Launch.now.block.run(functions),
)  # fmt: skip
MBarrierLayout = _Layout


def jit(function: Any = None, **_options: Any) -> Any:
    """As it is."""
    return function or (lambda given: given)
