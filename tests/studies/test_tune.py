from __future__ import annotations

import math
from pathlib import Path

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import load
from attnbench.cli import invoke
from attnbench.cli.tune import lines
from attnbench.engine.worker_process import Worker
from attnbench.errors import UsageError
from attnbench.kernels import tables
from attnbench.kernels.tables import Kernel, TileConfig
from attnbench.kernels.tiling import HOPPER, PATHS, SHARED_BYTES
from attnbench.kernels.tiling import Path as KernelPath
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.studies.tune import Finding, TuningTarget, arm, candidates, in_use, targets, write
from attnbench.worker.protocol import PrepareCase, SettleCase

FORWARD = TuningTarget(kernel=Kernel.FORWARD, arch="sm_90", width=128, mask="some")
USED = TileConfig(block_q=128, block_kv=64, warps=8, stages=3, source="compiled")
OTHERS = [TileConfig(block_q=64, block_kv=64, warps=4, stages=stages) for stages in (1, 2, 3)]


@pytest.mark.parametrize("kernel", Kernel)
@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_candidates_are_powers_of_two_that_fit(kernel: Kernel, arch: str, width: int) -> None:
    configurations = candidates(kernel, arch, width)
    if PATHS[kernel] is KernelPath.HOPPER and (arch != HOPPER or (width > 128 and kernel is not Kernel.FORWARD_HOPPER)):
        assert not configurations
        return
    assert configurations
    assert len(configurations) == len(set(configurations))
    for config in configurations:
        assert all(math.log2(size).is_integer() for size in (config.block_q, config.block_kv, config.warps))
        moving = config.block_q if kernel.startswith("backward_kv") else config.block_kv
        assert config.stages * moving * width * 2 * 2 <= SHARED_BYTES[arch]


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_a_latent_cache_has_candidates_for_the_decode_kernel_alone(arch: str) -> None:
    configurations = candidates(Kernel.DECODE, arch, 512)
    used = in_use(TuningTarget(kernel=Kernel.DECODE, arch=arch, width=512, mask="some"))
    assert used
    assert TileConfig(block_q=used.block_q, block_kv=used.block_kv, warps=used.warps, stages=1) in configurations
    assert all(config.stages * config.block_kv * 576 * 2 <= SHARED_BYTES[arch] for config in configurations)
    assert not any(candidates(kernel, arch, 512) for kernel in Kernel if kernel is not Kernel.DECODE)


def test_the_width_of_a_latent_cache_is_tuned_by_its_problem() -> None:
    chosen = targets("cuda:0", ["decode", "forward"], [64, 512], ["some"], "sm_90")
    assert [(target.kernel, target.width) for target in chosen] == [
        (Kernel.DECODE, 64),
        (Kernel.DECODE, 512),
        (Kernel.FORWARD, 64),
    ]
    case = Case(problem=chosen[1].problem, backend="triton")
    assert case.problem.kv == "latent:512+64"
    assert load("triton").objections(case, "cuda", (9, 0)) == []


def test_the_width_of_a_latent_cache_needs_the_decode_kernel() -> None:
    with pytest.raises(UsageError, match="--head-dim 512: the width of a latent cache, only with --kernel decode"):
        targets("cuda:0", ["forward"], [512], [], "sm_90")


def test_the_fastest_beyond_doubt_is_the_best() -> None:
    measured = [(OTHERS[0], 1.30, 0.98, 1.60), (OTHERS[1], 1.10, 1.05, 1.15), (OTHERS[2], 1.05, 1.04, 1.06)]
    assert Finding(target=FORWARD, used=USED, measured=measured, lost=[]).best == OTHERS[1]


def test_what_is_in_use_stays_where_nothing_is_faster_beyond_doubt() -> None:
    finding = Finding(target=FORWARD, used=USED, measured=[(OTHERS[0], 1.2, 0.99, 1.4)], lost=[(OTHERS[1], "crashed")])
    assert finding.best is None
    assert lines(finding) == [
        "forward sm_90 half 128 some: 128x64 w8 s3 stays; none of 1 candidates is significantly faster",
        "  64x64 w4 s2: crashed",
    ]


def test_what_is_faster_is_written_beside_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "tiles.csv"
    in_use = {("decode", "sm_90", "half", "64", "any"): USED}
    tables.write(file, in_use)
    finding = Finding(target=FORWARD, used=USED, measured=[(OTHERS[0], 1.2, 1.1, 1.3)], lost=[])
    assert write([finding], file, "NVIDIA H200", "3.6.0") == 1
    table = tables.read(file)
    assert table[("decode", "sm_90", "half", "64", "any")] == USED
    assert table[FORWARD.key].source.startswith("measured: NVIDIA H200, triton 3.6.0, 20")
    assert lines(finding)[0].endswith("-> 64x64 w4 s1  1.200x faster (1.100..1.300)")


def test_nothing_is_written_where_nothing_is_faster(tmp_path: Path) -> None:
    assert write([Finding(target=FORWARD, used=USED, measured=[], lost=[])], tmp_path / "t.csv", "x", "3.6.0") == 0
    assert not (tmp_path / "t.csv").exists()


def test_entries_of_the_user_are_those_in_use() -> None:
    shipped = in_use(FORWARD)
    assert shipped is not None
    assert shipped.source == "compiled"
    tables.write(tables.users_file(), {FORWARD.key: OTHERS[0]})
    assert in_use(FORWARD) == OTHERS[0]


def test_lines_of_a_gpu_without_descriptors_hold_none_for_them() -> None:
    kernels = {target.kernel for target in targets("", (), (), (), "sm_80")}
    assert kernels == {Kernel.FORWARD, Kernel.BACKWARD_KV, Kernel.BACKWARD_Q, Kernel.DECODE}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kernel", "forwards"], "--kernel: no kernel 'forwards'; did you mean 'forward'?"),
        (["--mask", "causal"], "--mask: no masking 'causal'; there are none, some"),
        (["--head-dim", "96"], "--head-dim: 96: tables hold 64, 128, 256"),
        (["--arch", "sm_75"], "--arch: arch='sm_75': no kernel configuration"),
    ],
)
def test_a_word_that_is_none_is_a_usage_error(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["tune", "--show", "--arch", "sm_90", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnbench.machine.hardware.gpus", lambda: ())
    assert invoke(["tune"]) == 2
    assert "kernels can only be tuned on a GPU; there is no GPU here" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--device cpu"):
        targets("cpu", (), (), (), "")


def test_an_arch_is_only_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["tune", "--arch", "sm_90"]) == 2
    assert "--arch sm_90: only with --dry-run or --show" in capsys.readouterr().err
    assert (
        invoke(["tune", "--arch", "sm_90", "--dry-run", "--kernel", "decode", "--head-dim", "64", "--mask", "none"])
        == 0
    )
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "decode sm_90 half 64 none: 64x128 w4 s3 (compiled)"
    assert len(shown) == 1 + len(candidates(Kernel.DECODE, "sm_90", 64))


def test_a_table_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    file = tables.users_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("nonsense\n")
    assert invoke(["tune", "--show", "--arch", "sm_90"]) == 2
    assert f"{file}: the first line must be" in capsys.readouterr().err


@pytest.mark.workers
def test_an_arm_runs_with_the_cut_of_its_table(tmp_path: Path) -> None:
    # In the interpreter no table is asked: what is seen here is that the path and the file reach the worker.
    candidate = arm(FORWARD, OTHERS[0], "cpu:threads=1", tmp_path / "one.csv", 2)
    candidate = type(candidate)(
        backend=candidate.backend, device=candidate.device, copy=2, env=(*candidate.env, ("TRITON_INTERPRET", "1"))
    )
    worker = Worker(candidate, (0,), 0)
    try:
        worker.open(60.0)
        case = Case(problem=Problem(seq_q=4, seq_kv=40, heads=2), backend="triton", mode=Mode.FWD)
        facts = worker.ask(PrepareCase(case=case, procedure=Procedure()), 60.0).facts
        assert worker.ask(SettleCase(), 60.0)
    finally:
        worker.terminate()
    assert facts["path"] == "portable"  # of four queries it would be decode
    assert tables.read(tmp_path / "one.csv") == {FORWARD.key: OTHERS[0]}
