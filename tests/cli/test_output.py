"""Tables that commands print after a run."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Command
from tests.records.test_run_directory import stored
from tests.samples import result


def test_columns_stand_in_the_order_that_was_asked_for(tmp_path: Path, attnbench_command: Command) -> None:
    """Whatever was measured first."""
    naive, flash = result([1.0]), result([0.5], backend="sdpa:flash")
    run = stored(tmp_path / "run", flash, naive, arms=(naive.arm, flash.arm))
    for form in ("table", "md"):
        shown = attnbench_command("show", str(run), "--format", form).stdout
        (heading,) = [line for line in shown.splitlines() if "naive" in line and "seq" in line]
        assert heading.index("naive") < heading.index("sdpa:flash")
