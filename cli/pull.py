"""subcompress pull."""

from __future__ import annotations

from pathlib import Path

import click

from subcompress_cli.help import HUB, Command, option
from subcompress_cli.options import json_option, output_option, print_json, say
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("repository", metavar="ORG/NAME[@REV]")
@option(
    "--digest",
    metavar="HEX",
    help="Refuse the file if its weights digest is another one. `info` shows the digest and `verify` checks it.",
    group=HUB,
)
@output_option("The file to write.", "FILE")
@json_option
def pull(repository: str, output: Path, digest: str | None, as_json: bool) -> None:
    """Download the file of a repository on the Hugging Face Hub, check it, and write it.

    REV is a branch, a tag or a commit.
    """
    import subcompress

    found = subcompress.pull(repository, output, digest=digest, say=say)
    size = output.stat().st_size
    if as_json:
        print_json({"file": output, "file_bytes": size, "id": found.id, "commit": found.commit, "cached": found.cached})
    else:
        answer(f"{output}: {size} bytes, of {found.id} at commit {found.commit}")
