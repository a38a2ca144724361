"""Commands that measure, in processes of their own, and a kernel that holds them until the test lets it go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.waiting import wait_for_end, wait_until

ROOT = Path(__file__).parents[2]
KERNEL = """
import os
import time

import torch.nn.functional as F

FOLDER = os.path.dirname(__file__)

def attend(q, k, v, *, causal, scale):
    while q.shape[2] == 128 and not os.path.exists(f"{FOLDER}/go"):
        open(f"{FOLDER}/held", "w").close()
        time.sleep(0.01)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
"""
# Four cases. The kernel holds the run after the two of the first length.
CASES = ("--seq", "64,128", "--heads", "8", "--mask", "none", "--rounds", "3", "--budget", "0", "--timeout", "10m")
HELD = (*CASES, "-b", "naive,kernel.py:attend")
LONG = (*CASES, "-b", "naive,sdpa:flash")


class Started:
    """A command that measures into `run`, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.run, self.temporary = folder, folder / "run", folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        (folder / "held").unlink(missing_ok=True)
        (folder / "kernel.py").write_text(KERNEL)
        variables = os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        # Compiled kernels are not temporary files of attnbench.
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
        command = [sys.executable, "-m", "attnbench", *arguments, "-o", str(self.run)]
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def stored(self) -> bytes:
        """The lines of the results so far."""
        results = self.run / "results.jsonl"
        return results.read_bytes() if results.is_file() else b""

    def wait_for_lines(self, count: int) -> None:
        """Wait until so many results are stored."""
        self._wait_for(lambda: self.stored.count(b"\n") >= count and (self.run / "results.jsonl").is_file())

    def wait_until_held(self) -> None:
        """Wait until the kernel holds the run."""
        self._wait_for((self.folder / "held").is_file)

    def interrupt(self, number: signal.Signals) -> None:
        """Send the first signal, and wait until the command says that it will stop."""
        self.process.send_signal(number)
        self._wait_for(lambda: "stopping after this block" in self.stderr)

    def go_on(self) -> None:
        """Let the kernel go on."""
        (self.folder / "go").touch()

    def kill(self) -> None:
        """Kill the command alone. Its processes end too; its temporary files stay, and are removed here."""
        children = [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        self.process.kill()
        self.process.communicate()
        wait_for_end(children)
        shutil.rmtree(self.temporary)

    def end(self) -> tuple[int, str, str]:
        """The exit code, what was printed; no temporary folder and no child may be left."""
        stdout, _ = self.process.communicate(timeout=300)
        assert [path.name for path in self.temporary.iterdir() if path.name.startswith("attnbench")] == []
        assert "Traceback" not in self.stderr
        return self.process.returncode, stdout, self.stderr

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, lambda: self.stderr)
        assert condition(), self.stderr
