"""subcompress pack."""

from __future__ import annotations

from pathlib import Path

import click

from subcompress.errors import SubcompressError
from subcompress_cli.help import OUTPUT, Command, option
from subcompress_cli.options import FOLDER, PATH, json_option, output_option, print_json
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("run", type=FOLDER)
@output_option("The file to write.", "FILE", required=False)
@option(
    "--bundle",
    type=PATH,
    metavar="DIR",
    help="Write a folder to pass on: the file, and a README.md with the base that it needs and the commands that "
    "rebuild the network.",
    group=OUTPUT,
)
@json_option
def pack(run: Path, output: Path | None, bundle: Path | None, as_json: bool) -> None:
    """Write the result of RUN, a folder that `fit` has finished, as one small file."""
    import subcompress

    if output is None and bundle is None:
        raise SubcompressError("pack writes a file or a folder: give -o FILE or --bundle DIR")
    size = 0
    if output is not None:
        size = subcompress.pack(run, output)
    if bundle is not None:
        size = subcompress.pack(run, bundle, bundle=True)
    if as_json:
        print_json({"file": output, "file_bytes": size} | ({} if bundle is None else {"bundle": bundle}))
        return
    for place in (output, bundle):
        if place is not None:
            answer(f"{place}: {size} bytes" + (", and how to rebuild the network" if place == bundle else ""))
