"""subcompress pull."""

from pathlib import Path

import click

import subcompress
from subcompress_cli.options import FILE, json_option, print_json, say
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("repository", metavar="ORG/NAME[@REV]")
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE", help="The file to write.")
@click.option("--digest", metavar="HEX", help="That the file must state, see `info`; `verify` checks its weights.")
@json_option
def pull(repository: str, output: Path, digest: str | None, as_json: bool) -> None:
    """Fetch the file of a repository of the Hugging Face Hub, check it, and write it."""
    found = subcompress.pull(repository, output, digest=digest, say=say)
    size = output.stat().st_size
    if as_json:
        print_json({"file": output, "file_bytes": size, "id": found.id, "commit": found.commit, "cached": found.cached})
    else:
        answer(f"{output}: {size} bytes, of {found.id} at commit {found.commit}")
