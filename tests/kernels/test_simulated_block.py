"""The simulated block itself: what it must find in programs of a few lines."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.kernels.simulated import gluon as g  # noqa: E402
from tests.kernels.simulated.block import Block, Deadlock, Misuse, Race  # noqa: E402


@pytest.fixture
def launch() -> g.Launch:
    return begin()


def begin() -> g.Launch:
    g.Launch.now = g.Launch(0, 1, Block())
    return g.Launch.now


def barrier(count: int = 1) -> Any:
    made = g.allocate_shared_memory(torch.int64, [1], None)
    g.init(made, count)
    g.fence_async_shared()
    return made


def tile() -> Any:
    return g.allocate_shared_memory(torch.float32, [1, 1, 1, 64, 16], None).index(0)


def source(rows: int = 64) -> g.Descriptor:
    return g.Descriptor(torch.ones(1, 1, rows, 16), [1, 1, 64, 16])


CORNER = [0, 0, 0, 0]


def test_what_is_read_before_it_has_come_is_a_race(launch: g.Launch) -> None:
    place, full = tile(), barrier()

    def careless() -> None:
        g.expect(full, 4096)
        g.fetch(source(), CORNER, full, place)
        place.load(None)

    with pytest.raises(Race, match="rows 0 to 64"):
        launch.block.run([(careless, ())])


def test_a_wait_orders_a_copy_before_a_read(launch: g.Launch) -> None:
    place, full = tile(), barrier()

    def careful() -> None:
        g.expect(full, 4096)
        g.fetch(source(rows=50), CORNER, full, place)
        g.wait(full, 0)
        assert place.load(None).sum() == 50 * 16

    launch.block.run([(careful, ())])


def test_two_writers_of_other_rows_are_no_race_and_of_the_same_are(launch: g.Launch) -> None:
    place = tile().reshape([64, 16])

    def write(start: int) -> None:
        place.slice(start, 32).store(torch.zeros(32, 16))

    launch.block.run([(write, (0,)), (write, (32,))])
    with pytest.raises(Race, match=r"write by write \d of what write \d has under write"):
        launch.block.run([(write, (0,)), (write, (16,))])


def test_a_barrier_passes_the_past_on(launch: g.Launch) -> None:
    place, ready = tile().reshape([64, 16]), barrier()

    def write() -> None:
        place.store(torch.ones(64, 16))
        g.arrive(ready)

    def read() -> None:
        g.wait(ready, 0)
        assert place.load(None).sum() == 1024

    launch.block.run([(read, ()), (write, ())])


def test_a_copy_out_needs_a_fence_behind_the_writes() -> None:
    target = g.Descriptor(torch.full((1, 1, 64, 16), torch.nan), [1, 1, 64, 16])

    def write(fenced: bool) -> None:
        place = tile()
        place.reshape([64, 16]).store(torch.ones(64, 16))
        if fenced:
            g.fence_async_shared()
        g.send(target, CORNER, place)
        g.sent(0)

    with pytest.raises(Misuse, match="no fence"):
        begin().block.run([(write, (False,))])
    begin().block.run([(write, (True,))])
    assert target.tensor.sum() == 1024
    with pytest.raises(Misuse, match="written twice"):
        begin().block.run([(write, (True,))])


def test_a_wait_that_nobody_ends_is_a_deadlock(launch: g.Launch) -> None:
    full = barrier()
    with pytest.raises(Deadlock, match="waits for phase 0"):
        launch.block.run([(lambda: g.wait(full, 0), ())])
    launch.block.run([(lambda: g.wait(full, 1), ())])  # as if a phase had been before the first


def test_bytes_that_do_not_come_are_waited_for(launch: g.Launch) -> None:
    place, full = tile(), barrier()

    def greedy() -> None:
        g.expect(full, 5000)
        g.fetch(source(), CORNER, full, place)
        g.wait(full, 0)

    with pytest.raises(Deadlock):
        launch.block.run([(greedy, ())])


def test_one_arrival_too_many_is_misuse(launch: g.Launch) -> None:
    full = barrier(2)

    def arrive() -> None:
        g.arrive(full, count=3)

    with pytest.raises(Misuse, match="more arrived than the 2"):
        launch.block.run([(arrive, ())])


def test_a_barrier_must_be_initialised_and_fenced(launch: g.Launch) -> None:
    bare = g.allocate_shared_memory(torch.int64, [1], None)
    with pytest.raises(Misuse, match="before it is initialised"):
        launch.block.run([(lambda: g.wait(bare, 1), ())])
    g.init(bare, 1)
    with pytest.raises(Misuse, match="before it is initialised and fenced"):
        launch.block.run([(lambda: g.wait(bare, 1), ())])


def product(place: Any, acc: Any) -> Any:
    return g.warpgroup_mma(torch.ones(64, 64), place.reshape([64, 16]), acc, is_async=True)


def test_products_are_waited_for_in_their_order(launch: g.Launch) -> None:
    place, full = tile(), barrier()

    def compute() -> None:
        g.expect(full, 4096)
        g.fetch(source(), CORNER, full, place)
        g.wait(full, 0)
        first = product(place, torch.zeros(64, 16))
        second = product(place, first)
        assert g.warpgroup_mma_wait(1, deps=(first,)).sum() == 64 * 16 * 64
        with pytest.raises(Misuse, match="before its product is waited for"):
            g.warpgroup_mma_wait(1, deps=(second,))
        assert g.warpgroup_mma_wait(0, deps=(second,)).sum() == 2 * 64 * 16 * 64

    launch.block.run([(compute, ())])


def test_a_tile_is_not_overwritten_under_a_product(launch: g.Launch) -> None:
    place, full = tile(), barrier()

    def compute() -> None:
        for turn in range(2):
            g.expect(full, 4096)
            g.fetch(source(), CORNER, full, place)
            g.wait(full, turn)
            made = product(place, torch.zeros(64, 16))
        g.warpgroup_mma_wait(0, deps=(made,))

    with pytest.raises(Race, match="write by fetch of what product has under read"):
        launch.block.run([(compute, ())])


def test_a_program_must_not_end_before_its_products(launch: g.Launch) -> None:
    place = tile()
    place.reshape([64, 16]).store(torch.ones(64, 16))
    g.fence_async_shared()
    with pytest.raises(Misuse, match="ended before"):
        launch.block.run([(lambda: product(place, torch.zeros(64, 16)), ())])


def test_a_number_beyond_32_bits_or_below_0_is_refused() -> None:
    assert g.Int(7) // 2 + 1 == 4
    with pytest.raises(Misuse, match="beyond 32 bits"):
        g.Int(2**20) * 2**20
    with pytest.raises(Misuse, match="divide otherwise on a GPU"):
        (g.Int(3) - 10) // 4
