"""subcompress report."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from subcompress_cli.help import OUTPUT, Command, option
from subcompress_cli.options import FOLDER, output_option
from subcompress_cli.streams import answer

if TYPE_CHECKING:
    from torch import nn

    from subcompress import Data


@click.command(cls=Command)
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@output_option("The page to write.  [default: RUN/report.html]", "FILE", required=False)
@option(
    "--no-examples",
    is_flag=True,
    help="Leave out the confusion matrix and the examples. The network and the data of RUN are then not loaded.",
    group=OUTPUT,
)
def report(run_folder: Path, output: Path | None, no_examples: bool) -> None:
    """Write one HTML page about RUN.

    The page shows accuracy against bytes, all trainings, what the network gets right and wrong on the validation split,
    the bytes of each part of the file, the table of `compare` if it was run, and the commands and versions. It needs no
    other file.
    """
    import subcompress
    from subcompress.training import run

    origin = run.summary(run_folder).get("origin", {})
    given = {} if no_examples or not (origin.get("model") and origin.get("data")) else _named(origin)
    answer(f"written: {subcompress.report(run_folder, output, **given)}")


def _named(origin: dict[str, Any]) -> dict[str, Any]:
    """What builds the network and loads the data that a run was told by name."""

    @cache
    def data() -> Data:
        from subcompress_cli.networks import data_with

        folder = Path(origin["data_dir"]) if origin.get("data_dir") else None
        return data_with(origin["data"], folder, origin.get("augment"), origin["model"])

    def model() -> nn.Module:
        from subcompress_cli.networks import factory

        return factory(origin["model"], data())()

    return {"model": model, "data": data}


__all__ = ["report"]
