"""The files of base: another folder, a commit unpacked into a temporary folder, or another interpreter.

The user's repository is only read: the output of `git archive` is unpacked elsewhere. A folder that a killed gate left
behind is removed by the next gate.
"""

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from attnbench import units
from attnbench.engine.cluster.job_files import MAX_SENT_BYTES, is_cache
from attnbench.errors import UsageError
from attnbench.machine.temporary_folders import owned_folder

PREFIX = "attnbench-base-"
DEEPEN = "git fetch --unshallow --tags origin '+refs/heads/*:refs/remotes/origin/*'"


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """Base or head: how its workers start, and its name for people."""

    name: str
    path: tuple[str, ...] = ()  # folders put first on the import path; the first is the working directory
    python: str = ""
    commit: str = ""
    dirty: bool = False


def head() -> Revision:
    """The working tree with its uncommitted changes."""
    root, prefix = _repository()
    if not root:
        return Revision(name="the working tree", path=(os.getcwd(),))
    # Files that git does not track do not count, as in the manifest of a run: results and reports are such files.
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no").strip())
    commit = _git("rev-parse", "HEAD").strip()
    return Revision(name="the working tree", path=_import_path(root, prefix), commit=commit, dirty=dirty)


@contextlib.contextmanager
def of_ref(ref: str, where: str = "--base-ref") -> Iterator[Revision]:
    """A commit, branch or tag, unpacked into a temporary folder; `where` names the option.

    Raises UsageError for an unknown name or a commit without files, and outside a git repository.
    """
    root, prefix = _repository()
    if not root:
        raise UsageError(f"{where} {ref}: {_objection()}; or give --base-path DIR, which needs no git")
    commit = commit_of(ref, where)
    with owned_folder(PREFIX) as folder:
        tree = folder / "tree"
        tree.mkdir()
        _unpack(root, commit, tree, f"{where} {ref}")
        (tree / prefix).mkdir(parents=True, exist_ok=True)  # the folder may have been created after the commit
        yield Revision(name=f"{ref} ({commit[:12]})", path=_import_path(tree, prefix), commit=commit)


@contextlib.contextmanager
def of_back(commits: int) -> Iterator[Revision]:
    """The commit so many before HEAD along first parents, unpacked; its name says which it is.

    Raises UsageError where there are not as many commits, and outside a git repository.
    """
    where = f"--against {commits}"
    if not _repository()[0]:
        raise UsageError(f"{where}: {_objection()}; or give --base-path DIR, which needs no git")
    earlier = int(_git("rev-list", "--count", "--first-parent", "HEAD")) - 1
    if not 1 <= commits <= earlier:
        most = f"give 1 to {earlier}" if earlier else "give another base"
        raise UsageError(f"{where}: HEAD has {units.counted(earlier, 'earlier commit')}; {most}{deepening()}")
    with of_ref(f"HEAD~{commits}", where) as side:
        before = f"{units.counted(commits, 'commit')} before HEAD"
        yield msgspec.structs.replace(side, name=f"{subject(side.commit)} ({before})")


def files(folder: Path) -> set[str]:
    """The names of the files of a tree: in a repository those that git does not ignore, else all but hidden ones."""
    if shutil.which("git"):
        listed = _run_git("-C", str(folder), "ls-files", "--cached", "--others", "--exclude-standard", "-z")
        if listed.returncode == 0:
            return {name for name in listed.stdout.split("\0") if name}
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix() for name in names if not any(part.startswith((".", "__pycache__")) for part in name.parts)}


def _unpack(root: Path, commit: str, tree: Path, where: str) -> None:
    """Unpack the files of a commit. Raises UsageError where there are none, and where git cannot read them."""
    # Some versions of git write an archive of no files that tarfile cannot open.
    if not _git("ls-tree", "--full-tree", "--name-only", commit).strip():
        raise UsageError(f"{where}: commit {commit[:12]} has no files; choose a commit with the code to compare with")
    archive = subprocess.run(["git", "archive", commit], cwd=root, capture_output=True, check=False)
    if archive.returncode:
        raise UsageError(f"{where}: git archive: {archive.stderr.decode(errors='replace').strip()}")
    try:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(tree, filter="data")
    except tarfile.ReadError as error:
        raise UsageError(
            f"{where}: git archive gives no files of commit {commit[:12]}: does .gitattributes say export-ignore? "
            "Check the commit out and give --base-path DIR"
        ) from error


def commit_of(ref: str, where: str) -> str:
    """The full hash of a commit, branch or tag; `where` names the option.

    Raises UsageError without a repository that git reads, and, with some names, for an unknown commit.
    """
    if not _repository()[0]:
        raise UsageError(f"{where} {ref}: {_objection()}")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", fails=True).strip()
    if not commit:
        near = _git("for-each-ref", "--format=%(refname:short)", "--count=5").split()
        names = f"there are {', '.join(near) or 'none'}"
        raise UsageError(f"{where} {ref}: no such commit, branch or tag ({names}){deepening()}")
    return commit


def deepening() -> str:
    """How to fetch what a shallow clone lacks, such as that of a CI job; empty in a whole clone."""
    if _git("rev-parse", "--is-shallow-repository", fails=True).strip() != "true":
        return ""
    return f"; this clone is shallow: {DEEPEN} (in actions/checkout: fetch-depth: 0)"


def _objection() -> str:
    """Why there is no repository to read, and what to do: git is missing, it refuses, or there is none."""
    if not shutil.which("git"):
        return "git is not installed; install it"
    here = Path.cwd()
    if any((folder / ".git").exists() for folder in (here, *here.parents)):
        answer = _run_git("rev-parse", "--show-toplevel").stderr.strip().splitlines() or ["no message"]
        # For a folder of another owner, the last line is the command that allows it.
        hint = f"; {answer[-1].strip()}" if len(answer) > 1 else ""
        return f"git refuses the repository of {here}: {answer[0].removeprefix('fatal: ')}{hint}"
    return f"{here} is in no git repository; change to one"


def between(first: str, last: str) -> list[str]:
    """The commits after `first` up to `last` along first parents, oldest first; empty if `first` is no ancestor."""
    if _git("merge-base", first, last, fails=True).strip() != first:
        return []
    return _git("rev-list", "--reverse", "--first-parent", f"{first}..{last}").split()


def subject(commit: str) -> str:
    """`c0ffee123456 subject of the commit`."""
    return _git("log", "-1", "--format=%h %s", commit).strip()


def of_path(folder: Path) -> Revision:
    """Another folder. UsageError if it does not exist."""
    if not folder.is_dir():
        raise UsageError(f"--base-path {folder}: no such folder")
    return Revision(name=str(folder), path=(str(folder.resolve()),))


def of_python(python: str) -> Revision:
    """Another environment, with the same files.

    Raises UsageError where it is not an interpreter, and where it cannot import attnbench.
    """
    path = shutil.which(python)
    if path is None:
        raise UsageError(f"--base-python {python}: no such interpreter")
    revision = head()
    probe = subprocess.run([path, "-P", "-c", "import attnbench"], capture_output=True, text=True, check=False)
    if probe.returncode:
        last = probe.stderr.strip().splitlines()[-1:] or ["no error message"]
        raise UsageError(f"--base-python {python}: cannot import attnbench ({last[0]}): install it there too")
    return msgspec.structs.replace(revision, name=python, python=str(Path(path).absolute()))


def sent(revision: Revision, folder: Path, name: str) -> Revision:
    """The revision with its files copied to a folder that travels to other machines; its paths are relative to it.

    In a git repository these are the files that git does not ignore. Raises UsageError for more than MAX_SENT_BYTES.
    """
    root, size = Path(revision.path[-1]), 0
    for path in _files(root):
        size += path.stat().st_size
        if size > MAX_SENT_BYTES:
            raise UsageError(
                f"--engine ray: {root} holds more than {MAX_SENT_BYTES // 2**20} MiB of files, which would travel to "
                "every node; name what is not needed in a .gitignore of its git repository"
            )
        target = folder / name / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    sent_to = tuple(str(Path(name) / Path(each).relative_to(root)) for each in revision.path)
    (folder / sent_to[0]).mkdir(parents=True, exist_ok=True)
    return msgspec.structs.replace(revision, path=sent_to)


def _files(root: Path) -> Iterator[Path]:
    """The files of a tree: in a repository what git does not ignore, else all but hidden ones and caches."""
    if (root / ".git").exists():
        listed = _git("-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        paths = (root / name for name in listed.split("\0") if name)
    else:
        paths = (path for path in sorted(root.rglob("*")) if not is_cache(path.relative_to(root)))
    return (path for path in paths if path.is_file())


def _repository() -> tuple[Path | None, Path]:
    """The root of the git repository, and the path from there to the working directory; None outside a repository."""
    root = _git("rev-parse", "--show-toplevel", fails=True).strip() if shutil.which("git") else ""
    return (Path(root), Path.cwd().resolve().relative_to(Path(root).resolve())) if root else (None, Path())


def _import_path(root: Path, prefix: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys((str(root / prefix), str(root))))


def _git(*arguments: str, fails: bool = False) -> str:
    """The output of git; empty if it fails and `fails` allows it."""
    done = _run_git(*arguments)
    if done.returncode and not fails:
        raise UsageError(f"git {arguments[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return "" if done.returncode else done.stdout


def _run_git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git without its optional locks, which would write to the repository."""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, env=variables)
