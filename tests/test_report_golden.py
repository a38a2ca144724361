"""Every format of the results made by hand, against the files in tests/golden."""

from __future__ import annotations

import pytest

from tests.golden import regenerate


@pytest.mark.parametrize("name", sorted(regenerate.outputs()))
def test_the_output_is_the_one_that_was_read_and_kept(name):
    assert regenerate.outputs()[name] == (regenerate.HERE / name).read_text(encoding="utf-8")
