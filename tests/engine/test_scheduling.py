"""Plans of a simulated cluster: the scheduler keeps its nodes busy, and loses no group with a node."""

from tools.scheduling import Simulation


def test_nodes_are_idle_for_a_small_share_of_a_plan():
    outcome = Simulation(4_000, 40).run()
    assert (outcome.measured, outcome.given_up) == (4_000, 0)
    assert outcome.idle <= 0.01  # cheapest first, 0.15


def test_nodes_that_are_lost_and_come_back_cost_little_more_than_the_work_they_lose():
    outcome = Simulation(4_000, 40, lost_every_s=600).run()
    assert (outcome.measured, outcome.given_up) == (4_000, 0)
    assert outcome.losses > 20
    assert outcome.idle <= 0.01
