"""How the driver connects to Ray, without one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from attnbench.engine.cluster import ray_cluster


def test_a_ray_of_our_own_has_a_token_of_its_own_and_a_named_one_that_of_the_user() -> None:
    ours, again = ray_cluster.environment(""), ray_cluster.environment("")
    assert ours["RAY_AUTH_MODE"] == "token"
    assert len(ours["RAY_AUTH_TOKEN"]) == 64
    assert ours["RAY_AUTH_TOKEN"] != again["RAY_AUTH_TOKEN"]
    assert not [name for name in ray_cluster.environment("127.0.0.2:6379") if "AUTH" in name]


@pytest.mark.parametrize("log", ["gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken\n" * 5, ""])
def test_an_error_names_the_token_only_where_it_was_refused(log: str) -> None:
    text = ray_cluster.not_connected("127.0.0.2:1", ConnectionError("Failed to\nconnect"), log)
    assert ("RAY_AUTH_MODE" in text, "RAY_AUTH_TOKEN" in text) == (bool(log), bool(log))
    assert text.startswith("--address 127.0.0.2:1: " + ("Ray refused the token" if log else "Failed to connect"))


def test_what_ray_writes_while_it_connects_goes_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ray_cluster._stderr_to(tmp_path / "log"):
        os.write(2, b"raw line\n")
    print("ours", file=sys.stderr)
    assert (tmp_path / "log").read_text() == "raw line\n"
    assert capfd.readouterr().err == "ours\n"
