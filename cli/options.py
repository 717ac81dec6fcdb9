"""Options that many commands share, and what they print; nothing here imports torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from subcompress.errors import printable
from subcompress_cli.streams import answer

FILE = FOLDER = click.Path(path_type=Path)  # the library says what is wrong with a path, in one line


def say(line: str) -> None:
    """A line for who waits, on stderr; what a file brings into it cannot steer the terminal."""
    click.echo(printable(line), err=True)


class Input(click.ParamType):  # type: ignore[type-arg]
    """A file to read: a path, or hub:ORG/NAME[@REV], which becomes the path of a checked copy in the cache."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Raises SubcompressError for a repository that cannot be fetched."""
        from subcompress.hub import local  # which reads files, and help texts do not

        return local(value, say=say)


INPUT = Input()

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def base_option(f: Callable[..., Any]) -> Callable[..., Any]:
    """--base BASE."""
    text = "What the weights stand on: safetensors, torch state dict, folder, or hub:ORG/NAME[@REV]."
    return click.option("--base", metavar="BASE", help=text)(f)


json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
verbose_option: Decorator = click.option("-v", "--verbose", is_flag=True, help="Say how each tensor starts.")
restart_option: Decorator = click.option("--restart", is_flag=True, help="Discard what the folder holds, begin anew.")


def print_json(value: Any) -> None:
    """One object on stdout."""
    answer(json.dumps(value, default=str))
