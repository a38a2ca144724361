"""Where base's files come from: another folder, a commit unpacked into a temporary one, another interpreter.

Nothing of the user's repository is touched: `git archive` reads, and what it gives is unpacked elsewhere. A folder that
a killed gate left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from attnbench.errors import UsageError

PREFIX = "attnbench-base-"
LOCK = ".attnbench-gate"


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """Base or head: how its workers start, and what people call it."""

    name: str
    path: tuple[str, ...] = ()  # folders put first on the import path; the first is the working directory
    python: str = ""
    commit: str = ""
    dirty: bool = False


def head() -> Side:
    """The working tree as it stands."""
    root, prefix = _repository()
    path = _places(root, prefix) if root else (os.getcwd(),)
    commit = _git("rev-parse", "HEAD").strip() if root else ""
    dirty = bool(_git("status", "--porcelain").strip()) if root else False
    return Side(name="the working tree", path=path, commit=commit, dirty=dirty)


@contextlib.contextmanager
def of_ref(ref: str) -> Iterator[Side]:
    """A commit, branch or tag, unpacked for as long as it is needed. UsageError for none, or outside a repository."""
    root, prefix = _repository()
    if not root:
        raise UsageError(f"--base-ref {ref}: {os.getcwd()} is in no git repository: give --base-path DIR")
    commit = commit_of(ref, "--base-ref")
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (folder / LOCK).open("w") as lock:  # held while this process lives: a later gate sees who is alive
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tree = folder / "tree"
            tree.mkdir()
            archive = subprocess.run(
                ["git", "archive", "--format=tar", commit], cwd=root, capture_output=True, check=True
            )
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
                tar.extractall(tree, filter="data")
            (tree / prefix).mkdir(parents=True, exist_ok=True)  # the folder may be younger than the commit
            yield Side(name=f"{ref} ({commit[:12]})", path=_places(tree, prefix), commit=commit)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit_of(ref: str, where: str) -> str:
    """The full name of a commit, branch or tag. UsageError, with those that there are, for none."""
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", fails=True).strip()
    if not commit:
        near = _git("for-each-ref", "--format=%(refname:short)", "--count=5").split()
        raise UsageError(f"{where} {ref}: no such commit, branch or tag (there are {', '.join(near) or 'none'})")
    return commit


def between(first: str, last: str) -> list[str]:
    """The commits after `first` up to `last` along the first parents, oldest first; none where it is no ancestor."""
    if _git("merge-base", first, last, fails=True).strip() != first:
        return []
    return _git("rev-list", "--reverse", "--first-parent", f"{first}..{last}").split()


def subject(commit: str) -> str:
    """`c0ffee123456 what it says`."""
    return _git("log", "-1", "--format=%h %s", commit).strip()


def of_path(folder: Path) -> Side:
    """Another folder, as it is. UsageError where there is none."""
    if not folder.is_dir():
        raise UsageError(f"--base-path {folder}: no such folder")
    return Side(name=str(folder), path=(str(folder.resolve()),))


def of_python(python: str) -> Side:
    """Another environment, with the same files. UsageError for what is no interpreter, or lacks attnbench."""
    found = shutil.which(python)
    if found is None:
        raise UsageError(f"--base-python {python}: no such interpreter")
    here = head()
    asked = subprocess.run([found, "-P", "-c", "import attnbench"], capture_output=True, text=True, check=False)
    if asked.returncode:
        last = asked.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        raise UsageError(f"--base-python {python}: cannot import attnbench ({last[0]}): install it there too")
    return msgspec.structs.replace(here, name=python, python=str(Path(found).absolute()))


def _repository() -> tuple[Path | None, Path]:
    """The root of the repository that this folder is in, and the way from there to here."""
    try:
        root = _git("rev-parse", "--show-toplevel", fails=True).strip()
    except FileNotFoundError:
        root = ""  # no git here
    return (Path(root), Path.cwd().resolve().relative_to(Path(root).resolve())) if root else (None, Path())


def _places(root: Path, prefix: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys((str(root / prefix), str(root))))


def _git(*arguments: str, fails: bool = False) -> str:
    """What git says; an optional lock is never taken, so that the repository stays untouched."""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, env=variables)
    if done.returncode and not fails:
        raise UsageError(f"git {arguments[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return "" if done.returncode else done.stdout


def _sweep() -> None:
    """Remove what killed gates left behind: folders whose lock nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
