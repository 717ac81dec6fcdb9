"""subcompress runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from subcompress_cli.help import OUTPUT, Command, option
from subcompress_cli.options import FOLDER, json_option, print_json
from subcompress_cli.streams import answer

if TYPE_CHECKING:
    from subcompress.api.runs import RunState

EVERY = 2.0
"""Seconds between two looks of --watch."""

HEADINGS = ("run", "state", "goal", "trainings", "best", "bytes", "minutes", "workers")


@click.command(cls=Command)
@click.argument("folders", metavar="FOLDER...", type=FOLDER, nargs=-1, required=True)
@option("--watch", is_flag=True, help="Refresh the table every two seconds until no run is running.", group=OUTPUT)
@json_option
def runs(folders: tuple[Path, ...], watch: bool, as_json: bool) -> None:
    """List run folders with their state, best file, cost and workers.

    Each FOLDER is a run folder or contains run folders. Nothing in them is changed. For each worker, the table shows
    its current training and how far that has come.
    """
    from subcompress.api.runs import runs

    found = runs(folders)
    if watch and any(state.state == "running" for state in found):
        found = _watched(folders)
    if as_json:
        print_json([state.to_json() for state in found])
        return
    for line in _table(found):
        answer(line)


def _watched(folders: tuple[Path, ...]) -> list[RunState]:
    """Show the table, on stderr, until nobody works in the folders; return their last states."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from subcompress.api.runs import runs

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        while True:
            found = runs(folders)
            if all(state.state != "running" for state in found):
                return found
            live.update(Text("\n".join(_table(found))), refresh=True)
            time.sleep(EVERY)


def _table(found: Sequence[RunState]) -> list[str]:
    """The lines of the table."""
    rows = [HEADINGS]
    for s in found:
        best = "" if s.best is None else f"{s.best:.4f}"
        state = f"{s.state}: {s.problem}" if s.problem else s.state
        size, minutes = str(s.bytes or ""), f"{s.minutes:.1f}"
        rows.append((s.folder, state, s.goal, str(s.trainings), best, size, minutes, "; ".join(s.workers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


__all__ = ["runs"]
