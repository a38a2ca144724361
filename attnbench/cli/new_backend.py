"""`attnbench new-backend`: write the template of a backend."""

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.options import option


def new_backend(
    name: Annotated[str, typer.Argument(help="Name of the backend; the file is NAME.py.", metavar="NAME")],
    force: Annotated[bool, option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write the template of a kernel of your own: NAME.py."""
    from attnbench.errors import UsageError, writing

    stem = name.removesuffix(".py")
    if not stem.isidentifier():
        raise UsageError(f"new-backend {name}: must be a Python name, such as my_kernel")
    file = Path(f"{stem}.py")
    text = Path(__file__).with_name("backend_template.py.txt").read_text(encoding="utf-8")
    with writing(file):
        try:
            with file.open("w" if force else "x", encoding="utf-8") as opened:
                opened.write(text.replace("my_kernel", stem))
        except FileExistsError:
            raise UsageError(
                f"new-backend {name}: {file} exists; use another name, or --force to overwrite it"
            ) from None
    print(file)
    print(f"next: attnbench verify --backend {file}:attend")
