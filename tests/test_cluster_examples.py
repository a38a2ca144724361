"""The scripts that start a Ray on Slurm and Kubernetes, as far as they can be read without one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from attnbench.cli import app

CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))


def options_of(text: str) -> set[str]:
    """The options of `attnbench run` in a script."""
    commands = re.findall(r"attnbench run ((?:[^\n\\]|\\\n)*)", text)
    return {option for command in commands for option in re.findall(r"(?<!\S)--[a-z-]+", command)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_script(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_ray_job_is_yaml_with_a_head_that_measures_nothing() -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())
    assert (job["kind"], job["apiVersion"]) == ("RayJob", "ray.io/v1")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["replicas"] for group in cluster["workerGroupSpecs"]] == [2]


def test_the_examples_use_options_that_exist() -> None:
    commands = vars(get_command(app))["commands"]
    known = {flag for option in commands["run"].params for flag in option.opts}
    named = {path.name: options_of(path.read_text()) for path in (*SCRIPTS, CLUSTER / "kuberay.yaml")}
    assert all(named.values())
    assert set().union(*named.values()) <= known
