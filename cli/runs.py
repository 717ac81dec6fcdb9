"""subcompress runs."""

from __future__ import annotations

from pathlib import Path

import click

from subcompress_cli.help import Command
from subcompress_cli.options import FOLDER, json_option, print_json
from subcompress_cli.streams import answer

HEADINGS = ("run", "state", "goal", "trainings", "best", "bytes", "minutes", "workers")


@click.command(cls=Command)
@click.argument("folders", metavar="FOLDER...", type=FOLDER, nargs=-1, required=True)
@json_option
def runs(folders: tuple[Path, ...], as_json: bool) -> None:
    """List run folders with their state, best file, cost and workers.

    Each FOLDER is a run folder or holds some. Nothing in them is changed.
    """
    from subcompress.api.runs import runs

    found = runs(folders)
    if as_json:
        print_json([state.to_json() for state in found])
        return
    rows = [HEADINGS]
    for s in found:
        best = "" if s.best is None else f"{s.best:.4f}"
        state = f"{s.state}: {s.problem}" if s.problem else s.state
        size, minutes = str(s.bytes or ""), f"{s.minutes:.1f}"
        rows.append((s.folder, state, s.goal, str(s.trainings), best, size, minutes, "; ".join(s.workers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    for row in rows:
        answer("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


__all__ = ["runs"]
