"""--recipe FILE: the options of a command from a file, where the command line does not give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from subcompress_cli.help import FIT, Decorator, option

OPTIONS = {
    ("network", "model"): "model_name",
    ("network", "data"): "data_name",
    ("base", "source"): "base",
    ("base", "name"): "base_name",
}
"""Fields of a recipe file by the parameter of the command, where the two differ."""


def use_recipe(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make what the file says the default of each option. Raises SubcompressError for a file that is no recipe."""
    if path is None:
        return
    from subcompress.training import recipe_file

    ctx.default_map = {OPTIONS.get(key, key[1]): value for key, value in recipe_file.fields_of(path).items()}


def replaced(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the command without those of the file that an option of the command line replaces: a recipe has
    one goal, and one length."""
    from subcompress.training.options import EXCLUSIVE

    dropped = set[str]()
    for names in EXCLUSIVE:
        typed = {n for n in names if n in options and ctx.get_parameter_source(n) == ParameterSource.COMMANDLINE}
        if typed:
            dropped |= set(names) - typed
    return {name: None if name in dropped else value for name, value in options.items()}


recipe_option: Decorator = option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    is_eager=True,
    expose_value=False,
    callback=use_recipe,
    help="A file with options, such as recipe.toml of a run folder. Options on the command line override it.",
    group=FIT,
)
