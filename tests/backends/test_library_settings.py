"""Settings that libraries for CPUs report, tensors that they keep, and their memory, without the libraries."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from msgspec.structs import replace

from attnbench import backends
from attnbench.attention.problem import Problem
from attnbench.backends import CaseRefusedError, Prepared, jax, ort
from attnbench.machine.device.cpu import CpuInstrument
from attnbench.records.arm import Device
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.worker import prepared_case, session
from attnbench.worker.process_state import ProcessState

MIB = 1024**2


class ScriptedSession:
    """A session of ONNX Runtime: its options, and a binding that counts what is bound."""

    def __init__(self, arena=False, **entries):
        self.entries, self.arena, self.bound = ort.ENTRIES | entries, arena, []

    def get_session_options(self):
        return SimpleNamespace(
            get_session_config_entry=self.entries.get, intra_op_num_threads=1, enable_cpu_mem_arena=self.arena
        )

    def io_binding(self):
        bind = lambda name, *_: self.bound.append(name)  # noqa: E731
        return SimpleNamespace(bind_input=bind, bind_output=bind)

    def run_with_iobinding(self, _binding):
        """Compute nothing."""


def test_a_setting_that_onnxruntime_does_not_keep_is_a_refusal():
    """Its idle threads spin, its denormals are flushed and its arena keeps memory, unless it is told otherwise."""
    assert ort._read_back(ScriptedSession())["spinning"] == "off"
    for scripted in (ScriptedSession(arena=True), *(ScriptedSession(**{entry: "1"}) for entry in ort.ENTRIES)):
        with pytest.raises(CaseRefusedError, match="onnxruntime does not keep its settings"):
            ort._read_back(scripted)


def test_onnxruntime_binds_an_input_again_only_where_its_address_changes():
    session, tensors = ScriptedSession(), [torch.zeros(4), torch.zeros(4)]
    bindings = ort.Bindings(session, {"mask": torch.zeros(2)})
    for place in (0, 0, 1, 1, 0):
        bindings.bind("q", tensors[place])
        bindings.run(out=torch.empty(4))
    assert session.bound == ["mask", "q", "out", "out", "q", "out", "out", "q", "out"]


def test_jax_with_other_threads_than_the_arm_is_a_refusal(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(jax, "computing_threads", lambda: threads)
    assert jax._late_facts([0.5]) == {"library_threads": threads, "compile_s": 0.5}
    monkeypatch.setattr(jax, "computing_threads", lambda: threads + 1)
    with pytest.raises(CaseRefusedError, match=f"computes with {threads + 1} threads, not {threads}: set PJRT_NPROC="):
        jax._late_facts([])


def test_the_memory_of_a_library_is_that_of_its_process_in_the_first_call_and_in_a_later_one():
    """The first call keeps 32 MiB, and each call frees 16 MiB."""
    naive, kept = backends.load("naive"), []

    def prepare(case, device):
        inner = naive.prepare(case, device).call

        def call(q, k, v):
            if not kept:
                kept.append(b"x" * (32 * MIB))
            return inner(q, k, v) + len(b"x" * (16 * MIB)) * 0

        return Prepared(call=call)

    outside = replace(naive, prepare=prepare, outside_torch=True)
    case, instrument = Case(problem=Problem(seq_q=64), backend="naive"), CpuInstrument(Device(kind="cpu", threads=1))
    made, reply = prepared_case.prepare(case, Procedure(), outside, instrument, ProcessState())
    if "memory_first_call" not in reply.facts:
        pytest.skip("this system has no high-water mark")
    assert 47 * MIB <= reply.facts["memory_first_call"] <= 64 * MIB
    memory = session.measure_memory(made)
    assert memory.facts["method"] == "high-water mark"
    assert 15 * MIB <= memory.peak <= 32 * MIB


@pytest.mark.parametrize("name", [name for name in backends.BUILTIN if "cpu" in backends.load(name).limits])
@pytest.mark.parametrize("page_size", [0, 32])
def test_the_memory_of_a_batch_of_requests_is_predicted(name, page_size):
    problem = Problem(
        requests="2q1s21_q3s5", batch=3, seq_q=3, seq_kv=21, heads=4, kv_heads=2, mask="causal", page_size=page_size
    )
    case = Case(problem=problem, backend=name)
    if not backends.load(name).objections(case, "cpu"):
        assert backends.load(name).peak_bytes(case) > 0


def test_jax_shares_the_memory_of_a_tensor_and_keeps_it(monkeypatch):
    """An array does not keep the memory that it shares, and a copy would be timed and hold old values."""
    made, shift = [], 0

    def from_dlpack(tensor):
        made.append(tensor.data_ptr())
        return SimpleNamespace(unsafe_buffer_pointer=lambda: tensor.data_ptr() + shift)

    package = SimpleNamespace(numpy=SimpleNamespace(from_dlpack=from_dlpack))
    monkeypatch.setitem(sys.modules, "jax", package)
    monkeypatch.setitem(sys.modules, "jax.numpy", package.numpy)
    arrays, tensors = jax.Arrays(), [torch.zeros(4), torch.zeros(4)]
    first = arrays.of("q", tensors[0])
    assert arrays.of("q", tensors[0]) is first
    assert arrays.of("k", tensors[1]) is not first
    assert made == [tensor.data_ptr() for tensor in tensors]
    shift = 64
    with pytest.raises(CaseRefusedError, match="jax copies q: its memory is not aligned to 64 bytes"):
        arrays.of("q", torch.zeros(4))
    assert [tensor.data_ptr() for _, tensor, _ in arrays._arrays.values()] == made[:2]
