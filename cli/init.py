"""subcompress init."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import click

from subcompress.errors import SubcompressError
from subcompress.support.files import write_bytes
from subcompress_cli.help import Command
from subcompress_cli.options import FOLDER
from subcompress_cli.streams import answer

FILES = ("mine.py", "recipe.toml")


@click.command(cls=Command)
@click.argument("folder", type=FOLDER, default=".")
def init(folder: Path) -> None:
    """Write mine.py and recipe.toml to FOLDER (by default the current one) as a starting point.

    mine.py holds a network and data, which you replace with your own. recipe.toml holds options of `fit`, each with a
    comment. Both run as they are.
    """
    present = [name for name in FILES if os.path.lexists(folder / name)]
    if present:
        raise SubcompressError(f"{folder / present[0]} already exists: move it away, or give another folder")
    for name in FILES:
        write_bytes(folder / name, (resources.files("subcompress_cli") / "starter" / name).read_bytes())
    answer(f"written: {' and '.join(str(folder / name) for name in FILES)}")
    inside = "" if folder == Path() else f"cd {folder} && "
    answer(f"next: {inside}subcompress fit --recipe recipe.toml -o run")
