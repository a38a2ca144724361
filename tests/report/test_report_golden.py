"""Every format of the synthetic results against the files in tests/golden."""

from __future__ import annotations

import pytest

from tests.golden import regenerate


@pytest.mark.parametrize("name", sorted(regenerate.outputs()))
def test_the_output_equals_the_golden_file(name):
    assert regenerate.outputs()[name] == (regenerate.HERE / name).read_text(encoding="utf-8")
