"""The files of base; the repository is not changed, and no folder is left behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from attnbench.errors import UsageError
from attnbench.gate import trees


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits of a kernel in a folder of its own, and a change on top of them; the shell stands in that folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    root = tmp_path / "repository"
    (root / "kernels").mkdir(parents=True)
    monkeypatch.chdir(root / "kernels")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git("init", "-q", "-b", "main", cwd=root)
    for text in ("one", "two"):
        (root / "kernels" / "kernel.py").write_text(text)
        git("add", "-A", cwd=root)
        git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", text, cwd=root)
    (root / "kernels" / "kernel.py").write_text("three")
    return root


def git(*arguments: str, cwd: Path | None = None) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def digest(folder: Path) -> str:
    """A hash of all names and contents below a folder."""
    digested = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digested.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    return digested.hexdigest()


def test_a_commit_is_unpacked_elsewhere_and_goes_again(repository: Path) -> None:
    before = digest(repository)
    with trees.of_ref("HEAD~1") as side:
        here, root = map(Path, side.path)
        assert (here / "kernel.py").read_text() == "one"
        assert here == root / "kernels"
        assert side.name.startswith("HEAD~1 (")
        assert side.commit == git("rev-parse", "HEAD~1").strip()
    assert not root.exists()
    assert digest(repository) == before
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_a_base_some_commits_back_says_which_it_is(repository: Path) -> None:
    with trees.of_back(1) as side:
        assert (Path(side.path[0]) / "kernel.py").read_text() == "one"
        assert side.commit == git("rev-parse", "HEAD~1").strip()
        assert side.name == f"{git('rev-parse', '--short', 'HEAD~1').strip()} one (1 commit before HEAD)"
    git("branch", "side", cwd=repository)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "three", "--allow-empty", cwd=repository)
    with trees.of_back(2) as side:
        assert side.name.endswith(" one (2 commits before HEAD)")


@pytest.mark.parametrize("commits", [0, -1, 2, 100])
def test_more_commits_back_than_there_are_is_refused_with_their_number(repository: Path, commits: int) -> None:
    with pytest.raises(UsageError, match=f"^--against {commits}: HEAD has 1 earlier commit; give 1 to 1$"):
        trees.of_back(commits).__enter__()


def test_the_first_commit_has_no_earlier_one(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("clone", "-q", "--depth", "1", f"file://{repository}", str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    message = "^--against 1: HEAD has 0 earlier commits; give another base; this clone is shallow: git fetch"
    with pytest.raises(UsageError, match=message):
        trees.of_back(1).__enter__()


def test_files_of_a_tree_are_those_that_git_would_track(repository: Path) -> None:
    (repository / ".gitignore").write_text("*.log\n")
    (repository / "kernels" / "x.log").write_text("")
    (repository / "kernels" / "new.py").write_text("")
    assert trees.files(repository) == {".gitignore", "kernels/kernel.py", "kernels/new.py"}
    assert trees.files(repository / "kernels") == {"kernel.py", "new.py"}


def test_head_is_the_working_tree_and_its_changes_are_told(repository: Path) -> None:
    side = trees.head()
    assert side.path == (str(repository / "kernels"), str(repository))
    assert side.dirty
    assert side.commit == git("rev-parse", "HEAD").strip()


def test_without_a_repository_head_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert trees.head().path == (str(tmp_path),)
    with pytest.raises(UsageError, match=r"in no git repository; .* give --base-path"), trees.of_ref("HEAD"):
        pass
    with pytest.raises(UsageError, match=r"--against 1: .* in no git repository; .* give --base-path"):
        trees.of_back(1).__enter__()


@pytest.mark.parametrize("ref", ["nowhere", "--all", "HEAD~9"])
def test_an_unknown_commit_is_named_beside_those_that_are(repository: Path, ref: str) -> None:
    with pytest.raises(UsageError, match=f"--base-ref {ref}: no such commit, branch or tag .there are main"):
        trees.of_ref(ref).__enter__()


def test_a_repository_of_another_owner_is_refused_with_the_command_that_allows_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # a variable of git's own tests
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    allow = f"git config --global --add safe.directory {repository}"
    with pytest.raises(UsageError, match=f"git refuses the repository of .*dubious ownership.*; {allow}; or give"):
        trees.of_ref("HEAD").__enter__()
    with pytest.raises(UsageError, match=f"GOOD HEAD: git refuses .*; {allow}$"):
        trees.commit_of("HEAD", "GOOD")


def test_a_repository_without_commits_has_no_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    with pytest.raises(UsageError, match=r"^git rev-parse: fatal: .*HEAD"):
        trees.head()


def test_a_commit_whose_file_is_lost_is_named(repository: Path) -> None:
    name = git("rev-parse", "HEAD~1:kernels/kernel.py").strip()
    (repository / ".git" / "objects" / name[:2] / name[2:]).unlink()
    with pytest.raises(UsageError, match=f"^--base-ref HEAD~1: git archive: .*{name}"):
        trees.of_ref("HEAD~1").__enter__()


def test_a_missing_git_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    with pytest.raises(UsageError, match="git is not installed"):
        trees.of_ref("HEAD").__enter__()
    with pytest.raises(UsageError, match="git is not installed"):
        trees.commit_of("HEAD", "GOOD")
    assert trees.head().commit == ""


def test_a_shallow_clone_says_how_to_deepen_it_and_the_command_does(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = git("rev-parse", "HEAD~1", cwd=repository).strip()
    git("branch", "old", "HEAD~1", cwd=repository)
    git("clone", "-q", "--depth", "1", f"file://{repository}", str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    for ref in ("HEAD~1", "origin/old", first):
        with pytest.raises(UsageError, match=r"no such commit.*this clone is shallow: git fetch --unshallow"):
            trees.commit_of(ref, "--base-ref")
    subprocess.run(trees.DEEPEN, shell=True, check=True, capture_output=True)
    assert [trees.commit_of(ref, "--base-ref") for ref in ("HEAD~1", "origin/old", first)] == [first] * 3


def test_a_folder_that_a_killed_gate_left_is_removed_by_the_next(repository: Path) -> None:
    script = "import os; from attnbench.gate import trees; held = trees.of_ref('HEAD'); held.__enter__(); os._exit(9)"
    subprocess.run(
        [sys.executable, "-c", script], check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    (left,) = Path(tempfile.gettempdir()).iterdir()
    with trees.of_ref("HEAD"):
        assert not left.exists()


def test_a_folder_that_its_gate_has_not_locked_yet_stays(repository: Path) -> None:
    begun = Path(tempfile.mkdtemp(prefix=trees.PREFIX))
    with trees.of_ref("HEAD"):
        assert begun.exists()


def test_a_folder_of_a_gate_that_lives_stays(repository: Path) -> None:
    with trees.of_ref("HEAD") as first, trees.of_ref("HEAD~1") as second:
        assert Path(first.path[0]).exists()
        assert Path(second.path[0]).exists()


def test_a_base_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--base-path .*: no such folder"):
        trees.of_path(tmp_path / "none")
    assert trees.of_path(tmp_path).path == (str(tmp_path.resolve()),)
    with pytest.raises(UsageError, match="--base-python none-such: no such interpreter"):
        trees.of_python("none-such")
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'attnbench'\" >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(UsageError, match=r"cannot import attnbench .ModuleNotFoundError.*install it there too"):
        trees.of_python(str(bare))
    assert trees.of_python(sys.executable).python == str(Path(sys.executable).absolute())


@pytest.mark.parametrize(
    ("message", "attributes"), [("has no files; choose a commit", ""), ("export-ignore", "* export-ignore\n")]
)
def test_a_commit_that_gives_no_files_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch, message: str, attributes: str
) -> None:
    git("rm", "-qrf", ".", cwd=repository)
    if attributes:
        (repository / ".gitattributes").write_text(attributes)
        git("add", "-A", cwd=repository)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "empty", "--allow-empty", cwd=repository)
    monkeypatch.chdir(repository)
    with pytest.raises(UsageError, match=rf"^--base-ref HEAD: .*{message}"):
        trees.of_ref("HEAD").__enter__()
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_a_folder_that_the_commit_lacks_is_empty_there(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "new").mkdir()
    monkeypatch.chdir(repository / "new")
    with trees.of_ref("HEAD") as side:
        here, root = map(Path, side.path)
        assert (list(here.iterdir()), (root / "kernels" / "kernel.py").read_text()) == ([], "two")


def test_the_files_of_a_tree_travel_without_those_that_git_ignores(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitignore").write_text("build/\n")
    for name in ("build/large", "kernels/new.py"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("new")
    sent = trees.sent(trees.head(), tmp_path / "sent", "head")
    assert sent.path == ("head/kernels", "head")
    files = {str(path.relative_to(tmp_path / "sent")) for path in (tmp_path / "sent").rglob("*") if path.is_file()}
    assert files == {"head/.gitignore", "head/kernels/kernel.py", "head/kernels/new.py"}
    assert (tmp_path / "sent" / "head" / "kernels" / "kernel.py").read_text() == "three"
    with trees.of_ref("HEAD~1") as base:
        trees.sent(base, tmp_path / "sent", "base")
    assert (tmp_path / "sent" / "base" / "kernels" / "kernel.py").read_text() == "one"


def test_a_tree_without_git_travels_whole_unless_it_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kernel.py", "__pycache__/kernel.pyc", ".venv/lib.py", "data/table"):
        (tmp_path / "tree" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "tree" / name).write_text("12345")
    side = trees.of_path(tmp_path / "tree")
    assert trees.sent(side, tmp_path / "sent", "base").path == ("base",)
    sent = sorted(path.name for path in (tmp_path / "sent").rglob("*") if path.is_file())
    assert sent == ["kernel.py", "table"]
    monkeypatch.setattr(trees, "MAX_SENT_BYTES", 9)
    with pytest.raises(UsageError, match=r"tree holds more than 0 MiB of files, .*\.gitignore"):
        trees.sent(side, tmp_path / "sent", "base")
