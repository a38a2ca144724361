"""The file that a code quality report of GitLab points at."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from attnbench.report.formats import gitlab_code_quality
from tests.gate.test_verdicts import mixed


def test_gitlab_gets_a_file_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def path(backend: str, *suites: str) -> str:
        _, judged = mixed()
        verdicts = tuple(msgspec.structs.replace(verdict, backend=backend) for verdict in judged.verdicts)
        report = json.loads(gitlab_code_quality.json(msgspec.structs.replace(judged, verdicts=verdicts), suites))
        (path,) = {issue["location"]["path"] for issue in report}
        return str(path)

    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "kern.py").write_text("def attend(q, k, v): ...")
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path))
    monkeypatch.delenv("CI_CONFIG_PATH", raising=False)
    monkeypatch.chdir(tmp_path / "ops")
    assert path("kern.py:attend") == "ops/kern.py"
    assert path("sdpa:flash", "quick", "mine.toml") == "ops/mine.toml"
    assert path("sdpa:flash", "quick") == path("/elsewhere/kern.py:attend") == ".gitlab-ci.yml"
    monkeypatch.setenv("CI_CONFIG_PATH", "ci/main.yml")
    assert path("naive") == "ci/main.yml"
