"""What an exception of a backend says: its reason with the user's file and line, and its trace."""

import os
import re
import signal
import subprocess
import traceback
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from attnbench.backends import CaseRefusedError
from attnbench.errors import AttnbenchError
from attnbench.machine import hardware
from attnbench.records.result import Status
from attnbench.worker.protocol import RequestFailed

MAX_REASON = 300  # characters of an exception's text
MAX_HEADING = 80  # characters of what stands before a compiler's error
MAX_TRACE = 16_000  # characters; a compiler's command line alone can have more
MAX_CAUSES = 10
# torch raises a plain RuntimeError for these, so only the text distinguishes them.
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")
_ATTNBENCH = re.compile(r"/attnbench/(attention|backends|kernels|machine|worker)/")
# Files that are not the user's: Python, installed packages, code that inductor generates, attnbench.
_LIBRARY = re.compile(
    rf"^<|/(lib\d*/python3[\d.]*|site-packages|dist-packages|torchinductor[^/]*)/|{_ATTNBENCH.pattern}"
)
_CALLERS = ("/attnbench/backends/plugin.py", "/attnbench/attention/user_files.py")  # of the user's code
# `File "a.py", line 3, in f` of a traceback, which torch.compile quotes; `File "a.py", line 3 in f` of faulthandler.
_QUOTED_FRAME = re.compile(r'File "([^"\n]+)", line (\d+),? in (\S+)')
# gcc, clang, nvcc, ptxas: `a.cu:3:1: fatal error: ...`, `a.cu(3): error: ...`, `nvcc fatal   : ...`; and linkers.
# Of LLVM's and Intel's runtime, before it aborts.
_TWO_RUNTIMES = re.compile(r"OMP: Error #15: Initializing (\S+), but found (\S+) already initialized")
_COMPILER_ERROR = re.compile(r"\b(error|fatal)\s*:\s|undefined reference to|cannot find -l|undefined symbol")
_LOG_PREFIX = re.compile(r"\[[A-Z]\d{4} [^\]]*\] ")  # `[F1130 08:29:33.754 cpu_attn.cpp:118] `: two errors differ by it


def request_failed(error: BaseException, phase: str) -> RequestFailed:
    """The reply for an exception of the backend: out of memory, or an error."""
    text = text_of(error).lower()
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    out_of_memory |= any(part in text for part in OUT_OF_MEMORY_TEXTS)
    status = Status.OOM if out_of_memory else Status.ERROR
    if isinstance(error, CaseRefusedError):
        return RequestFailed(status=Status.UNSUPPORTED, reason=one_line(error))
    where = "" if isinstance(error, AttnbenchError) else place(error)
    reason = f"{phase}: {one_line(error)}" + (f" ({where})" if where else "")
    return RequestFailed(status=status, reason=reason, trace=trace(error))


def of_death(number: int, printed: str, backend: str) -> str:
    """The remedy for a worker that ended by this signal and with this output; empty if none is known."""
    if number == signal.SIGILL:
        isas = ", ".join(sorted(hardware.cpu_isas())) or "no AVX2"
        return (
            f"it runs an instruction that this CPU lacks, which has {isas}: install a build for this CPU, "
            "or limit the instruction set, as with --device cpu:isa=avx2"
        )
    if clash := _TWO_RUNTIMES.search(printed):
        return (
            f"two OpenMP runtimes in one process, {clash[1]} and {clash[2]}: use an environment without the packages "
            f"that load the other, --backend-python {backend}=PYTHON, or set KMP_DUPLICATE_LIB_OK=TRUE"
        )
    return ""


def one_line(error: BaseException) -> str:
    """Type and text of an exception, or the first error of the compiler that it quotes, without line breaks.

    Texts of attnbench are whole; others have at most MAX_REASON characters and dots, without the prefix of glog.
    """
    if isinstance(error, AttnbenchError | CaseRefusedError):
        return " ".join(str(error).split())
    name = type(error).__name__
    text = _LOG_PREFIX.sub("", " ".join((_compile_error(error) or text_of(error)).split()))
    return f"{name}: {_shortened(text, MAX_REASON)}" if text else name


def _shortened(text: str, limit: int) -> str:
    """At most `limit` characters, and then dots where there are more; no word is cut but the only one."""
    return text if len(text) <= limit else f"{text[:limit].rpartition(' ')[0] or text[:limit]} ..."


def text_of(error: BaseException) -> str:
    """The text of an exception, with the output of a process that failed."""
    try:
        text = str(error)
    except Exception as wrong:  # a user's exception may fail to make its text
        return f"its text cannot be made: {type(wrong).__name__}"
    if isinstance(error, subprocess.CalledProcessError):
        outputs = (error.stdout, error.stderr)
        parts = (part.decode(errors="replace") if isinstance(part, bytes) else part for part in outputs if part)
        text = "\n".join([text, *parts])
    return text


def _compile_error(error: BaseException) -> str:
    """The first error of a compiler that the exception or a cause quotes, after a heading; empty if there is none."""
    causes = list(_causes(error))
    triton = next(filter(None, map(_triton_error, reversed(causes))), "")
    line = triton or next(filter(None, (_quoted_error(text_of(cause)) for cause in causes)), "")
    if not line or (triton and _triton_error(error)):
        return line
    heading = "".join(text_of(error).splitlines()[:1]).partition(": ")[0]
    return f"{_shortened(heading, MAX_HEADING)}: {line}"


def _triton_error(error: BaseException) -> str:
    """The message of Triton's CompilationError, with the line of the kernel; empty for other exceptions.

    Triton raises one for each function on the way to the line, and the innermost says what is wrong.
    """
    number, source = getattr(getattr(error, "node", None), "lineno", None), getattr(error, "src", None)
    if not hasattr(error, "error_message") or not isinstance(number, int) or not isinstance(source, str):
        return ""
    lines = source.splitlines()
    function = re.search(r"\bdef (\w+)", source)
    code = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return f"{error.error_message or 'error'}, in line {number} of {function[1] if function else 'the kernel'}: {code}"


def _quoted_error(text: str) -> str:
    """The first line after the first one that holds a compiler's error, without the folder of the build."""
    error = next((line.strip() for line in text.splitlines()[1:] if _COMPILER_ERROR.search(line)), "")
    return re.sub(r"^/\S*/(?=[^/\s]+[:(]\d)", "", error)


def _of_user(trace: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames of a trace that are in files of the user."""
    frames = [frame for frame in trace if not frame.filename.startswith("<")]
    # A user's callable may be in an installed package.
    called = {after.filename for before, after in pairwise(frames) if before.filename.endswith(_CALLERS)}
    called -= {frame.filename for frame in frames if _ATTNBENCH.search(frame.filename)}
    return [frame for frame in frames if frame.filename in called or not _LIBRARY.search(frame.filename)]


def place(error: BaseException) -> str:
    """`my_kernel.py:12 in attend`: the innermost frame in a file of the user; empty if there is none."""
    if quoted := place_in_text(text_of(error)):
        return quoted
    innermost = ""
    for cause in _causes(error):
        frames = traceback.extract_tb(cause.__traceback__)
        if of_user := _of_user(frames):
            innermost = _place(of_user[-1].filename, of_user[-1].lineno or 0, of_user[-1].name)
            if of_user[-1] is frames[-1]:  # otherwise a library may have raised it from an exception of the user's code
                return innermost
    return innermost


def place_in_text(text: str) -> str:
    """The innermost frame in a file of the user that a text quotes, of torch.compile or of faulthandler."""
    frames = [match for match in _QUOTED_FRAME.findall(text) if not _LIBRARY.search(match[0])]
    if not frames:
        return ""
    file, line, function = frames[0 if "most recent call first" in text else -1]
    return _place(file, int(line), function)


def _place(file: str, line: int, function: str) -> str:
    path = Path(file)
    name = os.path.relpath(path) if path.is_relative_to(os.getcwd()) else path.name
    return f"{name}:{line}" + (f" in {function}" if function.isidentifier() else "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, then what it was raised from."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def trace(error: BaseException) -> str:
    """The trace with its causes, each from the first frame of the user; of one longer than MAX_TRACE both ends."""
    whole = traceback.TracebackException.from_exception(error)
    pending: list[traceback.TracebackException | None] = [whole]
    while pending:
        if part := pending.pop():
            if of_user := _of_user(part.stack):
                part.stack = traceback.StackSummary.from_list(part.stack[part.stack.index(of_user[0]) :])
            pending += [part.__cause__, part.__context__]
    text = "".join(whole.format())
    left_out = len(text) - MAX_TRACE
    if left_out <= 0:
        return text
    half = MAX_TRACE // 2
    return f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"
