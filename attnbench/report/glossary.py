"""The terms of a report, each in one sentence with an example; docs/glossary.md repeats the table."""

TERMS: dict[str, str] = {
    "arm": (
        "One backend on one device with one interpreter and environment, which is what is timed and ranked, for "
        "example `naive@cpu:threads=1`."
    ),
    "block": (
        "One uninterrupted stretch of timed calls of one arm, whose median is one sample, for example 20 calls of "
        "`naive` in 5 ms."
    ),
    "round": (
        "One pass in which every arm of a problem is timed for one block, in a random balanced order, so that slow "
        "drift of the machine affects all arms alike, for example naive, flash, flash, naive over two rounds."
    ),
    "restart": (
        "One repetition of the measurement with new worker processes, which shows what differs from process to "
        "process, for example memory addresses; `--restarts 6` makes six."
    ),
    "noise floor": (
        "The difference that two identical arms show on this machine for calls of a given duration, below which no "
        "change can be detected, for example 1.2 % for calls under 100 us."
    ),
    "A/A control": (
        "A second copy of an arm, measured like any other arm, whose difference from the first copy is noise alone, "
        "for example `sdpa#2` beside `sdpa`."
    ),
    "oracle": (
        "The process that computes the expected outputs in float64, apart from the backends, for example once for all "
        "arms of one problem."
    ),
    "same-dtype reference": (
        "The textbook formula computed in the dtype of the backend, whose error against float64 is the unit of a "
        "backend's error, for example an `err_vs_plain` of 1.5."
    ),
    "tolerance": (
        "The largest accepted deviation: of an output from its expected values, for example twice the error of the "
        "same-dtype reference, or in a gate of a time from that of base, for example 2 %."
    ),
    "margin": (
        "The smallest slowdown that a gate would call a change after all its restarts: the tolerance, or the "
        "resolution of the timer if that is larger, plus what the noise of the case may add, for example 2.8 %."
    ),
}
