"""Readers of traces. The samples are made up in the format of each public trace; none is taken from one."""

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import UsageError
from attnbench.suite.serving import sources
from attnbench.suite.serving.generate import Traffic, generate, json_lines, parse_traffic
from attnbench.suite.serving.trace import Trace, TraceFormat, TraceOptions

MOONCAKE = (
    '{"timestamp": 27000, "input_length": 600, "output_length": 40, "hash_ids": [1, 2]}\n'
    '{"timestamp": 27000, "input_length": 512, "output_length": 7, "hash_ids": [1]}\n'
    '{"timestamp": 30000, "input_length": 1025, "output_length": 9, "hash_ids": [1, 3, 4]}\n'
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-17 18:15:50.9951690,396,109\n"
)
# The first and second file of BurstGPT have six columns and whole seconds; the third has eight, times that do not start
# at 0, and no session for an API call. A failed request has no response, and may have no prompt either.
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "7,ChatGPT,310,25,335,Conversation log\n"
    "52,GPT-4,940,0,940,API log\n"
    "52,GPT-4,0,0,0,Conversation log\n"
    "131,GPT-4,388,251,639,Conversation log\n"
)
BURSTGPT_SESSIONS = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440107.0,5d0c1f5e-77b2-4c0b-9a34-0b6a9c2e8f11,41,GPT-4,871,402,1273,Conversation log\n"
    "19440107.0,,3,ChatGPT,55,31,86,API log\n"
    "19440163.0,,0,ChatGPT,0,0,0,API log\n"
    "19440250.0,5d0c1f5e-77b2-4c0b-9a34-0b6a9c2e8f11,9,GPT-4,1790,130,1920,Conversation log\n"
)
OWN = (
    '{"arrival_s": 1.5, "input_tokens": 100, "output_tokens": 20}\n'
    "\n"
    '{"arrival_s": 2, "input_tokens": 513, "output_tokens": 1, "hash_ids": [7, 8]}\n'
)


def trace(folder: Path, text: str, name: str = "", **settings: Any) -> Trace:
    path = folder / "trace.txt"
    path.write_text(text, encoding="utf-8")
    return Trace(path, name, TraceOptions(**settings))


def plain(requests: Trace) -> list[tuple[float, int, int]]:
    return [(round(item.arrival_s, 6), item.input_tokens, item.output_tokens) for item in requests]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (MOONCAKE, TraceFormat.MOONCAKE, [(0.0, 600, 40), (0.0, 512, 7), (3.0, 1025, 9)]),
        (AZURE, TraceFormat.AZURE, [(0.0, 374, 44), (4.314579, 396, 109), (86404.314579, 396, 109)]),
        ("\ufeff" + AZURE, TraceFormat.AZURE, [(0.0, 374, 44), (4.314579, 396, 109), (86404.314579, 396, 109)]),
        (BURSTGPT, TraceFormat.BURSTGPT, [(0.0, 310, 25), (124.0, 388, 251)]),
        (BURSTGPT_SESSIONS, TraceFormat.BURSTGPT, [(0.0, 871, 402), (0.0, 55, 31), (143.0, 1790, 130)]),
        (OWN, TraceFormat.ATTNBENCH, [(0.0, 100, 20), (0.5, 513, 1)]),
    ],
)
def test_each_format_is_detected_and_read(
    tmp_path: Path, text: str, name: TraceFormat, expected: list[tuple[float, int, int]]
) -> None:
    requests = trace(tmp_path, text)
    assert requests.format is name
    assert plain(requests) == expected
    assert plain(requests) == expected  # a second time


def test_empty_lines_are_no_requests(tmp_path: Path) -> None:
    assert plain(trace(tmp_path, AZURE.replace("\n", "\n\n"))) == plain(trace(tmp_path, AZURE))


def test_failed_requests_are_skipped_and_counted(tmp_path: Path) -> None:
    requests = trace(tmp_path, BURSTGPT)
    assert [item.line for item in requests] == [2, 5]
    assert requests.skipped == 2


def test_requests_of_one_model_are_selected(tmp_path: Path) -> None:
    requests = trace(tmp_path, BURSTGPT_SESSIONS, model="GPT-4")
    assert plain(requests) == [(0.0, 871, 402), (143.0, 1790, 130)]
    assert (requests.skipped, requests.models) == (1, {"GPT-4": 2, "ChatGPT": 1})
    with pytest.raises(UsageError, match=r"no request to --trace-model gpt4; the column 'Model' has ChatGPT, GPT-4"):
        list(trace(tmp_path, BURSTGPT_SESSIONS, model="gpt4"))


def test_scaled_lengths_keep_what_prompts_share(tmp_path: Path) -> None:
    """Of 1,025 tokens the first two parts are shared: 1,024 tokens of the trace are 2,048 or 512 of the model."""
    line = '{"timestamp": 0, "input_length": 1536, "output_length": 10, "hash_ids": [1, 2, %d]}\n'
    text = line % 3 + line % 4
    for scale, tokens, output, shared in ((2.0, 3072, 20, 4), (0.5, 768, 5, 1), (1.0, 1536, 10, 2)):
        first, second = trace(tmp_path, text, tokens_scale=scale)
        assert (first.input_tokens, first.output_tokens) == (tokens, output)
        assert len(first.prefix_hashes) == len(set(first.prefix_hashes)) == -(-tokens // 512)
        equal = [a == b for a, b in zip(first.prefix_hashes, second.prefix_hashes, strict=True)]
        assert equal == [True] * shared + [False] * (len(equal) - shared)
    (short,) = trace(tmp_path, '{"arrival_s": 0, "input_tokens": 1, "output_tokens": 1}\n', tokens_scale=0.1)
    assert (short.input_tokens, short.output_tokens) == (1, 1)


def test_equal_hashes_are_equal_prefixes(tmp_path: Path) -> None:
    first, second, third = (item.prefix_hashes for item in trace(tmp_path, MOONCAKE))
    assert first[0] == second[0] == third[0]
    assert first[1] != third[1]
    other = trace(tmp_path, MOONCAKE.replace("[1, 2]", "[9, 3]"))
    assert next(iter(other)).prefix_hashes[1] != third[1]  # block 3 after another block is another prefix


def test_speed_divides_arrivals(tmp_path: Path) -> None:
    assert [arrival for arrival, *_ in plain(trace(tmp_path, MOONCAKE, speed=2.0))] == [0.0, 0.0, 1.5]


def test_jitter_spreads_a_batch_in_order_and_by_seed(tmp_path: Path) -> None:
    line = '{"timestamp": %d, "input_length": %d, "output_length": 1, "hash_ids": [1]}\n'
    text = "".join(line % (3000 * (index // 20), index + 1) for index in range(60))
    plainly = plain(trace(tmp_path, text))
    jittered = plain(trace(tmp_path, text, jitter_s=3.0, seed=1))
    arrivals = [arrival for arrival, *_ in jittered]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) == 60
    assert sorted(tokens for _, tokens, _ in jittered) == [tokens for _, tokens, _ in plainly]
    assert jittered == plain(trace(tmp_path, text, jitter_s=3.0, seed=1))
    assert jittered != plain(trace(tmp_path, text, jitter_s=3.0, seed=2))


def test_a_trace_is_read_as_it_is_used(tmp_path: Path) -> None:
    """Only then can it be larger than memory: a mistake further down is not reached."""
    text = AZURE + "2023-11-18 00:00:00,1,1\n" * 5000 + "2023-11-18 00:00:00,none,1\n"
    assert len(list(itertools.islice(trace(tmp_path, text), 100))) == 100
    with pytest.raises(UsageError, match=r"trace.txt:5005: ContextTokens='none': use a number of tokens"):
        list(trace(tmp_path, text))


def test_a_long_trace_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    def peak(lines: int) -> int:
        requests = trace(tmp_path, AZURE + "2023-11-18 00:00:00,1,1\n" * lines)
        tracemalloc.start()
        assert sum(1 for _ in requests) == lines + 3
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(10)  # what the first use imports
    assert peak(8_000) < 1.2 * peak(2_000)  # the file has four times the bytes


WRONG = {
    "no line": ("", "trace.txt: an empty trace: it has no line; use a file with requests"),
    "only a heading": (AZURE.splitlines()[0], "trace.txt: an empty trace: it has no request; use"),
    "only failures": (
        "\n".join(BURSTGPT.splitlines()[:4:2]),
        "an empty trace: it has no request with a response (1 without)",
    ),
    "another file": (
        "\ntime,tokens\n1,2\n",
        "trace.txt:2: not a known trace: 'time,tokens'; use a file with the fields of one: mooncake (JSON Lines): "
        "timestamp, input_length, output_length; azure (CSV): TIMESTAMP",
    ),
    "another JSON": ('{"a": 1}\n', "not a known trace: "),
    "no JSON at all": ("{arrival_s\n", "trace.txt:1: not a known trace: '{arrival_s'; use a file with the fields"),
    "a pointer": ("version https://git-lfs.github.com/spec/v1\nsize 5\n", "trace.txt: a pointer of Git LFS, not the"),
    "a broken first line": (
        MOONCAKE.replace(', "output', ' "output', 1),
        'trace.txt:1: \'{"timestamp": 27000, "input_length": 600...\' is no JSON object (JSON is malformed: '
        "expected ',' or '}' (byte 41)): use one with timestamp, input_length, output_length",
    ),
    "a first line without a field": (
        MOONCAKE.replace("input_length", "length", 1),
        "trace.txt:1: no field 'input_length': add it, with a number of tokens, at least 1",
    ),
    "a heading without a column": (
        AZURE.replace("ContextTokens", "Tokens"),
        "trace.txt:1: the heading 'TIMESTAMP,Tokens,GeneratedTokens' has no column 'ContextTokens'",
    ),
    "a heading in other letters": (AZURE.swapcase(), "trace.txt:1: the heading 'timestamp,cONTEXTtOKENS,gENERATEDtOK"),
    "a number as text": (
        MOONCAKE.replace("600", '"600"'),
        "trace.txt:1: input_length='\"600\"': use a number of tokens, at least 1, without quotes",
    ),
    "a time as text": (OWN.replace("1.5", '"1.5"'), "arrival_s='\"1.5\"': use a number of seconds, without quotes"),
    "not CSV": (BURSTGPT + "1" * 200_000 + "\n", "trace.txt:6: not CSV: field larger than field limit (131072)"),
    "no JSON": (
        OWN + "{arrival_s\n",
        "trace.txt:4: '{arrival_s' is no JSON object (JSON is malformed: object keys must be strings (byte 1)): use",
    ),
    "a list": (OWN + "[1]\n", "trace.txt:4: '[1]' is no JSON object"),
    "no output": (
        OWN + '{"arrival_s": 3, "input_tokens": 1}\n',
        "trace.txt:4: no field 'output_tokens': add it, with a number of tokens, at least 0",
    ),
    "no hashes": (
        MOONCAKE + '{"timestamp": 30000, "input_length": 1, "output_length": 1}\n',
        "trace.txt:4: no field 'hash_ids': add it, with a list of whole numbers",
    ),
    "hashes that do not match": (
        MOONCAKE.replace("[1, 3, 4]", "[1, 3]"),
        "trace.txt:3: hash_ids has 2 hashes for input_length=1025: use 3, one for each 512 tokens",
    ),
    "hashes of text": (MOONCAKE.replace("[1, 2]", '["a", 2]'), "trace.txt:1: hash_ids=\"['a', 2]\": use a list"),
    "a fraction of a token": (AZURE + "2023-11-18 00:00:00,1.5,2\n", "trace.txt:5: ContextTokens='1.5': use a number"),
    "no token": (AZURE + "2023-11-18 00:00:00,0,2\n", "trace.txt:5: ContextTokens='0': use a number of tokens, at le"),
    "less than no token": (AZURE + "2023-11-18 00:00:00,1,-2\n", "trace.txt:5: GeneratedTokens='-2': use a number"),
    "too many tokens": (AZURE + f"2023-11-18 00:00:00,{10**17},2\n", "trace.txt:5: ContextTokens='1000000000000"),
    "a switch": (MOONCAKE.replace("600", "true"), "trace.txt:1: input_length='True': use a number of tokens"),
    "no time": (AZURE + "yesterday,1,2\n", "trace.txt:5: TIMESTAMP='yesterday': use a time such as 2023-11-16 18:15"),
    "not a finite time": (BURSTGPT + "nan,m,1,2,3,l\n", "trace.txt:6: Timestamp='nan': use a number of seconds"),
    "out of order": (
        MOONCAKE.replace("27000", "31000", 1),
        "trace.txt:2: timestamp='27000' is before line 1: sort the trace by 'timestamp'",
    ),
    "a value too few": (AZURE + "2023-11-18 00:00:00,1\n", "trace.txt:5: 2 values: use 3, one for each column"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    text, message = WRONG[name]
    with pytest.raises(UsageError) as raised:
        list(trace(tmp_path, text))
    assert message in str(raised.value)


def test_a_format_that_does_not_fit_names_the_missing_column(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no column 'Timestamp': use a file with it, or another --trace-format"):
        list(trace(tmp_path, AZURE, "burstgpt"))
    with pytest.raises(UsageError, match=r"txt:1: no field 'output_length': .* or give --trace-format"):
        list(trace(tmp_path, OWN, "mooncake"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"{path}: {reason}"):
            Trace(path)
    requests = trace(tmp_path, OWN)
    requests.path.unlink()
    with pytest.raises(UsageError, match=f"{requests.path}: No such file"):
        list(requests)


def test_generated_requests_share_nothing_without_prefixes() -> None:
    requests = list(generate(Traffic(requests=3), seed=0))
    assert [request.prefix_hashes for request in requests] == [(), (), ()]
    assert not any(b"hash_ids" in line for line in json_lines(requests))


def test_generated_traces_have_the_lengths_the_rate_and_the_prefixes_that_were_asked_for(tmp_path: Path) -> None:
    traffic = Traffic(
        requests=4000, requests_per_s=4.0, burstiness=0.25, input_tokens=600, output_tokens=100, prefixes=3
    )
    requests = list(generate(traffic, seed=1))
    intervals = [b.arrival_s - a.arrival_s for a, b in itertools.pairwise(requests)]
    mean = sum(intervals) / len(intervals)
    deviation = (sum((item - mean) ** 2 for item in intervals) / len(intervals)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.1)
    assert deviation / mean == pytest.approx(2.0, rel=0.15)  # 1 / sqrt(burstiness)
    assert sum(item.input_tokens for item in requests) / 4000 == pytest.approx(600 + 1024, rel=0.05)
    assert sum(item.output_tokens for item in requests) / 4000 == pytest.approx(100, rel=0.05)
    assert len({item.prefix_hashes[:2] for item in requests}) == 3
    others = [part for item in requests for part in item.prefix_hashes[2:]]
    assert len(others) == len(set(others))
    written = tmp_path / "generated.jsonl"
    written.write_bytes(b"\n".join(json_lines(requests)))
    read = list(Trace(written))
    assert [(item.arrival_s, item.input_tokens, item.output_tokens) for item in read] == [
        (item.arrival_s, item.input_tokens, item.output_tokens) for item in requests
    ]
    assert list(generate(traffic, seed=1)) == requests != list(generate(traffic, seed=2))


def test_shipped_traces_are_made_as_their_page_says() -> None:
    page = (sources._SHIPPED / "README.md").read_text()
    rows = [line.split("`") for line in page.splitlines() if line.startswith("| `")]
    assert {Path(row[1]).stem for row in rows} == set(sources.shipped()) != set()
    made = {row[1]: row[3] for row in rows if row[3].startswith("requests=")}
    assert len(made) == 2
    for file, text in made.items():
        lines = b"".join(line + b"\n" for line in json_lines(generate(parse_traffic(text), seed=0)))
        assert (sources._SHIPPED / file).read_bytes() == lines
    recorded = [row for row in rows if row[1] not in made]
    assert all((sources._SHIPPED / f"{Path(row[1]).stem}.LICENSE.txt").is_file() for row in recorded)


def test_recorded_traces_are_the_first_requests_of_theirs() -> None:
    """By hand: the first and last lines of the excerpts."""
    azure, mooncake = (list(sources.open_trace(name)) for name in ("azure-conversation", "mooncake-conversation"))
    assert (len(azure), len(mooncake)) == (400, 100)
    assert (azure[0].arrival_s, azure[0].input_tokens, azure[0].output_tokens) == (0.0, 374, 44)
    assert azure[1].arrival_s == pytest.approx(4.314579)
    assert (mooncake[0].input_tokens, mooncake[0].output_tokens, len(mooncake[0].prefix_hashes)) == (6758, 500, 14)


def test_a_trace_is_opened_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(list(sources.open_trace("chat"))) == 80
    fast = list(sources.open_trace("generated:requests=7:input_variation=0", options=TraceOptions(speed=2.0, seed=3)))
    slow = list(sources.open_trace("generated:requests=7:input_variation=0", options=TraceOptions(seed=3)))
    assert [item.input_tokens for item in fast] == [1155] * 7
    assert fast[-1].arrival_s == pytest.approx(slow[-1].arrival_s / 2, abs=2e-3)
    (tmp_path / "chat").write_text(OWN)
    assert len(list(sources.open_trace("chat"))) == 2  # a file goes before a shipped trace


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            ".",
            {},
            "TRACE .: a directory; use the file of a trace, or a shipped one: azure-conversation, chat, mooncake",
        ),
        ("chta", {}, "TRACE: no file or shipped trace 'chta'; did you mean 'chat'?"),
        ("generated:request=3", {}, "generated:request=3: no field 'request'; did you mean 'requests'?"),
        ("generated:requests=x", {}, "generated:requests=x: requests: not an integer: 'x'"),
        ("generated:requests=0", {}, "requests: '0': a number above 0"),
        ("generated:requests_per_s", {}, "requests_per_s: '': not a number (try 0.5 or 1200)"),
        ("generated:input_tokens=inf", {}, "input_tokens: 'inf': not a number"),
        ("generated:", {"jitter_s": 3.0}, "--jitter: only for a trace in a file, not for 'generated:': leave it out"),
        ("generated:", {"tokens_scale": 2.0}, "--tokens-scale: only for a trace in a file"),
        ("generated:", {"model": "GPT-4"}, "--trace-model: only for a trace in a file"),
        (
            "chat",
            {"model": "GPT-4"},
            "--trace-model GPT-4: traces of the format attnbench name no models: leave it out",
        ),
    ],
)
def test_a_name_that_opens_nothing_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        sources.open_trace(name, options=TraceOptions(**settings))
    assert message in str(raised.value)


def test_a_format_is_only_for_a_file() -> None:
    with pytest.raises(UsageError, match="--trace-format: only for a trace in a file, not for 'generated:'"):
        sources.open_trace("generated:", "azure")
