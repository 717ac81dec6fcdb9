"""subcompress info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from subcompress_cli.help import MEASUREMENT, Command, option
from subcompress_cli.options import INPUT, json_option, print_json
from subcompress_cli.streams import answer, answers

if TYPE_CHECKING:
    from rich.table import Table


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@option(
    "--bound",
    type=int,
    metavar="N",
    help="Also state by how much the error on new examples can exceed the error on the N examples of the training "
    "split.",
    group=MEASUREMENT,
)
@option(
    "--delta",
    type=float,
    default=0.05,
    show_default=True,
    help="Probability that the bound does not hold.",
    group=MEASUREMENT,
)
@json_option
def info(file: Path, bound: int | None, delta: float, as_json: bool) -> None:
    """Show what FILE holds and how many bytes each part takes."""
    from rich.console import Console

    import subcompress

    found = subcompress.info(file, bound=bound, delta=delta)
    if as_json:
        print_json(found)
        return
    answer(
        f"{file}: {found['file_bytes']} bytes for {found['distinct_bytes']} of dense weights, "
        f"{found['distinct_bytes'] / found['file_bytes']:.0f} times smaller\n"
        f"seed {found['seed']}, d = {found['d']} of {found['bits']} bits, D = {found['D']}, "
        f"operator {found['operator']}, format version {found['format_version']}, weights {found['digest']}"
    )
    if (base := found["base"]) is not None:
        at = f"@{base['revision']}" if base["revision"] else ""
        answer(f"on the base {base['id']}{at}, digest {base['digest']}, which it does not hold")
    for each in found["factors"] or ():
        answer(f"{each['kind']} of rank {each['rank']} on {each['tensors']} matrices of the base")
    Console(file=answers()).print(ledger_table(found["ledger"], found["bits_per_coordinate"]))
    if bound is not None:
        from subcompress.api.bound import bound_of

        answer(str(bound_of(found["file_bytes"], bound, delta)))


def ledger_table(ledger: dict[str, int], each: float | None) -> Table:
    """Bytes by part, with their sum. each: bits of a trained coordinate."""
    from rich.table import Table

    table = Table("part", show_footer=True)
    table.columns[0].footer = "file"
    table.add_column("bytes", str(sum(ledger.values())), justify="right")
    for part, size in ledger.items():
        bits = f" ({each:.2f} bits per trained coordinate)" if part == "coordinates" and each is not None else ""
        table.add_row(part + bits, str(size))
    return table
