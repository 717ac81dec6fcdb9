"""Options and look-ups that several commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from torch import nn

from subcompress import Data, SubcompressError, load_data
from subcompress_models import MODELS

FILE = FOLDER = click.Path(path_type=Path)  # the library says what is wrong with a path, in one line

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def model_option(**kwargs: Any) -> Decorator:
    """--model NAME."""
    return click.option("--model", "model_name", metavar="NAME", help=f"A network: {', '.join(MODELS)}.", **kwargs)


def data_options(**kwargs: Any) -> Decorator:
    """--data NAME and --data-dir DIR."""

    def both(f: Callable[..., Any]) -> Callable[..., Any]:
        f = click.option("--data-dir", type=FOLDER, metavar="DIR", help="Where the files of the data set lie.")(f)
        return click.option("--data", "data_name", metavar="NAME", help="Data: digits (embedded) or mnist.", **kwargs)(
            f
        )

    return both


json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


def network(name: str) -> nn.Module:
    """The network of that name. Raises SubcompressError."""
    if name not in MODELS:
        raise SubcompressError(f"--model takes one of {', '.join(MODELS)}; {name!r} is none of them")
    return MODELS[name]()


def data_set(name: str | None, folder: Path | None) -> Data | None:
    """The data set of that name, None where none is named."""
    return None if name is None else load_data(name, folder)


def print_json(value: Any) -> None:
    """One object on stdout."""
    click.echo(json.dumps(value, default=str))
