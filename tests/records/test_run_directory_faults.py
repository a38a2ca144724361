"""Run directories under faults: kills, full and read-only disks, second writers, and foreign directories."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import LockedError, StoreError
from attnbench.records import run_directory, run_writer
from attnbench.records.run_writer import RunWriter
from tests.records.samples import lengths, manifest, result, stored

IMPORTS = """
import os, resource, sys
from attnbench.errors import StoreError
from attnbench.records.result import Environment
from tests.records.samples import *
"""


def script(body: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A separate process that can use the functions of tests/records/samples.py."""
    text = IMPORTS + textwrap.dedent(body)
    surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-B", "-c", text, *map(str, arguments)],  # -B: a limit of file sizes would cut modules off
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings,
        **options,
    )


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that any user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


WRITES = """
    with RunWriter(Path(sys.argv[1]), manifest()) as writer:
        for seq in range(1, 100_000):
            writer.append([result(seq), result(seq, "flex")])
            writer.update(environments={str(seq): Environment(device="X" * 2000)}, seconds={})
            print(seq, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 7, 40])
def test_killed_writer_loses_nothing_that_it_had_stored(tmp_path: Path, lines: int) -> None:
    writer = script(WRITES, tmp_path / "run")
    assert writer.stdout
    last = [int(next(writer.stdout)) for _ in range(lines)][-1]
    writer.kill()
    last = max([last, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    writer.wait()
    stored(tmp_path / "run", result(200_000))
    run = run_directory.read(tmp_path / "run")
    stored_lengths = {each.case.problem.seq_q for each in run.results if each.case.backend == "flex"}
    assert stored_lengths >= set(range(1, last + 1))
    assert run.skipped_lines == 0
    assert len(run.manifest.environments) >= last


def test_draft_of_a_manifest_that_a_kill_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / run_writer.DRAFT).write_text("{")
    (tmp_path / run_writer.LOCK).write_text("123")
    assert lengths(stored(tmp_path, result(8))) == [8]


def test_second_writer_is_refused_with_the_process_of_the_first(tmp_path: Path) -> None:
    with (
        RunWriter(tmp_path / "run", manifest()),
        pytest.raises(LockedError, match=rf"run is being written to by process {os.getpid()}$"),
    ):
        RunWriter(tmp_path / "run", manifest())


def test_a_run_is_being_written_while_its_writer_is_open(tmp_path: Path) -> None:
    assert not run_writer.is_being_written(tmp_path / "run")
    with RunWriter(tmp_path / "run", manifest()):
        assert run_writer.is_being_written(tmp_path / "run")
        assert (tmp_path / "run" / run_writer.LOCK).read_text() == str(os.getpid())
    assert not run_writer.is_being_written(tmp_path / "run")


def test_writer_of_another_process_is_refused(tmp_path: Path) -> None:
    first = script(WRITES, tmp_path / "run")
    assert first.stdout
    next(first.stdout)
    try:
        with pytest.raises(LockedError, match=f"by process {first.pid}$"):
            RunWriter(tmp_path / "run", manifest())
    finally:
        first.kill()
        first.communicate()


def test_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", manifest()) as writer:
        writer.append([result(8)])
        assert [each.key for each in writer.run.results] == [result(8).key]


def test_disk_that_is_full_keeps_what_was_stored(scratch: Path) -> None:
    """A limit on the size of files refuses a write in its middle, as a full disk does."""
    full = script(
        """
        with RunWriter(Path(sys.argv[1]), manifest()) as writer:
            writer.append([result(8)])
            size = (Path(sys.argv[1]) / run_directory.RESULTS).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
            try:
                writer.append([result(16), result(32)])
            except StoreError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            writer.append([result(64)])
        """,
        scratch / "run",
    )
    out, err = full.communicate()
    expected = f"cannot write to {scratch}/run/results.jsonl: File too large; all earlier results are kept\n"
    assert (out, err) == (expected, "")
    assert (lengths(scratch / "run"), run_directory.read(scratch / "run").skipped_lines) == ([8, 64], 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunWriter(tmp_path / "run", manifest()) as writer:
        pass
    (tmp_path / "run" / run_directory.RESULTS).unlink()
    (tmp_path / "run" / run_directory.RESULTS).symlink_to("/dev/full")
    with (
        RunWriter(tmp_path / "run", manifest()) as writer,
        pytest.raises(StoreError, match=r"^cannot write to .*results\.jsonl: No space left on device; all earlier"),
    ):
        writer.append([result(8)])


def test_directory_that_is_read_only_is_reported_in_one_line(scratch: Path) -> None:
    scratch.chmod(0o555)
    nobody = script(
        """
        if os.getuid() == 0:
            os.setuid(65534)  # modes do not bind root
        new = run_directory.new_directory
        for make in (lambda root: RunWriter(root, manifest()), lambda root: new(root, "s", "cpu", NOW)):
            try:
                make(Path(sys.argv[1]))
            except StoreError as error:
                print(error)
        """,
        scratch,
    )
    out, err = nobody.communicate()
    assert (out, err) == (f"cannot write to {scratch}: Permission denied\n" * 2, "")


def test_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match=r"^cannot write to .*/run: File exists$"):
        RunWriter(tmp_path / "run", manifest())


def test_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"holds 'thesis\.tex' and is not a run directory: use another --out"):
        RunWriter(tmp_path, manifest())


def test_a_disk_without_room_for_the_lock_leaves_the_directory_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of a module that is imported meanwhile
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StoreError, match="File too large") as caught:
            RunWriter(tmp_path, manifest())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.__context__  # the failed writer is not collected, which would unlock it too
    assert lengths(stored(tmp_path, result(8))) == [8]
