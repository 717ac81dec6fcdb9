"""subcompress report."""

from __future__ import annotations

from pathlib import Path

import click

from subcompress_cli.help import Command
from subcompress_cli.options import FOLDER, output_option
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@output_option("The page to write.  [default: RUN/report.html]", "FILE", required=False)
def report(run_folder: Path, output: Path | None) -> None:
    """Write one HTML page about RUN.

    It shows the frontier of bytes against accuracy, all trainings, the bytes of each part, the comparison if there is
    one, and the commands and versions. It needs no other file.
    """
    import subcompress

    answer(f"written: {subcompress.report(run_folder, output)}")
