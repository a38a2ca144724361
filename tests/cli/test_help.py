"""Help: grouped, complete, in one style, and readable without colour or boxes; the page of environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup, TyperOption

from attnbench import cli
from attnbench.attention.inputs import DISTRIBUTIONS
from attnbench.cli import application, config, options
from attnbench.cli.help import ENVIRONMENT

PACKAGE = Path(cli.__file__).parents[1]
MAX_SUMMARY = 63  # beside the longest name of a command, in 80 columns
# Words that begin a sentence as they are written.
LITERALS = ("file.py", "index.html", "config.json")


def commands() -> Iterator[tuple[str, typer.Context]]:
    """Every command and group, with a context."""
    root = typer.main.get_command(cli.app)
    pending = [("attnbench", typer.Context(root, info_name="attnbench", **root.context_settings))]
    while pending:
        path, context = pending.pop()
        yield path, context
        if isinstance(context.command, TyperGroup):
            for name, member in context.command.commands.items():
                pending.append((f"{path} {name}", typer.Context(member, parent=context, info_name=name)))


EVERY = dict(commands())


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("path", EVERY)
def test_help_of_every_command_fits_and_is_grouped(path: str) -> None:
    text = EVERY[path].command.get_help(EVERY[path])
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert "env var" not in text
    assert not re.search(r"<(bool|str|path|list)", text)
    assert not re.search(r"_( |$)", text, re.MULTILINE)


@pytest.mark.parametrize("path", EVERY)
def test_every_text_of_help_follows_the_style(path: str) -> None:
    command = EVERY[path].command
    summary = (command.help or "").partition("\n\n")[0]
    assert len(summary) <= MAX_SUMMARY
    texts = [("the command", command.help)]
    texts += [(str(item.name), item.help) for item in command.get_params(EVERY[path]) if not item.hidden]
    for name, text in texts:
        assert text, f"{name} has no help"
        assert text.startswith(LITERALS) or text[0].isupper(), f"{name}: {text}"
        assert text.endswith("."), f"{name}: {text}"
        assert "..." not in text, f"{name}: {text}"
        assert "[" not in text, f"{name}: the panels take this for markup: {text}"


@pytest.mark.parametrize("path", EVERY)
def test_only_commands_with_suites_have_defaults_of_a_suite(path: str) -> None:
    shown = {str(item.name): str(item.help) for item in EVERY[path].command.get_params(EVERY[path])}
    of_suite = [name for name, text in shown.items() if re.search(r"by default (those|that) of the suite", text)]
    assert not of_suite or shown.keys() & {"suites", "suite"}, of_suite


@pytest.mark.parametrize("path", EVERY)
def test_every_value_has_a_metavar_and_no_name_ends_in_an_underscore(path: str) -> None:
    for item in EVERY[path].command.get_params(EVERY[path]):
        assert not str(item.name).endswith("_")
        if isinstance(item, TyperOption) and not item.hidden and not item.is_flag:
            assert item.metavar, item.name


def test_run_has_the_panels_in_order_and_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert {"[default: 1]", "[default: 60s]", "[default: 80%]"} <= set(re.findall(r"\[.*?\]", text))
    titles = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert titles == ["Arguments", "Problem", "Arms", "Measuring", "Choosing", "Output"]


@pytest.mark.parametrize("command", ["run", "verify"])
def test_help_names_every_distribution_of_inputs(command: str) -> None:
    context = EVERY[f"attnbench {command}"]
    (option,) = [item for item in context.command.get_params(context) if item.name == "inputs"]
    assert isinstance(option, TyperOption)
    words = re.findall(r"\w+", option.help or "")
    assert set(DISTRIBUTIONS) <= set(words)


def test_every_panel_entry_is_an_option() -> None:
    names = {item.name for context in EVERY.values() for item in context.command.get_params(context)}
    assert not set(application.PANELS) - names


def test_terminal_gets_drawn_panels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(application, "_drawn", lambda: True)
    assert cli.invoke(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert [title for title in ("Problem", "Arms", "Measuring", "Choosing", "Output") if f"─ {title} ─" in text] == [
        "Problem", "Arms", "Measuring", "Choosing", "Output",
    ]  # fmt: skip
    assert "[default: 5..30]" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["--color", "never", "run", "--help"], ["run", "--help", "--color=never"]])
def test_color_never_reaches_drawn_help(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(application, "_drawn", lambda: True)
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.invoke(["run", "--help"]) == 0
    assert "\x1b[" in capsys.readouterr().out
    assert cli.invoke(arguments) == 0
    assert "\x1b[" not in capsys.readouterr().out


@pytest.mark.parametrize("path", EVERY)
def test_options_before_the_command_stand_after_it_too(path: str) -> None:
    flags = [flag for item in EVERY[path].command.get_params(EVERY[path]) for flag in item.opts]
    assert len(flags) == len(set(flags))
    if not isinstance(EVERY[path].command, TyperGroup):
        assert {"-v", "--verbose", "-q", "--quiet", "--color"} <= set(flags)  # `plot` has a --color of its own


def test_options_after_the_command_replace_those_before_it() -> None:
    root = typer.main.get_command(cli.app)
    before = options.GlobalOptions(app=cli.app, quiet=True)
    parent = typer.Context(root, info_name="attnbench", obj=before)
    command = EVERY["attnbench list devices"].command
    context = command.make_context("devices", ["-v", "--color", "never"], parent=parent)
    assert context.obj == options.GlobalOptions(app=cli.app, quiet=True, verbose=True, color="never")
    assert "verbose" not in context.params


@pytest.mark.parametrize("arguments", [[], ["suite"], ["list"], ["baseline"]], ids=" ".join)
def test_group_without_a_command_shows_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(arguments) == 0
    bare = capsys.readouterr().out
    assert cli.invoke(["help", *arguments]) == 0
    assert bare == capsys.readouterr().out
    assert bare.startswith(f"Usage: {' '.join(['attnbench', *arguments])} ")


def test_environment_page_names_every_variable_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["help", "environment"]) == 0
    text = capsys.readouterr().out
    assert text == f"{ENVIRONMENT}\n"
    assert max(map(len, text.splitlines())) <= 80
    sources = "".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    read = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', sources)) | set(re.findall(r'"(ATTNBENCH_\w+)"', sources))
    # Of other programs: stored with a run, or passed on to workers.
    outside = {"LD_PRELOAD", "OMP_WAIT_POLICY", "ATEN_CPU_CAPABILITY", "PYTHONPATH"}
    assert {"NO_COLOR", "CI", "ATTNBENCH_RESULTS"} <= read
    assert not {name for name in read - outside if name not in text}


def variables() -> dict[str, tuple[str, TyperOption]]:
    """The variable of every option, with its command."""
    return {
        f"{context.auto_envvar_prefix}_{str(item.name).upper()}": (path, item)
        for path, context in EVERY.items()
        for item in context.command.get_params(context)
        if isinstance(item, TyperOption) and not item.is_eager
    }


def test_variable_of_every_option_follows_the_rule_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (path, item) in variables().items():
        monkeypatch.setenv(name, "1")
        assert item.resolve_envvar_value(EVERY[path]) == "1"
        assert name == "_".join(["ATTNBENCH", *path.split()[1:], str(item.name)]).upper().replace("-", "_")
    for example in re.findall(r"ATTNBENCH_(?!DISPATCH|RESULTS|TILES|KERNEL_PATH)[A-Z_]*[A-Z]\b", ENVIRONMENT):
        assert example in variables()


def test_variable_named_like_version_prints_no_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "ATTNBENCH_VERSION", "1")
    assert cli.invoke(["list", "devices"]) == 0
    assert "cpu" in capsys.readouterr().out


def test_configuration_has_the_names_of_the_options(tmp_path: Path) -> None:
    (tmp_path / "attnbench.toml").write_text('[run]\njson = true\nset = ["softcap=30"]\n[new-backend]\nforce = true\n')
    values, _ = config.defaults(tmp_path, config._known(cli.app))
    assert values == {"run": {"json": True, "set": ["softcap=30"]}, "new-backend": {"force": True}}


def test_new_backend_writes_a_file_that_can_be_planned_and_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(["new-backend", "fast"]) == 0
    assert "next: attnbench verify --backend fast.py:attend" in capsys.readouterr().out
    assert cli.invoke(["run", "--seq", "64", "-b", "naive,fast.py:attend", "--dry-run"]) == 0
    Path("fast.py").write_text("mine")
    assert cli.invoke(["new-backend", "fast.py"]) == 2
    assert "new-backend fast.py: fast.py exists" in capsys.readouterr().err
    assert Path("fast.py").read_text() == "mine"
    assert cli.invoke(["new-backend", "fast", "--force"]) == 0
    assert "def attend(q, k, v, problem)" in Path("fast.py").read_text()


def test_new_backend_takes_a_python_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["new-backend", "../fast-one"]) == 2
    assert "new-backend ../fast-one: must be a Python name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["help", "nosuch"], "help: no topic 'nosuch'; there are environment, run, verify, "),
        (["help", "rum"], "help: no topic 'rum'; did you mean 'run'?"),
        (["help", "environmen"], "help: no topic 'environmen'; did you mean 'environment'?"),
        (["rnu"], "no command 'rnu'; did you mean 'run'?"),
        (["nosuch"], "no command 'nosuch'; there are run, verify, "),
        (["list", "nosuch"], "no list 'nosuch'; there are backends, suites, "),
        (["list", "suits"], "no list 'suits'; did you mean 'suites'?"),
        (["suite", "zzz"], "suite: no command 'zzz'; there are "),
        (["help", "suite", "zzz"], "suite: no command 'zzz'; there are "),
    ],
)
def test_an_unknown_command_or_topic_is_refused_with_the_nearest_or_all(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"attnbench: {hint}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("path", EVERY)
def test_what_a_command_requires_is_described_where_it_is_missing(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    required = [item for item in EVERY[path].command.get_params(EVERY[path]) if item.required]
    if isinstance(EVERY[path].command, TyperGroup) or not required:
        return
    assert cli.invoke(path.split()[1:]) == 2
    printed = capsys.readouterr().err
    assert any(f"{str(item.help).removesuffix('.')}." in printed for item in required), printed


def test_a_replay_without_a_model_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["replay", "chat"]) == 2
    printed = capsys.readouterr().err
    assert printed == (
        "attnbench: Missing option '--model'. config.json of the served model: --model Llama-3.1-8B/config.json.\n"
    )
