"""`attnbench replay --simulate-only`: what it prints, and what it refuses."""

import csv
import json
from pathlib import Path

import pytest

from attnbench import cli
from attnbench.suite.serving import sources
from tests.suite.test_decoder_models import DEEPSEEK_V3, GPT_OSS_20B, LLAMA_8B
from tests.suite.test_traces import BURSTGPT_SESSIONS

PROMPTS = {"input_tokens", "input_length", "ContextTokens"}  # what formats call the tokens of a prompt
ANSWERS = {"output_tokens", "output_length", "GeneratedTokens"}
MODELS = {"llama": LLAMA_8B, "gpt-oss": GPT_OSS_20B, "deepseek": DEEPSEEK_V3}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the configs of models."""
    monkeypatch.chdir(tmp_path)
    for name, config in MODELS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    return tmp_path


def replay(*arguments: str, model: str = "llama") -> int:
    return cli.invoke(["replay", *arguments, "--model", f"{model}.json", "--simulate-only"])


def records(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, object]], dict[str, object]]:
    """The rows of the tables, and the rest."""
    *rows, rest = map(json.loads, capsys.readouterr().out.splitlines())
    return rows, rest


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("trace", sources.shipped())
def test_parts_of_the_mix_add_up(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(trace, "--json") == 0
    rows, rest = records(capsys)
    for column in ("kind", "context"):
        parts = [row for row in rows if row[column]]
        assert sum(row["steps"] for row in parts) == rest["steps"]  # type: ignore[misc]
        assert sum(row["predicted_s"] for row in parts) == pytest.approx(rest["attention_s"])  # type: ignore[misc]
    text = sources.shipped()[trace].read_text()
    requests = list(csv.DictReader(text.splitlines())) if "," in text[:12] else list(map(json.loads, text.splitlines()))
    prompts, answers = (names & set(requests[0]) for names in (PROMPTS, ANSWERS))
    totals = rest["totals"]
    assert isinstance(totals, dict)
    assert totals["finished"] == len(requests)
    assert totals["input_tokens"] == sum(int(item[name]) for item in requests for name in prompts)
    assert totals["output_tokens"] == sum(int(item[name]) for item in requests for name in answers)


@pytest.mark.usefixtures("folder")
def test_the_table_names_model_server_and_mix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert replay("chat", "--tp", "2", "--replicas", "3", "--gpu", "L4", model="gpt-oss") == 0
    text = capsys.readouterr().out
    assert "12 layers of sliding window of 128 (32 heads, 4 key-value heads, head_dim 64)" in text
    assert "12 layers of full attention (32 heads, 4 key-value heads, head_dim 64)" in text
    assert "3 servers of 2 x L4" in text
    assert "at most 2,048 tokens and 256 requests a step" in text  # vLLM's defaults of a small GPU
    assert "trace: 80 requests" in text
    assert "\ndecode " in text


@pytest.mark.usefixtures("folder")
def test_options_change_what_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    figures: dict[str, dict[str, object]] = {}
    for name, words in {
        "plain": [],
        "uncached": ["--no-prefix-cache"],
        "fast": ["--speed", "4"],
        "small": ["--kv-blocks", "400", "--block-size", "8"],
        "narrow": ["--max-num-seqs", "2"],
        "slow": ["--slowdown", "3"],
        "long": ["--tokens-scale", "2"],
    }.items():
        assert replay("shared-prefix", "--json", *words) == 0
        figures[name] = records(capsys)[1]
    totals = {name: figure["totals"] for name, figure in figures.items()}
    assert totals["plain"]["cached_tokens"] > 0 == totals["uncached"]["cached_tokens"]  # type: ignore[index]
    assert totals["small"]["preemptions"] > 0 == totals["plain"]["preemptions"]  # type: ignore[index]
    assert figures["fast"]["simulated_s"] < figures["plain"]["simulated_s"]  # type: ignore[operator]
    assert figures["narrow"]["steps"] > figures["plain"]["steps"]  # type: ignore[operator]
    # Longer steps are fewer, with more requests each.
    assert figures["slow"]["steps"] < figures["plain"]["steps"]  # type: ignore[operator]
    assert figures["slow"]["busy_s"] > figures["plain"]["busy_s"]  # type: ignore[operator]
    assert totals["long"]["input_tokens"] == 2 * totals["plain"]["input_tokens"]  # type: ignore[index]


@pytest.mark.usefixtures("folder")
def test_a_seed_gives_the_same_steps_again(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("1", "1", "2"):
        assert replay("generated:requests=30:output_tokens=20", "--seed", seed, "--json") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.usefixtures("folder")
def test_the_output_names_the_clock(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for options, text in (
        ([], "clock: the data sheet of the H100 SXM, which no server reaches"),
        (["--slowdown", "2.5"], "clock: steps take 2.5 times as long as by the data sheet of the H100 SXM"),
    ):
        assert replay("chat", *options) == 0
        assert text in capsys.readouterr().out


def test_what_the_trace_has_of_other_models_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "burst.csv").write_text(BURSTGPT_SESSIONS)
    (folder / "cl100k.json").write_text(json.dumps(LLAMA_8B | {"vocab_size": 100_352}))
    other = (
        "note: lengths are in tokens of ChatGPT and GPT-4 (100,277 tokens), and llama has another tokenizer (128,256)"
    )
    mixed = "note: requests to GPT-4 (2), ChatGPT (1) are sent to one server; select those of one model with"
    for model, options, notes in (
        ("llama", [], [other, mixed]),
        ("llama", ["--tokens-scale", "0.9"], [mixed]),
        ("cl100k", [], [mixed]),  # the same vocabulary, padded
        ("llama", ["--trace-model", "GPT-4"], [other]),
    ):
        assert replay("burst.csv", *options, model=model) == 0
        printed = capsys.readouterr().err
        assert [note for note in (other, mixed) if note in printed] == notes
    assert replay("chat") == 0
    assert "note" not in capsys.readouterr().err


WRONG = {
    "no such trace": (["chta", "--model", "llama.json", "--simulate-only"], "no file or shipped trace 'chta'; did you"),
    "no such file": (["no.csv", "--model", "llama.json", "--simulate-only"], "no.csv: No such file"),
    "no such model": (["chat", "--model", "no.json", "--simulate-only"], "no.json: No such file"),
    "no blocks": (["chat", "--model", "llama.json", "--simulate-only", "--block-size", "0"], "--block-size: 0: at lea"),
    "blocks beyond any cache": (
        ["chat", "--model", "llama.json", "--simulate-only", "--kv-blocks", "99999999999"],
        "--kv-blocks: 99999999999: at most 16777216",
    ),
    "no room": (["chat", "--model", "deepseek.json", "--simulate-only"], "--tp 1: 671 GB of weights on each GPU"),
    "no divisor": (["chat", "--model", "llama.json", "--simulate-only", "--tp", "3"], "--tp 3: does not divide 32"),
    "a long request": (
        ["chat", "--model", "llama.json", "--simulate-only", "--kv-blocks", "10"],
        "chat:1: 870 tokens of prompt and answer need 55 blocks, and the cache has 10: use --kv-blocks 55 or more",
    ),
    "no slowdown": (["chat", "--model", "llama.json", "--slowdown", "nan"], "--slowdown: nan: a number above 0"),
    "no scale": (["chat", "--model", "llama.json", "--tokens-scale", "-1"], "--tokens-scale: -1.0: a number above 0"),
    "no speed": (["chat", "--model", "llama.json", "--simulate-only", "--speed", "0"], "--speed: 0.0: a number above"),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG[name]
    assert cli.invoke(["replay", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_config_without_heads_is_refused_with_its_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bloom.json").write_text('{"model_type": "bloom", "hidden_size": 64, "n_layer": 2}')
    assert replay("chat", model="bloom") == 2
    assert "bloom.json: no num_attention_heads (nor " in capsys.readouterr().err
