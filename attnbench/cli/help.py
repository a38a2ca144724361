"""`attnbench help`: the help of a command, and the page of environment variables."""

from typing import Annotated

import typer

ENVIRONMENT = """\
An option takes its value from the first of these sources: the command line,
its environment variable, ./attnbench.toml, [tool.attnbench] of
./pyproject.toml, the user's config.toml. `attnbench run --dry-run -v` prints
the source of each value.

Options
  ATTNBENCH_<COMMAND>_<OPTION>
      The value of an option, in capitals with `_` for `-`:
      ATTNBENCH_RUN_SEQ=512,1k is `attnbench run --seq 512,1k`.
      ATTNBENCH_SUITE_FROM_CONFIG_OUT is of `attnbench suite from-config`.
      A flag takes 1 or 0: ATTNBENCH_RUN_STRICT=1.
      A repeatable option takes words separated by spaces.
  ATTNBENCH_COLOR, ATTNBENCH_QUIET, ATTNBENCH_VERBOSE
      The options before the command.

Places
  ATTNBENCH_RESULTS
      Parent directory of runs, histories and baselines; ./results by default.
  ATTNBENCH_DISPATCH
      Dispatch table of `attnbench.dispatch.attention` calls without one.
  XDG_CONFIG_HOME
      Parent directory of attnbench/config.toml and of the table that
      `attnbench tune` writes; ~/.config by default.
  XDG_CACHE_HOME
      Parent directory of calibrations, compiled kernels, and the indexes of
      stored runs that `query`, `report`, `recommend` and `history` read
      folders by (attnbench/index); ~/.cache by default.

Devices and kernels
  CUDA_VISIBLE_DEVICES
      GPUs that attnbench uses; cuda:0 is the first of them.
  ATTNBENCH_TILES
      Table of tile sizes in place of the user's.
  ATTNBENCH_KERNEL_PATH
      Path of the in-house kernels for calls that name none: decode, hopper,
      descriptors or portable.

Output
  NO_COLOR, FORCE_COLOR
      Never or always use colour.
  TERM=dumb
      No colour, and plain help.
  COLUMNS
      Width of tables and help; by default that of the terminal.
  CI_PROJECT_DIR, CI_CONFIG_PATH
      Set by GitLab: `gate --gitlab` names files relative to the first.
  CI
      Progress as plain lines, without a live display.
  GITHUB_STEP_SUMMARY, GITHUB_OUTPUT
      Files to which `attnbench gate --github` appends its table and verdict.
  WANDB_MODE
      `online` sends exports to W&B; by default they stay in a folder."""


def help(  # noqa: A001
    context: typer.Context,
    topic: Annotated[list[str] | None, typer.Argument(help="A command, or `environment`.", metavar="TOPIC")] = None,
) -> int:
    """Show the help of a command, or of `environment`."""
    from attnbench import cli
    from attnbench.cli.application import DocumentedGroup
    from attnbench.errors import UnknownNameError

    if topic == ["environment"]:
        print(ENVIRONMENT)
        return 0
    group = context.find_root().command
    if topic and isinstance(group, DocumentedGroup) and topic[0] not in group.commands:
        raise UnknownNameError("topic", topic[0], ("environment", *group.commands), where="help")
    return cli.invoke([*(topic or ()), "--help"])
