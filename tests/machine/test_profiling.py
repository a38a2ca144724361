"""Profiles: gaps and counters from made-up data, and one real call on this CPU."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from attnbench.machine.device import profiling  # noqa: E402
from attnbench.machine.device.cpu import CpuInstrument  # noqa: E402
from attnbench.records.arm import parse_device  # noqa: E402
from attnbench.report.terminal import profile as report  # noqa: E402
from tests.samples import result  # noqa: E402

PERF = """\
# started on Sat Nov 21
1000000;;cycles:u;1000;100.00;;
2500000;;instructions:u;1000;100.00;2.5;insn per cycle
<not supported>;;cache-misses;0;100.00;;
1.50;msec;task-clock;1500000;100.00;0.9;CPUs utilized
4;;context-switches;1500000;100.00;;
"""


@pytest.mark.parametrize(
    ("spans", "idle"),
    [([(0, 1), (2, 3), (2.5, 5), (7, 8)], 3), ([(5, 6), (0, 2)], 3), ([(0, 9), (1, 2), (3, 4)], 0), ([], 0)],
)
def test_gaps_are_where_nothing_ran(spans: list[tuple[float, float]], idle: float) -> None:
    assert profiling.gaps(spans) == idle


def test_counters_are_parsed_from_the_output_of_perf() -> None:
    assert profiling.parse(PERF) == {
        "cycles": 1e6,
        "instructions": 2.5e6,
        "task-clock": 1.5e-3,
        "context-switches": 4.0,
    }


def test_without_perf_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "not installed" in profiling.counters(lambda: None)["absent"]


def test_counters_that_are_not_permitted_give_the_message_of_perf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "perf"
    script.write_text("#!/bin/sh\necho 'Access to performance monitoring is limited.' >&2\nexit 255\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(profiling, "COUNTED_S", 0.01)
    assert profiling.counters(lambda: None) == {"absent": "perf: Access to performance monitoring is limited."}


def test_a_call_on_this_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "counters", lambda _: {"absent": "not here"})
    numbers = torch.randn(256, 256)
    cpu = CpuInstrument(parse_device("cpu:threads=1"))
    figures = profiling.profile_call(cpu, lambda: (numbers @ numbers).relu(), tmp_path / "seen")
    by_name = {row["name"]: row for row in figures["operators"]}
    assert by_name["aten::mm"]["calls"] == by_name["aten::relu"]["calls"] == profiling.MAX_STEPS
    assert sum(row["share"] for row in figures["operators"]) == pytest.approx(1, abs=0.01)
    assert figures["memory"]["peak_bytes"] == 2 * 256 * 256 * 4
    trace = json.loads(gzip.decompress((tmp_path / "seen" / "trace.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    rows = (tmp_path / "seen" / "memory.csv").read_text().splitlines()
    assert rows[0] == "time_s,allocated_bytes"
    assert max(int(row.split(",")[1]) for row in rows[1:]) == 2 * 256 * 256 * 4
    assert 0 < figures["busy"]["cores"] < 1.5


def profiled(**more: Any) -> dict[str, Any]:
    """Made-up figures of a profile."""
    rows = [{"name": f"aten::operator_{n}", "calls": 3, "self_s": 1e-3, "share": 1 / 20} for n in range(20)]
    return {
        "steps": 3, "operators": rows, "busy": {"cores": 0.99, "threads": 2.0}, "counters": {"absent": "no perf"},
        "files": ["trace.json.gz"], **more,
    }  # fmt: skip


def test_a_profile_fits_eighty_columns() -> None:
    profiled_result = result([1e-3] * 5, facts={"profile": profiled(), "resolved": "flash"})
    lines = list(report.text(profiled_result, "profile", []))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "time of a call    1.00 ms, not profiled" in text
    assert "resolved flash" in text
    assert "8 more in the trace" in text
    assert "counters: no perf" in text


def test_a_profile_on_a_gpu_shows_gaps_and_launches() -> None:
    figures = profiled(kernels=[{"name": "flash_fwd", "calls": 3, "self_s": 3e-3, "share": 1.0}])
    figures |= {"device_s": 1e-3, "gaps_s": 2e-5, "kernels_per_call": 1.0}
    profiled_result = result([1e-3] * 5, facts={"profile": figures})
    text = "\n".join(report.text(profiled_result, "p", ["nsys profile attnbench profile --bare"]))
    assert "on the device     1.00 ms in 1 kernels a call" in text
    assert "gaps between them 20.0 us" in text
    assert "from outside: nsys profile" in text
    counted = {"per_call": {"cycles": 1e6, "instructions": 2.5e6}, "calls": 10, "not_counted": ["cache-misses"]}
    profiled_result = result([1e-3] * 5, facts={"profile": profiled(counters=counted)})
    text = "\n".join(report.text(profiled_result, "p", []))
    assert "2.50 instructions a cycle" in text
    assert "not counted on this machine: cache-misses" in text
