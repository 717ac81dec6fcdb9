"""subcompress report."""

from pathlib import Path

import click

import subcompress
from subcompress_cli.options import FILE, FOLDER
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="The page to write.  [default: RUN/report.html]")
def report(run_folder: Path, output: Path | None) -> None:
    """One self-contained page of RUN: frontier, probes, curves, bytes, comparison, commands and versions."""
    answer(f"written: {subcompress.report(run_folder, output)}")
