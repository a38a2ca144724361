"""Whether Triton's interpreter looks for sums and products that 32 bits do not hold."""

from __future__ import annotations

from dataclasses import replace


def look_for_overflow(wanted: bool) -> None:
    """Wanted, it is an AssertionError. By default the interpreter computes what the check needs, and looks at nothing.

    Without it tests take little more than half of the time. A Triton whose interpreter has no such options is left
    as it is.
    """
    from triton.runtime import interpreter

    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if hasattr(options, "sanitize_overflow") and hasattr(options, "debug"):
        builder.options = replace(options, sanitize_overflow=wanted, debug=wanted)
