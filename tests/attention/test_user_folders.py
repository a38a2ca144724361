"""The user's folders, with and without a home directory."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from attnbench import cli
from attnbench.analysis import noise_floor
from attnbench.attention import user_folders
from attnbench.cli import config
from attnbench.engine import worker_process
from attnbench.errors import StoreError
from attnbench.kernels import tables
from attnbench.records import ceilings, speeds


@pytest.fixture(params=["", os.devnull, "~/.cache"])
def homeless(request, monkeypatch) -> None:
    """No home directory: HOME is not set, or as the command sets it; or the answer of older platformdirs."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    if request.param == os.devnull:
        monkeypatch.setenv("HOME", request.param)
    elif request.param:
        import platformdirs

        for name in ("user_cache_path", "user_config_path"):
            monkeypatch.setattr(platformdirs, name, lambda app: Path(request.param) / app)

    def no_line(_: object) -> None:
        raise KeyError("no line")

    monkeypatch.setattr(pwd, "getpwuid", no_line)


def test_without_a_home_directory_nothing_is_read_and_a_write_says_what_to_set(homeless, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(tables.VARIABLE, raising=False)
    assert ceilings.load("machine", "cpu", "2.9") is None
    speeds.save("machine", speeds.Speeds(ratio=2.0))
    assert speeds.load("machine") == speeds.Speeds()
    assert noise_floor.load("machine", "cpu") == []
    assert tables.users() == {}
    assert config.defaults(tmp_path, {}) == ({}, {})
    with pytest.raises(StoreError, match="no home directory is known: set HOME or XDG_CACHE_HOME"):
        noise_floor.add("machine", [])
    assert list(tmp_path.iterdir()) == []


def test_folders_are_those_of_the_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert user_folders.cache() == tmp_path / "cache" / "attnbench"
    assert user_folders.config() == tmp_path / "config" / "attnbench"


def test_workers_do_not_get_the_home_that_stands_for_none(monkeypatch):
    monkeypatch.setenv("HOME", os.devnull)
    assert "HOME" not in worker_process._environment(None, 1, "temporary")
    monkeypatch.setenv("HOME", "a folder")
    assert worker_process._environment(None, 1, "temporary")["HOME"] == "a folder"


@pytest.mark.parametrize("home", [None, "/a folder"])
def test_the_command_sets_home_where_none_is_known(home, monkeypatch):
    """Some packages fail without it."""
    monkeypatch.delenv("HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setattr(sys, "argv", ["attnbench", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert os.environ["HOME"] == (home or user_folders.NO_HOME)
