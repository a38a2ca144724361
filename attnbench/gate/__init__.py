"""Whether head is slower than base: margins, tests, verdicts; docs/gate.md has the rule and how often it errs.

`rule` is a pure function of what was stored; `evidence` takes it out of results; `paired` measures base and head side
by side, `stored` compares two runs; `trees` makes base's files, `baselines` keeps runs by name.
"""
