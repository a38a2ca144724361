"""Which cases a change can touch: those whose code differs between base and head, or cannot be compared."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from attnbench import backends, units
from attnbench.gate import build_files, import_closure, trees
from attnbench.gate.import_closure import Closure, SourceTree
from attnbench.gate.trees import Revision
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.run_directory import MANIFEST, RESULTS

OWN = "attnbench"  # where a tree holds this package, its workers run it
MAX_REASONS = 3


class TreeComparison:
    """The files of base and head, as far as cases run them."""

    def __init__(self, base: Revision, head: Revision) -> None:
        folders = [[Path(folder) for folder in side.path] for side in (base, head)]
        outside = import_closure.modules_outside(folder for side in folders for folder in side)
        self._trees = [SourceTree(side, outside, trusted=OWN) for side in folders]
        self._closures: dict[tuple[str, str], tuple[Closure, Closure]] = {}
        whole = -1 if base.commit and head.commit else 0  # a repository, else the folder that was given
        self._everything = _build_difference(folders[0][whole], folders[1][whole])

    def reason(self, case: Case, arm: Arm) -> str:
        """Why the change may touch the case, in words; empty if base and head run the same code."""
        if self._everything:
            return self._everything
        if hidden := self._not_in_source(case, arm):
            return f"not followed: {hidden}"
        key = case.backend, case.problem.score.function
        if key not in self._closures:
            base, head = (tree.closure(_roots(tree, *key)) for tree in self._trees)
            self._closures[key] = base, head
        base, head = self._closures[key]
        if differing := sorted({name for name, _ in set(base.files.items()) ^ set(head.files.items())}):
            return f"{differing[0]} differs"
        obstacle = head.obstacle or base.obstacle
        return f"not followed: {obstacle}" if obstacle else ""

    def _not_in_source(self, case: Case, arm: Arm) -> str:
        """What a case runs that no file of the trees shows."""
        name = case.backend
        if arm.python:
            return f"the interpreter of {name}"
        if name in backends.BUILTIN or backends.is_source(name):
            return ""
        inside = backends.is_file(name) and any(tree.module(name.partition(":")[0]) for tree in self._trees)
        return "" if inside else f"{name}, which is outside the tree"


def _roots(tree: SourceTree, backend: str, score: str) -> list[Path]:
    """The files that the worker of a case imports from the tree by name, without those that they import in turn."""
    roots = tree.hiding()
    if tree.module(OWN):
        module = backends.BUILTIN.get(backend, "plugin")
        roots += [*tree.module(f"{OWN}.worker.__main__"), *tree.module(f"{OWN}.backends.{module}")]
    if backend not in backends.BUILTIN and not backends.is_source(backend):
        roots += tree.module(backend.partition(":")[0])
    named = [f"{name.partition('.py:')[0]}.py" for name in (backend, score) if backends.is_source(name)]
    files = [tree.folders[0] / Path(name).expanduser() for name in named]
    return [*roots, *(file for file in files if file.is_file())]


def _build_difference(base: Path, head: Path) -> str:
    """Why no file can be compared alone: a build file that differs, or submodules; empty if neither is there."""
    names = trees.files(base) | trees.files(head)
    if ".gitmodules" in names:
        return "not followed: the submodules of .gitmodules"
    name = build_files.differing(base, head, names - _in_runs(names))
    return name and f"{name} differs"


def _in_runs(names: set[str]) -> set[str]:
    """The files of run directories, which a gate writes itself; the root of the tree is none."""
    runs = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name == MANIFEST}
    runs = {folder for folder in runs if folder.name and str(folder / RESULTS) in names}
    return {name for name in names if not runs.isdisjoint(PurePosixPath(name).parents)}


def described(reasons: Iterable[str]) -> str:
    """The most frequent reasons why cases were measured, and the number of the others, in one line."""
    counts = Counter(reasons)
    shown = counts.most_common(MAX_REASONS)
    texts = [f"{units.counted(count, 'case')}: {reason}" for reason, count in shown]
    others = sum(counts.values()) - sum(count for _, count in shown)
    return f"--changed measured {'; '.join(texts)}{f'; {others} for other reasons' if others else ''}" if texts else ""
