"""The regression gate: is head slower than base? docs/gate.md has the rule and its measured error rates.

`paired` measures base and head side by side, `stored` compares two runs. `evidence` extracts effects from results,
`rule` decides on them with the tests of `significance`, and `judgement` collects the verdicts. `record` is what a gate
stores; `trees` provides the files of base, `changed` the cases that a change can touch, by the `import_closure` of
their code. `baselines` keeps runs by name, `history` is the trend of a project.
"""
