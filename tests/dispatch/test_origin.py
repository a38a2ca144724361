"""Which measurements hold on a device, and what has changed since."""

import warnings
from datetime import UTC, datetime

import pytest
import torch
from msgspec.structs import replace

from attnbench.attention.problem import Problem
from attnbench.dispatch import StaleTableWarning, attention, origin
from attnbench.records.run_directory import Manifest
from attnbench.studies.dispatch_table import DeviceOrigin, Origin
from attnbench.studies.dispatch_table import origin as table_origin
from tests.dispatch.tables import choice, here, measured_on, table

H100 = DeviceOrigin(model="NVIDIA H100", versions={"torch": "2.13.0", "driver": "580.1", "numpy": "2.4"})
EPYC = DeviceOrigin(model="AMD EPYC", threads=4, isa="AVX2", versions={"torch": "2.13.0"})
NOW = datetime(2026, 2, 1, tzinfo=UTC)


def changes(there: DeviceOrigin, now: DeviceOrigin, kind: str = "cuda", **options: str) -> tuple[str, ...]:
    name = "cuda:0" if kind == "cuda" else "cpu"
    return origin.match(measured_on(there, name, **options), kind, now, NOW).changes


def test_the_same_device_and_software_match_without_a_change() -> None:
    assert origin.match(measured_on(H100, "cuda:0"), "cuda", H100, NOW) == origin.Match("cuda:0")


def test_another_driver_torch_and_a_missing_package_are_named() -> None:
    now = replace(H100, versions={"torch": "2.14.0", "driver": "590.2", "numpy": "3.0"})
    assert changes(H100, now) == ("torch was 2.13.0, it is 2.14.0", "driver was 580.1, it is 590.2")
    assert changes(replace(H100, versions={"triton": "3.7.1"}), H100) == ("triton was 3.7.1, it is not installed",)


def test_other_threads_and_instruction_set_are_named() -> None:
    now = replace(EPYC, threads=2, isa="AVX512")
    assert changes(EPYC, now, "cpu") == ("threads was 4, it is 2", "isa was AVX2, it is AVX512")


def test_another_number_of_threads_says_what_makes_it_that_of_the_table() -> None:
    found = origin.match(measured_on(replace(EPYC, threads=1), "cpu:threads=1"), "cpu", replace(EPYC, threads=2), NOW)
    again = "measure again with attnbench run --device cpu:threads=2, and attnbench recommend -o"
    assert found.remedy == f"call torch.set_num_threads(1), or {again}"
    other = replace(EPYC, threads=1, versions={"torch": "1.0"})
    assert origin.match(measured_on(other), "cpu", replace(EPYC, threads=2), NOW).remedy == again
    assert "--device" not in origin.match(measured_on(other), "cpu", replace(EPYC, threads=1), NOW).remedy


def test_an_expired_table_says_since_when() -> None:
    expired = changes(H100, H100, expires="2026-01-15T00:00:00+00:00")
    assert expired == ("it was measured on 2026-01-02 and expired on 2026-01-15",)


def test_another_model_and_another_kind_are_refused() -> None:
    source = measured_on(H100, "cuda:0")
    assert origin.match(source, "cuda", replace(H100, model="NVIDIA A100")) == origin.Match(
        "", "the table was measured on NVIDIA H100, and this cuda is NVIDIA A100"
    )
    assert "no measurements on cpu, but on cuda:0" in origin.match(source, "cpu", EPYC).objection


def test_of_several_cpu_devices_the_one_with_the_nearest_threads_is_taken() -> None:
    devices = {f"cpu:threads={count}": replace(EPYC, threads=count) for count in (1, 4, 16)}
    source = replace(measured_on(EPYC), devices=devices)
    assert origin.match(source, "cpu", replace(EPYC, threads=3), NOW).device == "cpu:threads=4"
    wide = {**devices, "cpu:threads=1:isa=avx512": replace(EPYC, threads=1, isa="AVX512")}
    source = replace(source, devices=wide)
    assert origin.match(source, "cpu", replace(EPYC, isa="AVX512"), NOW).device == "cpu:threads=1:isa=avx512"


def test_the_device_of_this_process_has_its_threads_and_its_torch() -> None:
    cpu = here()
    assert cpu.threads == torch.get_num_threads()
    assert cpu.versions["torch"] == torch.__version__


def called(source: Origin) -> None:
    """Two shapes, so that a warning for each would be seen."""
    made = table(choice(Problem(seq_q=8, heads=2, head_dim=16), {"naive": 1.0}), source=source)
    for seq in (8, 9):
        q = torch.ones(1, 2, seq, 16)
        attention(q, q, q, table=made)


def test_a_stale_table_warns_once_and_is_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    stale = replace(here(), versions={"torch": "1.0"})
    with pytest.warns(
        StaleTableWarning, match=r"made\.json is stale: torch was 1\.0, it is 2.*measure again"
    ) as record:
        called(measured_on(stale))
    assert len(record) == 1
    assert record[0].filename == __file__
    assert [": naive, " in message for message in caplog.messages] == [True, True]


def test_another_machine_is_named_unless_a_fingerprint_is_unknown() -> None:
    source = replace(measured_on(H100, "cuda:0"), fingerprint="0123456789ab")
    (text,) = origin.match(source, "cuda", H100, NOW, "ba9876543210").changes
    assert text.startswith("it was measured on machine 0123456789ab, this is ba9876543210 (fingerprint of CPU, ")
    assert origin.match(source, "cuda", H100, NOW, "0123456789ab").changes == ()
    assert origin.match(replace(source, fingerprint=""), "cuda", H100, NOW, "ba9876543210").changes == ()


def test_a_table_of_another_machine_warns_once_and_is_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    text = r"dispatch table made\.json is stale: it was measured on machine 0123456789ab, this is .*;"
    with pytest.warns(StaleTableWarning, match=f"{text} measure again with attnbench run, and attnbench") as record:
        called(replace(measured_on(here()), fingerprint="0123456789ab"))
    assert len(record) == 1
    assert [": naive, " in message for message in caplog.messages] == [True, True]


def test_a_warning_made_an_error_refuses_the_table() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleTableWarning)
        with pytest.raises(StaleTableWarning, match="measured on machine 0123456789ab"):
            called(replace(measured_on(here()), fingerprint="0123456789ab"))


def test_a_table_of_a_cluster_has_the_fingerprint_of_its_nodes_if_they_are_alike() -> None:
    def stored(*fingerprints: str) -> str:
        nodes = {f"n{number}": {"fingerprint": each} for number, each in enumerate(fingerprints)}
        created_at = "2026-01-02T03:04:05+00:00"
        manifest = Manifest(
            schema_version=1, attnbench="0", created_at=created_at, suite="s", fingerprint="whole", nodes=nodes
        )
        return table_origin(manifest).fingerprint

    assert [stored(), stored("a", "a"), stored("a", "b")] == ["whole", "a", ""]


def test_a_table_of_another_cpu_warns_once_and_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with pytest.warns(StaleTableWarning, match="is not used: the table was measured on Abacus") as record:
        called(measured_on(replace(here(), model="Abacus")))
    assert len(record) == 1
    assert ["falls back to SDPA: the table was measured on Abacus" in message for message in caplog.messages] == [
        True
    ] * 2
