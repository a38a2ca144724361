"""The scheduler: no task lost, none twice, one at a time on a slot, bounded tries; and its order."""

from collections import Counter

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.group import Group
from attnbench.engine.scheduler import MAX_FAILED, GivenUp, Slot, Task, TaskKey, TaskScheduler

MAX_TRIES = 3
CLASSES = ("H100", "cpu")


def task(name: str, seconds: float = 1.0, restart: int = 0, hardware: str = "cpu", late: bool = False) -> Task:
    group = Group(id=name, problem=Problem(seq_q=64), mode=Mode.FWD, arms=(), late=late)
    return Task(group=group, restart=restart, hardware=hardware, seconds=seconds)


def slots(node: str, count: int = 1, hardware: str = "cpu") -> list[Slot]:
    return [Slot(node, f"cpu:{index}", hardware, (index,)) for index in range(count)]


def order(scheduler: TaskScheduler, slot: Slot) -> list[str]:
    """The groups in the order in which one slot measures them all."""
    names = []
    while assigned := scheduler.assign(slot):
        names.append(f"{assigned.restart}{assigned.group.id}")
        scheduler.finish(slot)
    return names


def test_restarts_follow_one_another_and_within_one_the_most_expensive_group_is_first():
    tasks = [task("a", 1), task("b", 3), task("c", 3, late=True), task("d", 2), task("b", 9, restart=1)]
    scheduler = TaskScheduler(reversed(tasks))
    (slot,) = slots("n")
    scheduler.add_node("n", [slot])
    assert order(scheduler, slot) == ["0b", "0c", "0d", "0a", "1b"]


def test_with_a_budget_the_cheapest_group_is_first():
    scheduler = TaskScheduler([task("a", 1), task("b", 3), task("c", 2)], cheapest_first=True)
    (slot,) = slots("n")
    scheduler.add_node("n", [slot])
    assert order(scheduler, slot) == ["0a", "0c", "0b"]


def test_tasks_with_places_follow_them_whatever_they_cost():
    places = {"a": 2, "b": 0, "c": 1}
    tasks = [msgspec.structs.replace(task(name, 3 - place), place=place) for name, place in places.items()]
    scheduler = TaskScheduler(tasks, cheapest_first=True)
    (slot,) = slots("n")
    scheduler.add_node("n", [slot])
    assert order(scheduler, slot) == ["0b", "0c", "0a"]


def test_a_slot_gets_tasks_of_its_hardware_alone():
    scheduler = TaskScheduler([task("a", hardware="H100"), task("a", hardware="cpu")])
    (slot,) = slots("n")
    scheduler.add_node("n", [slot])
    assert order(scheduler, slot) == ["0a"]
    assert (scheduler.waiting, scheduler.stranded) == ({"H100": 1}, ("H100",))


def test_restarts_of_a_group_go_to_different_nodes_where_they_can():
    """With equal durations the nodes take turns in every restart, and would measure the same groups each time."""
    scheduler = TaskScheduler(task(f"g{number:02}", restart=restart) for number in range(20) for restart in range(2))
    both = slots("n1") + slots("n2")
    for slot in both:
        scheduler.add_node(slot.node, [slot])
    nodes: dict[str, set[str]] = {}
    while not scheduler.finished:
        for slot in both:
            assigned = scheduler.assign(slot)
            assert assigned
            nodes.setdefault(assigned.group.id, set()).add(slot.node)
        for slot in both:
            scheduler.finish(slot)
    assert sum(len(each) == 2 for each in nodes.values()) >= 18


def test_a_task_whose_node_is_lost_three_times_is_given_up_with_the_reason():
    scheduler = TaskScheduler([task("a")])
    given_up: list[GivenUp] = []
    for name in ("n1", "n2", "n3"):
        (slot,) = slots(name)
        scheduler.add_node(name, [slot])
        assert scheduler.assign(slot)
        given_up += scheduler.lose_node(name)
    assert [each.reason for each in given_up] == ["its node was lost 3 times"]
    assert scheduler.finished


def test_a_failed_task_goes_to_another_node_while_there_is_one():
    scheduler = TaskScheduler([task("a", 2), task("b", 1)])
    (first,), (second,) = slots("n1"), slots("n2")
    scheduler.add_node("n1", [first])
    scheduler.add_node("n2", [second])
    scheduler.assign(first)
    scheduler.fail(first, "the actor died")
    assert (scheduler.assign(first), scheduler.assign(second)) == (task("b", 1), task("a", 2))
    scheduler.fail(second, "the actor died")  # now it failed on both, so that neither is better
    assert scheduler.assign(second) == task("a", 2)


def test_a_node_on_which_several_tasks_in_a_row_fail_is_drained_and_costs_no_task_its_tries():
    scheduler = TaskScheduler([task(f"g{number}", number) for number in range(20)])
    (bad,), (good,) = slots("bad"), slots("good")
    scheduler.add_node("bad", [bad])
    scheduler.add_node("good", [good])
    for _ in range(MAX_FAILED):
        assert scheduler.assign(bad)
        scheduler.fail(bad, "no disk")
    assert scheduler.drained == {"bad": "3 groups in a row failed, the last one: no disk"}
    assert scheduler.assign(bad) is None
    assert len(order(scheduler, good)) == 20


def test_one_task_that_fails_everywhere_drains_no_node():
    scheduler = TaskScheduler([task("a", 2), task("b", 1)])
    (slot,) = slots("n")
    scheduler.add_node("n", [slot])
    for _ in range(MAX_TRIES):
        scheduler.assign(slot)
        scheduler.fail(slot, "out of memory")
    assert [each.reason for each in scheduler.given_up] == ["out of memory 3 times"]
    assert order(scheduler, slot) == ["0b"]


def test_tasks_without_a_node_are_given_up_when_the_caller_says_so():
    scheduler = TaskScheduler([task("a", hardware="H100"), task("b")])
    (given_up,) = scheduler.abandon("no node has H100", scheduler.stranded[:1])
    assert (given_up.task.group.id, given_up.reason) == ("a", "no node has H100")
    assert scheduler.waiting == {"cpu": 1}


def test_slots_of_a_node_share_no_cores_and_a_result_of_a_lost_node_is_refused():
    scheduler = TaskScheduler([task("a")])
    with pytest.raises(ValueError, match="share a name or cores"):
        scheduler.add_node("n", [Slot("n", "cpu:0-1", "cpu", (0, 1)), Slot("n", "cpu:1-2", "cpu", (1, 2))])
    (slot,) = slots("n")
    scheduler.add_node("n", [slot])
    scheduler.assign(slot)
    with pytest.raises(ValueError, match="is busy"):
        scheduler.assign(slot)
    scheduler.lose_node("n")
    with pytest.raises(ValueError, match="is lost"):
        scheduler.finish(slot)


def test_two_tasks_of_one_key_are_refused():
    with pytest.raises(ValueError, match="two tasks have the key"):
        TaskScheduler([task("a"), task("a", 2)])


class Cluster(RuleBasedStateMachine):
    """Random nodes, losses, drains, failures; a model counts what happened to every task."""

    @initialize(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        names = [(f"g{number}", restart, hardware) for number in range(6) for restart in (0, 1) for hardware in CLASSES]
        chosen = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names)))
        seconds = st.floats(0, 100)
        self.keys = {TaskKey(hardware, restart, name) for name, restart, hardware in chosen}
        self.scheduler = TaskScheduler(
            [
                task(name, data.draw(seconds), restart, hardware, data.draw(st.booleans()))
                for name, restart, hardware in chosen
            ],
            max_tries=MAX_TRIES,
        )
        self.done: Counter[TaskKey] = Counter()
        self.tries: Counter[TaskKey] = Counter()
        self.given_up: Counter[TaskKey] = Counter()
        self.nodes: dict[str, list[Slot]] = {}
        self.added = 0

    @rule(hardware=st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3))
    def add(self, hardware: list[str]) -> None:
        name = f"n{self.added}"
        self.added += 1
        self.nodes[name] = [Slot(name, f"d{index}", each, (index,)) for index, each in enumerate(hardware)]
        self.scheduler.add_node(name, self.nodes[name])

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        for slot in self.nodes.pop(name):
            if running := self.scheduler.running.get(slot):
                self.tries[running.key] += 1
        self.count(self.scheduler.lose_node(name))

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        self.scheduler.drain(data.draw(st.sampled_from(sorted(self.nodes))), "its A/A control failed")

    @rule()
    def assign_all(self) -> None:
        drained = set(self.scheduler.drained)
        for slot in self.scheduler.idle:
            assert slot.node not in drained
            assigned = self.scheduler.assign(slot)
            assert assigned is None or assigned.hardware == slot.hardware
            assert assigned is None or not self.done[assigned.key] + self.given_up[assigned.key]

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.done[self.scheduler.finish(data.draw(st.sampled_from(sorted(self.scheduler.running)))).key] += 1

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.scheduler.running)))
        self.tries[self.scheduler.running[slot].key] += 1
        given_up = self.scheduler.fail(slot, "the actor died")
        self.count([given_up] if given_up else [])

    def count(self, given_up: list[GivenUp]) -> None:
        for each in given_up:
            assert self.tries[each.task.key] == MAX_TRIES
            self.given_up[each.task.key] += 1

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        running = Counter(each.key for each in self.scheduler.running.values())
        assert max([*running.values(), *self.done.values(), *self.given_up.values()], default=1) == 1
        places = [set(running), set(self.done), {each.task.key for each in self.scheduler.given_up}]
        assert sum(map(len, places)) == len(set.union(*places))
        assert sum(map(len, places)) + sum(self.scheduler.waiting.values()) == len(self.keys)
        assert max(self.tries.values(), default=0) <= MAX_TRIES

    @invariant()
    def no_core_has_two_tasks(self) -> None:
        cores = Counter((slot.node, core) for slot in self.scheduler.running for core in slot.cores)
        assert max(cores.values(), default=1) == 1

    def teardown(self) -> None:
        """A fresh node of every class ends the plan, whatever happened before."""
        if not hasattr(self, "scheduler"):
            return
        for slot in list(self.scheduler.running):
            self.done[self.scheduler.finish(slot).key] += 1
        last = [Slot("last", name, name) for name in CLASSES]
        self.scheduler.add_node("last", last)
        for slot in last:
            while assigned := self.scheduler.assign(slot):
                self.done[self.scheduler.finish(slot).key] += 1
                assert assigned.hardware == slot.hardware
        assert self.scheduler.finished
        assert set(self.done) | {each.task.key for each in self.scheduler.given_up} == self.keys


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_restarts_stay_at_their_home_while_it_is_expected_and_go_elsewhere_when_it_is_gone():
    tasks = [msgspec.structs.replace(task("a", restart=restart), home="n1") for restart in range(4)]
    scheduler = TaskScheduler([*tasks, task("b", restart=4)])
    scheduler.expected = {"n1", "n2"}
    (home,), (other,) = slots("n1"), slots("n2")
    scheduler.add_node("n2", [other])
    assert order(scheduler, other) == ["4b"]  # the home has not joined yet
    scheduler.add_node("n1", [home])
    for _ in range(2):
        assert scheduler.assign(home)
        scheduler.finish(home)
    assert scheduler.assign(home)
    scheduler.fail(home, "its process died")
    assert scheduler.assign(other) is None  # it returns to its home
    scheduler.lose_node("n1")
    scheduler.expected = {"n2"}
    assert order(scheduler, other) == ["2a", "3a"]
