"""What a dispatch table holds beside its choices, and how a file that is none is refused."""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args, get_origin

import msgspec
import pytest
from msgspec.structs import replace

from attnbench import cli
from attnbench.analysis.rows import rows_of
from attnbench.attention.problem import Problem
from attnbench.errors import SchemaError, StoreError
from attnbench.records.arm import Arm
from attnbench.records.result import Environment, Result, Status
from attnbench.studies import dispatch_table
from attnbench.studies.dispatch_table import Dispatch
from attnbench.studies.recommend import dispatch
from tests.golden import made
from tests.studies.test_claims import measured


def table(*results: Result) -> Dispatch:
    return dispatch(rows_of(results))


def ranked(dispatch: Dispatch) -> dict[int, list[str]]:
    return {choice.axes.seq_q: [each.backend for each in choice.ranking] for choice in dispatch.choices}


def three(seq: int, **problem: object) -> list[Result]:
    times = {"naive": 4.0, "sdpa:flash": 1.0, "sdpa:math": 2.0}
    return [measured(seconds, backend, seq_q=seq, **problem) for backend, seconds in times.items()]


def test_the_ranking_has_every_right_backend_with_its_time_over_the_fastest() -> None:
    (choice,) = table(*three(64)).choices
    assert [each.backend for each in choice.ranking] == ["sdpa:flash", "sdpa:math", "naive"]
    assert [each.over for each in choice.ranking] == pytest.approx([1.0, 2.0, 4.0], rel=1e-3)
    assert choice.axes == Problem(seq_q=64)


def test_a_backend_that_was_wrong_once_is_ranked_nowhere_with_that_mask() -> None:
    wrong = made.refused(Problem(seq_q=512), "sdpa:flash", Status.INCORRECT, "out: error 0.3")
    causal = three(64, mask="causal")
    assert ranked(table(*three(64), wrong)) == {64: ["sdpa:math", "naive"]}
    assert ranked(table(*causal, wrong)) == {64: ["sdpa:flash", "sdpa:math", "naive"]}


def test_a_backend_that_ran_out_of_memory_is_ranked_where_it_ran() -> None:
    oom = made.refused(Problem(seq_q=512), "naive", Status.OOM, "needs 16 GiB")
    assert ranked(table(*three(64), *three(512)[1:], oom)) == {
        64: ["sdpa:flash", "sdpa:math", "naive"],
        512: ["sdpa:flash", "sdpa:math"],
    }


def test_arms_with_settings_of_their_own_are_not_ranked() -> None:
    first, second = (made.measured(Problem(seq_q=64), "naive", seconds) for seconds in (1e-3, 2e-3))
    variable = Arm(backend="naive", device="cpu", env=(("X", "1"),))
    other = made.measured(Problem(seq_q=64), "sdpa:math", 3e-3)
    assert ranked(table(replace(first, arm=variable), second, other)) == {64: ["naive", "sdpa:math"]}
    assert table(replace(first, arm=variable), second, other).choices[0].backend == "naive@X=1"


def origin(valid_s: float = dispatch_table.VALID_S) -> dispatch_table.Origin:
    arms = (Arm(backend="naive", device="cuda:0"), Arm(backend="triton", device="cuda:0"))
    packages = ({"torch": "2.13.0"}, {"triton": "3.7.1"})
    environments = {
        arm.id: Environment(device="NVIDIA H100", facts={"driver": "580.1"}, packages=versions)
        for arm, versions in zip(arms, packages, strict=True)
    }
    manifest = replace(made.run().manifest, arms=arms, environments=environments, fingerprint="abc")
    return dispatch_table.origin(manifest, valid_s)


def test_the_origin_joins_the_versions_of_all_arms_of_a_device() -> None:
    device = origin().devices["cuda:0"]
    assert device.model == "NVIDIA H100"
    assert device.versions == {"torch": "2.13.0", "triton": "3.7.1", "driver": "580.1"}


def test_a_table_expires_from_the_time_of_its_run() -> None:
    source = origin(valid_s=3600.0)
    assert datetime.fromisoformat(source.expires) - datetime.fromisoformat(source.created_at) == timedelta(hours=1)


def written(folder: Path, **changes: object) -> Path:
    plain = json.loads(msgspec.json.encode(dispatch(rows_of(three(64)), origin=origin())))
    (folder / "table.json").write_text(json.dumps({**plain, **changes}))
    return folder / "table.json"


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert dispatch_table.read(written(tmp_path)) == dispatch(rows_of(three(64)), origin=origin())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"version": 1}, SchemaError, "version 1 of the dispatch table; this attnbench reads 2: write it again"),
        ({"version": 9}, SchemaError, "upgrade attnbench"),
        ({"speed": 1}, StoreError, "unknown field `speed`"),
        ({"version": "x"}, StoreError, r"`\$.version`"),
        ({"choices": [{"problem": "q64"}]}, StoreError, r"`\$.choices\[0\]`"),
    ],
)
def test_another_file_is_refused_with_its_key(
    changes: dict[str, object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words) as raised:
        dispatch_table.read(written(tmp_path, **changes))
    assert "table.json" in str(raised.value)


def test_a_problem_that_is_impossible_and_a_wrong_time_are_refused(tmp_path: Path) -> None:
    plain = json.loads(written(tmp_path).read_text())
    impossible = [{**plain["choices"][0], "axes": {"seq_q": -1}}]
    with pytest.raises(StoreError, match="seq_q=-1"):
        dispatch_table.read(written(tmp_path, choices=impossible))
    for text in ("tomorrow", "2026-11-30"):
        with pytest.raises(StoreError, match=f"origin.expires: '{text}' is not a time"):
            dispatch_table.read(written(tmp_path, origin={**plain["origin"], "expires": text}))


@pytest.mark.parametrize("content", [b"", b"seq,time\n64,1\n", b"[1, 2]", b"\xff\xfe"])
def test_a_file_that_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"x\.json is not a dispatch table: .*; attnbench recommend RUN -o FILE"):
        dispatch_table.read(tmp_path / "x.json")
    with pytest.raises(StoreError, match=r"none\.json cannot be read: No such file"):
        dispatch_table.read(tmp_path / "none.json")


def test_the_command_refuses_a_time_and_an_engine_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["recommend", "--expires", "soon"]) == 2
    assert "--expires: not a duration: 'soon'" in capsys.readouterr().err
    assert cli.invoke(["recommend", "--to", "tgi"]) == 2
    assert "--to: no engine 'tgi'; there are vllm, sglang, transformers" in capsys.readouterr().err


def keys(kind: type[msgspec.Struct], path: str = "") -> Iterator[str]:
    """The path of every key of a record and of the records within it, except those of a problem."""
    for field in msgspec.structs.fields(kind):
        yield path + field.encode_name
        parts = [kind for kind in (field.type, *get_args(field.type)) if hasattr(kind, "__struct_fields__")]
        within = {tuple: "[].", dict: ".DEVICE."}.get(get_origin(field.type), ".")
        for part in parts:
            if part is not Problem:
                yield from keys(part, f"{path}{field.encode_name}{within}")


def test_every_key_of_a_table_is_documented_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    section = page.partition("## recommend -o")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", section, flags=re.MULTILINE)
    documented = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
    assert sorted(documented) == sorted(keys(Dispatch))
