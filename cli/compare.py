"""subcompress compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from subcompress.errors import SubcompressError
from subcompress_cli import choices
from subcompress_cli.help import FIT, Command, option
from subcompress_cli.options import (
    FOLDER,
    base_option,
    data_options,
    json_option,
    model_option,
    print_json,
    restart_option,
    task_options,
    threads_option,
)
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@option(
    "--peers",
    metavar="LIST",
    help=f"The methods to compare with, separated by commas: {', '.join(choices.PEERS)}.  [default: all]",
    group=FIT,
)
@model_option("The network of RUN. Needed only after a fit from Python, which does not name it.")
@data_options("The data of RUN. Needed only after a fit from Python, which does not name them.")
@task_options("that of RUN", "that of RUN")
@base_option("The base of RUN, if it is a fine-tune.  [default: the base that RUN was trained on]")
@threads_option
@restart_option
@json_option
def compare(
    run_folder: Path,
    model_name: str | None,
    data_name: str | None,
    data_dir: Path | None,
    base: str | None,
    peers: str | None,
    loss: str | None,
    metric: str | None,
    threads: int | None,
    restart: bool,
    as_json: bool,
) -> None:
    """Compare the file of RUN with other ways to ship the same network.

    Each method trains for as many epochs as RUN did. The table shows the size of each whole file and its test accuracy.
    If the command is interrupted, run it again: it continues where it stopped.
    """
    import subcompress
    from subcompress.training import run
    from subcompress_cli.networks import data_with, loss_and_metric, network, short
    from subcompress_cli.progress import listening

    origin = run.summary(run_folder).get("origin", {})
    model_name, data_name = model_name or origin.get("model"), data_name or origin.get("data")
    if model_name is None or data_name is None:
        raise SubcompressError("the run does not name its model and data: give --model and --data")
    folder = data_dir or (Path(origin["data_dir"]) if origin.get("data_dir") else None)
    data = data_with(data_name, folder, origin.get("augment"), model_name)
    module = network(model_name, run.fit_of(run_folder).seed, data)
    task: dict[str, Any] = loss_and_metric(loss or origin.get("loss", "cross-entropy"), metric or origin.get("metric"))
    title = f"{short(model_name)} on {short(data_name)}"
    with listening(title) as listener:
        found = subcompress.compare(
            run_folder,
            module,
            data,
            **task,
            minimize=origin.get("minimize", origin.get("minimise") or None),
            base=base,
            peers=None if peers is None else peers.split(","),
            title=title,
            threads=threads,
            restart=restart,
            listener=listener,
        )
    if as_json:
        print_json(found.to_json())
        return
    answer(found.markdown())
    answer(f"written: {run_folder / 'compare.md'}, compare.json, compare.png")
