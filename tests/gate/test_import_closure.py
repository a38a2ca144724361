"""Imports are followed through a tree of files; what cannot be followed is named with its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attnbench.gate import import_closure
from attnbench.gate.import_closure import Closure, SourceTree

ROOT = Path(__file__).parents[2]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def closure(folder: Path, files: dict[str, str], root: str = "kernel.py", trusted: str = "") -> Closure:
    write(folder, files)
    tree = SourceTree([folder], import_closure.modules_outside([folder]), trusted)
    return tree.closure([folder / root])


PACKAGE = {"pkg/__init__.py": "", "pkg/a.py": "def f(): ...", "pkg/sub/__init__.py": "", "pkg/sub/b.py": "x = 1"}


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("x = 1", set()),
        ("import torch, math", set()),
        ("import pkg.a", {"pkg/__init__.py", "pkg/a.py"}),
        ("import pkg.sub.b as b", {"pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/b.py"}),
        ("from pkg.a import f", {"pkg/__init__.py", "pkg/a.py"}),
        ("from pkg import a", {"pkg/__init__.py", "pkg/a.py"}),
        ("from pkg import *", {"pkg/__init__.py", "pkg/a.py"}),
        ("def f():\n    from pkg.sub import b", {"pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/b.py"}),
        ("import names.inner", {"names/inner.py"}),
        ("try:\n    import fast\nexcept ImportError:\n    import slow", {"fast.py", "slow.py"}),
        ("import first", {"first.py", "second.py"}),
        ("import typing\nif typing.TYPE_CHECKING:\n    import slow\nelse:\n    import fast", {"fast.py"}),
        ("from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import fast", {"fast.py"}),
    ],
)
def test_every_file_that_an_import_runs_is_in_the_closure(tmp_path: Path, source: str, files: set[str]) -> None:
    others = {
        "names/inner.py": "",
        "fast.py": "",
        "slow.py": "",
        "first.py": "import second",
        "second.py": "import first",
    }
    found = closure(tmp_path, {**PACKAGE, **others, "kernel.py": source})
    assert (set(found.files), found.obstacle) == ({"kernel.py", *files}, "")


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("from . import a", {"pkg/a.py"}),
        ("from .a import f", {"pkg/a.py"}),
        ("from .sub.b import x", {"pkg/sub/__init__.py", "pkg/sub/b.py"}),
        ("from pkg import sub", {"pkg/sub/__init__.py"}),
    ],
)
def test_a_kernel_inside_a_package_runs_its_package(tmp_path: Path, source: str, files: set[str]) -> None:
    found = closure(tmp_path, {**PACKAGE, "pkg/kernel.py": source}, "pkg/kernel.py")
    assert (set(found.files), found.obstacle) == ({"pkg/kernel.py", "pkg/__init__.py", *files}, "")


def test_relative_imports_climb(tmp_path: Path) -> None:
    found = closure(
        tmp_path, {**PACKAGE, "pkg/sub/kernel.py": "from ..a import f\nfrom .. import a"}, "pkg/sub/kernel.py"
    )
    assert set(found.files) == {"pkg/sub/kernel.py", "pkg/sub/__init__.py", "pkg/__init__.py", "pkg/a.py"}
    assert found.obstacle == ""


@pytest.mark.parametrize(
    ("source", "obstacle"),
    [
        ("import importlib", "importlib"),
        ("from importlib import import_module as load\n\nm = load('x')", "importlib.import_module"),
        ("exec('x = 1')", "exec"),
        ("__import__('x')", "__import__"),
        ("from importlib.metadata import entry_points\nentry_points()", "importlib.metadata.entry_points"),
        ("open('tiles.json')", "open"),
        ("from pathlib import Path\nPath('tiles.json').read_text()", "read_text"),
        ("import os\nhere = os.path.dirname(__file__)", "__file__"),
        ("import numpy as np\ntable = np.load('t.npy')", "numpy.load"),
        ("import torch\nw = torch.load('w.pt')", "torch.load"),
        ("from torch.utils import cpp_extension\ncpp_extension.load('x', ['x.cpp'])", "torch.utils.cpp_extension"),
        ("import sys\nsys.path.insert(0, '.')", "sys.path"),
        ("import ctypes", "ctypes"),
        ("import subprocess", "subprocess"),
        ("import pkg.absent", "import of pkg.absent"),
        ("from pkg import absent", "import of pkg.absent"),
        ("def broken(:", "which cannot be parsed: invalid syntax"),
        ("x = '\0'", "which cannot be parsed: "),
    ],
)
def test_what_the_source_does_not_show_is_an_obstacle(tmp_path: Path, source: str, obstacle: str) -> None:
    found = closure(tmp_path, {**PACKAGE, "kernel.py": source})
    assert found.obstacle.startswith("kernel.py, ")
    assert obstacle in found.obstacle
    # Also in a file that the kernel imports.
    found = closure(tmp_path, {**PACKAGE, "kernel.py": "import other", "other.py": source})
    assert found.obstacle.startswith("other.py, ")


@pytest.mark.parametrize(
    "source",
    [
        "import triton.language as tl\nx = tl.load(p)",
        "import torch\nf = torch.compile(g)\nmodel.eval()",
        "from torch import compile\nf = compile(g)",
        "import re\nre.compile('x')",
        "from pkg import f",
        "from pkg.a import f",
    ],
)
def test_calls_that_only_look_like_files_are_followed(tmp_path: Path, source: str) -> None:
    files = {**PACKAGE, "pkg/__init__.py": "from .a import f", "triton/README.md": ""}
    assert closure(tmp_path, {**files, "kernel.py": source}).obstacle == ""


@pytest.mark.parametrize("name", ["fast.so", "fast.cpython-311-x86_64-linux-gnu.so"])
def test_a_compiled_module_cannot_be_followed(tmp_path: Path, name: str) -> None:
    assert closure(tmp_path, {name: "", "kernel.py": "import fast"}).obstacle == f"{name}: a compiled file"


@pytest.mark.parametrize("init", ["from . import _C", "from ._C import f"])
def test_a_compiled_module_that_was_built_elsewhere_cannot_be_followed(tmp_path: Path, init: str) -> None:
    found = closure(tmp_path, {"ext/__init__.py": init, "kernel.py": "import ext"})
    assert "import of _C" in found.obstacle


def test_a_name_that_a_package_takes_from_anywhere_counts_as_defined(tmp_path: Path) -> None:
    files = {"ext/__init__.py": "from torch import *", "kernel.py": "from ext import attend"}
    assert closure(tmp_path, files).obstacle == ""
    broken = closure(tmp_path, {**files, "ext/__init__.py": "def broken(:"}).obstacle
    assert broken.startswith("ext/__init__.py, which cannot be parsed")


def test_a_relative_import_beyond_the_root_of_the_file_system_ends_there(tmp_path: Path) -> None:
    assert closure(tmp_path, {"kernel.py": f"from {'.' * 99} import x"}).obstacle.startswith("kernel.py, line 1")


def test_the_second_folder_of_the_path_is_searched_too(tmp_path: Path) -> None:
    write(tmp_path, {"kernels/kernel.py": "import shared", "shared.py": "x = 1"})
    tree = SourceTree([tmp_path / "kernels", tmp_path], import_closure.modules_outside([tmp_path]))
    assert set(tree.closure([tmp_path / "kernels" / "kernel.py"]).files) == {"kernel.py", "../shared.py"}


def test_a_file_outside_the_tree_keeps_its_path(tmp_path: Path) -> None:
    write(tmp_path, {"tree/x.py": "", "elsewhere/kernel.py": ""})
    tree = SourceTree([tmp_path / "tree"], frozenset())
    assert set(tree.closure([tmp_path / "elsewhere" / "kernel.py"]).files) == {
        str(tmp_path / "elsewhere" / "kernel.py")
    }


def test_a_module_that_hides_an_installed_one_is_known(tmp_path: Path) -> None:
    write(
        tmp_path, {"numpy/__init__.py": "", "json.py": "", "sitecustomize.py": "", "mine.py": "", "torch/notes.txt": ""}
    )
    tree = SourceTree([tmp_path], import_closure.modules_outside([tmp_path]))
    assert {file.name for file in tree.hiding()} == {"__init__.py", "json.py", "sitecustomize.py"}


def test_modules_of_a_folder_on_the_path_of_this_process_are_outside_unless_it_is_in_a_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"theirs.py": ""})
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "none")])
    assert "theirs" in import_closure.modules_outside([])
    assert "theirs" not in import_closure.modules_outside([tmp_path])


def test_a_trusted_package_is_followed_with_its_tables_and_not_searched(tmp_path: Path) -> None:
    files = {
        "own/__init__.py": "import importlib", "own/a/__init__.py": "", "own/a/tiles.csv": "1", "own/a/notes.md": "",
        "kernel.py": "from own import a",
    }  # fmt: skip
    found = closure(tmp_path, files, trusted="own")
    assert set(found.files) == {"kernel.py", "own/__init__.py", "own/a/__init__.py", "own/a/tiles.csv"}
    assert found.obstacle == ""


def test_what_a_worker_of_this_package_runs_is_in_its_closure_and_reports_are_not() -> None:
    tree = SourceTree([ROOT], import_closure.modules_outside([ROOT]), "attnbench")
    files = tree.closure([*tree.module("attnbench.worker.__main__"), *tree.module("attnbench.backends.naive")]).files
    inside = {name.removeprefix("attnbench/") for name in files}
    assert {"worker/session.py", "machine/device/cpu.py", "attention/masks/causal.py", "backends/naive.py"} <= inside
    assert not [name for name in inside if name.startswith(("cli/", "report/", "engine/", "gate/", "studies/"))]
    assert "backends/openvino.py" not in inside
