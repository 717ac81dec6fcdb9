"""subcompress pack."""

from pathlib import Path

import click

import subcompress
from subcompress_cli.options import FILE, FOLDER, json_option, print_json
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("run", type=FOLDER)
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE", help="The file to write.")
@json_option
def pack(run: Path, output: Path, as_json: bool) -> None:
    """Write the file of a finished RUN."""
    size = subcompress.pack(run, output)
    if as_json:
        print_json({"file": output, "file_bytes": size})
    else:
        answer(f"{output}: {size} bytes")
