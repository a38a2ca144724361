"""Reasons and traces of exceptions, with real compilers where they are installed."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench.attention.problem import Problem
from attnbench.backends import plugin
from attnbench.errors import UsageError
from attnbench.records.case import Case
from attnbench.records.result import Status
from attnbench.worker import failures, process
from attnbench.worker.failures import request_failed
from attnbench.worker.protocol import RequestFailed


def failed(call: object) -> RequestFailed:
    """The reply for what the call raises."""
    assert callable(call)
    try:
        call()
    except BaseException as error:
        return request_failed(error, "prepare")
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), Status.OOM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Status.OOM),
        (ValueError("the tile size 48 is not a power of two"), Status.ERROR),
    ],
)
def test_out_of_memory_is_distinguished_from_an_error(error: Exception, status: Status) -> None:
    reply = request_failed(error, "prepare")
    assert (reply.status, reply.reason.partition(":")[0]) == (status, "prepare")


KERNEL = """import json


def look(q):
    raise RuntimeError("look")


def attend(q):
    look(q)


def in_library(q):
    json.loads("{")


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError


def unspeakable(q):
    raise Unspeakable
"""


@pytest.fixture
def kernel(tmp_path: Path) -> dict[str, object]:
    file = tmp_path / "my_kernel.py"
    file.write_text(KERNEL)
    names: dict[str, object] = {"__name__": "my_kernel"}
    exec(compile(KERNEL, str(file), "exec"), names)
    return names


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("attend", "prepare: RuntimeError: look (my_kernel.py:5 in look)"),
        ("in_library", "prepare: JSONDecodeError: .* (my_kernel.py:13 in in_library)"),
        ("unspeakable", "prepare: Unspeakable: its text cannot be made: ValueError (my_kernel.py:22 in unspeakable)"),
    ],
)
def test_the_reason_has_the_innermost_line_of_the_users_file(
    kernel: dict[str, object], function: str, reason: str
) -> None:
    call = kernel[function]
    assert callable(call)
    reply = failed(lambda: call(None))
    # The lambda is in a file of a user too; the innermost frame counts.
    assert re.fullmatch(reason.replace("(", r"\(").replace(")", r"\)"), reply.reason), reply.reason


def test_an_exception_of_a_library_leads_to_the_exception_of_the_users_code() -> None:
    library = (
        "def run(call):\n    try:\n        call()\n    except ValueError as error:\n        raise OSError from error"
    )
    names: dict[str, object] = {}
    exec(compile(library, "/usr/lib/python3.11/site-packages/triton/interpreter.py", "exec"), names)
    run = names["run"]
    assert callable(run)

    def kernel() -> None:
        raise ValueError("in the kernel")

    reply = failed(lambda: run(kernel))
    line = kernel.__code__.co_firstlineno + 1
    assert reply.reason == f"prepare: OSError (tests/worker/test_failures.py:{line} in kernel)".replace(
        "tests/worker/test_failures.py", str(Path(__file__).relative_to(Path.cwd()))
    )


def test_the_time_that_glog_writes_before_an_error_is_no_part_of_the_reason() -> None:
    errors = [RuntimeError(f"[F1130 08:29:33.{n} cpu_attn.cpp:118] Check failed: a == 1") for n in (7540, 7929)]
    assert [failures.one_line(error) for error in errors] == ["RuntimeError: Check failed: a == 1"] * 2


def test_frames_of_python_and_of_packages_are_not_the_users() -> None:
    code = compile("import json\njson.loads('{')", "/usr/lib/python3/dist-packages/library.py", "exec")
    with pytest.raises(ValueError, match="property name") as raised:
        exec(code, {})
    error = raised.value
    assert error.__traceback__
    assert failures.place(error.with_traceback(error.__traceback__.tb_next)) == ""  # without the frame of this test


def test_a_message_of_attnbench_is_whole_and_without_its_type() -> None:
    text = "wrap it: " + "x" * 1000
    error = UsageError(text)
    assert request_failed(error, "open").reason == f"open: {text}"


def traced(call: object) -> str:
    """The trace of what the call raises, as if this file were one of attnbench."""
    assert callable(call)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    error = raised.value
    assert error.__traceback__
    return failures.trace(error.with_traceback(error.__traceback__.tb_next))


def in_attnbench(source: str, **names: object) -> object:
    """The function `run` of a module of attnbench."""
    exec(compile(source, "/x/attnbench/worker/session.py", "exec"), names)
    return names["run"]


def test_a_trace_begins_at_the_first_frame_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def attend(q, k, v, *, causal, scale):\n    try:\n        1 / 0\n    except ZeroDivisionError:\n"
        "        helper(q)\n\ndef helper(q):\n    raise RuntimeError('look')\n"
    )
    prepared = plugin.load(f"{file}:attend").prepare(Case(problem=Problem(seq_q=64), backend="naive"), "cpu")
    trace = traced(in_attnbench("def run(): call(1, 2, 3)", call=prepared.call))
    cause, error = trace.split("During handling")
    assert cause.splitlines()[1] == f'  File "{file}", line 3, in attend'
    assert error.splitlines()[3] == f'  File "{file}", line 5, in attend'
    assert "/attnbench/" not in trace


def test_the_trace_of_an_import_begins_at_the_line_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "fails.py"
    file.write_text("import json\nattend = json.loads('{')\n")
    trace = traced(in_attnbench("def run(): load(name)", load=plugin.load, name=f"{file}:attend"))
    assert trace.splitlines()[1] == f'  File "{file}", line 2, in <module>'
    assert "/attnbench/" not in trace


def test_a_trace_without_a_frame_of_the_user_is_whole() -> None:
    assert "/x/attnbench/worker/session.py" in traced(in_attnbench("def run(): raise RuntimeError"))


def test_a_long_trace_keeps_both_ends() -> None:
    def call() -> None:
        raise RuntimeError("first " + "x" * 100_000 + " last")

    trace = failed(call).trace
    assert trace.startswith("Traceback")
    assert "RuntimeError: first" in trace
    assert trace.rstrip().endswith("last")
    assert "characters left out" in trace
    assert len(trace) < failures.MAX_TRACE + 100


EXTENSION = """Error building extension 'flash': [1/2] c++ -MMD -MF main.o.d {flags} -Werror -c main.cpp -o main.o
FAILED: main.o
c++ -MMD -MF main.o.d {flags}
{error}
    2 | #include "x.h"
compilation terminated.
ninja: build stopped: subcommand failed.
""".replace("{flags}", "-isystem /usr/include/torch " * 40)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("/tmp/ext/main.cpp:2:10: fatal error: x.h: No such file", "main.cpp:2:10: fatal error: x.h: No such file"),
        ("/a/b/k.cu(2): error: identifier is undefined", "k.cu(2): error: identifier is undefined"),
        ("nvcc fatal   : Unsupported gpu architecture 'sm_10'", "nvcc fatal : Unsupported gpu architecture 'sm_10'"),
        ("ptxas k.ptx, line 4; error   : Not a name", "ptxas k.ptx, line 4; error : Not a name"),
        ("/usr/bin/ld: cannot find -lx: No such file", "/usr/bin/ld: cannot find -lx: No such file"),
        ("main.o: undefined reference to `g()'\ncollect2: error: ld", "main.o: undefined reference to `g()'"),
    ],
)
def test_the_first_error_of_a_compiler_replaces_its_command_line(error: str, shown: str) -> None:
    def build() -> None:
        raise RuntimeError(EXTENSION.replace("{error}", error))

    reason = failed(build).reason
    assert reason.startswith(f"prepare: RuntimeError: Error building extension 'flash': {shown} (")


def test_the_first_error_of_inductor_is_kept() -> None:
    pytest.importorskip("torch")
    from torch._inductor.exc import CppCompileError

    def build() -> None:
        raise CppCompileError(
            ["g++", "-I/usr/include " * 50], "In file included:\n/tmp/a.cpp:3:10: fatal error: omp.h: none"
        )

    assert failed(build).reason.startswith(
        "prepare: CppCompileError: C++ compile error: a.cpp:3:10: fatal error: omp.h"
    )


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_a_compiler_that_the_user_runs_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "k.c").write_text('#include "nosuch.h"\n')

    def build() -> None:
        subprocess.run(["gcc", "-c", str(tmp_path / "k.c")], check=True, capture_output=True)

    reason = failed(build).reason
    assert "k.c:1:10: fatal error: nosuch.h: No such file or directory (" in reason
    assert reason.endswith("in build)")


def test_a_compile_error_of_triton_has_the_line_of_the_innermost_function() -> None:
    triton = pytest.importorskip("triton")
    import ast

    def build() -> None:
        inner = triton.CompilationError("def inner(x):\n    return x + y", ast.parse("\nx").body[0], "NameError('y')")
        raise triton.CompilationError("def k(p):\n    inner(p)", ast.parse("\nx").body[0], None) from inner

    reason = failed(build).reason
    assert reason.startswith("prepare: CompilationError: NameError('y'), in line 2 of inner: return x + y (")


def test_the_line_that_torch_compile_quotes_is_the_place() -> None:
    text = 'no tolist\n\nfrom user code:\n   File "/a/k.py", line 3, in f\n    x\n  File "/a/lib.py", line 7, in g\n'
    assert failures.place(RuntimeError(text)) == "lib.py:7 in g"


def test_the_stack_of_a_crash_begins_with_its_innermost_frame() -> None:
    code = "import ctypes, faulthandler\nfaulthandler.enable()\ndef inner(): ctypes.string_at(0)\ninner()\n"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert failures.place_in_text(shown.replace("<string>", "/a/crash.py")) == "crash.py:3 in inner"


CLASH = (
    "OMP: Error #15: Initializing libiomp5.so, but found libomp.so.5 already initialized.\n"
    "OMP: Hint This means that multiple copies of the OpenMP runtime have been linked into the program."
)


@pytest.mark.parametrize(
    ("number", "printed", "expected"),
    [
        (signal.SIGILL, "", "it runs an instruction that this CPU lacks, which has avx2, fma: install a build for"),
        (
            signal.SIGABRT, CLASH,
            "two OpenMP runtimes in one process, libiomp5.so and libomp.so.5: use an environment without the packages "
            "that load the other, --backend-python jax=PYTHON, or set KMP_DUPLICATE_LIB_OK=TRUE",
        ),
        (signal.SIGABRT, "OMP: Error #15", ""),
        (signal.SIGSEGV, "", ""),
    ],
)  # fmt: skip
def test_a_death_that_a_setting_prevents_names_it(
    number: int, printed: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures.hardware, "cpu_isas", lambda: {"fma", "avx2"})
    text = failures.of_death(number, printed, "jax")
    assert text.startswith(expected)
    assert bool(text) is bool(expected)


def test_the_openmp_runtimes_of_a_process_are_those_of_its_files(tmp_path: Path) -> None:
    files = (
        "/a/lib/libgomp-a34b3233.so.1",
        "/b/torch/lib/libgomp.so.1",
        "/c/libiomp5.so",
        "/c/libiomp5.so",
        "/d/libcomp.so",
    )
    maps = tmp_path / "maps"
    maps.write_text(
        "".join(f"7f00-7f01 r-xp 00000000 08:01 42 {file}\n" for file in files) + "7f02-7f03 rw-p 0 00:00 0\n"
    )
    assert process.openmp_runtimes(maps) == ["libgomp-a34b3233.so.1", "libgomp.so.1", "libiomp5.so"]
    assert process.openmp_runtimes(tmp_path / "none") == []


def test_a_long_text_ends_after_a_whole_word_with_dots() -> None:
    text = failures.one_line(RuntimeError("heads " * 200))
    assert text.endswith(" heads ...")
    assert len(text) <= len("RuntimeError: ") + failures.MAX_REASON + len(" ...")
    assert failures.one_line(RuntimeError("x" * 400)) == f"RuntimeError: {'x' * failures.MAX_REASON} ..."
