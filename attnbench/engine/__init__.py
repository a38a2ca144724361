"""How a run is carried out: plan, rounds, worker processes."""
