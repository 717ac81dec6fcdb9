"""subcompress pack."""

from __future__ import annotations

from pathlib import Path

import click

from subcompress_cli.help import Command
from subcompress_cli.options import FOLDER, json_option, output_option, print_json
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("run", type=FOLDER)
@output_option("The file to write.", "FILE")
@json_option
def pack(run: Path, output: Path, as_json: bool) -> None:
    """Write the result of RUN, a folder that `fit` has finished, as one small file."""
    import subcompress

    size = subcompress.pack(run, output)
    if as_json:
        print_json({"file": output, "file_bytes": size})
    else:
        answer(f"{output}: {size} bytes")
