"""The user's folders for configuration and cache, by the rules of the operating system."""

import os
from collections.abc import Callable
from pathlib import Path

from attnbench.errors import StoreError

NO_HOME = os.devnull  # stands in HOME where no home directory is known: nothing can be created in it


def config() -> Path:
    """The folder of configuration files. StoreError where no home directory is known."""
    from platformdirs import user_config_path

    return _folder(user_config_path, "XDG_CONFIG_HOME")


def cache() -> Path:
    """The folder of calibrations and other files that can be made again. StoreError as for `config`."""
    from platformdirs import user_cache_path

    return _folder(user_cache_path, "XDG_CACHE_HOME")


def set_missing_home() -> None:
    """Set HOME where it is not set and the user has no line in the list of users: some packages fail without it."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = NO_HOME


def _folder(find: Callable[[str], Path], variable: str) -> Path:
    try:
        path = find("attnbench")
    except RuntimeError:
        path = Path()
    if not path.is_absolute() or path.is_relative_to(NO_HOME):  # older platformdirs answer `~/.cache/attnbench`
        raise StoreError(f"no home directory is known: set HOME or {variable}")
    return path
