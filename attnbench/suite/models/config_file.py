"""Read the config.json of a model."""

import json
from pathlib import Path

from attnbench.errors import SuiteError


def read_config(path: Path) -> dict[str, object]:
    """The fields of the file. Raises SuiteError, which names it, if it has none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SuiteError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SuiteError(f"{path}: not the config of a model: a {type(config).__name__} where fields were expected")
    return config
