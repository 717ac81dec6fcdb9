"""subcompress compare."""

from pathlib import Path
from typing import Any

import click

import subcompress
from subcompress import SubcompressError
from subcompress.support.names import PEERS
from subcompress_cli.networks import data_options, data_with, loss_and_metric, model_option, network, short
from subcompress_cli.options import FOLDER, base_option, json_option, print_json, restart_option
from subcompress_cli.progress import listening
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("run_folder", metavar="RUN", type=FOLDER)
@model_option()
@data_options()
@base_option
@click.option("--peers", metavar="LIST", help=f"Of {', '.join(PEERS)}.  [default: all]")
@click.option("--loss", metavar="NAME", help="As to fit.  [default: the run's]")
@click.option("--metric", metavar="NAME", help="As to fit.  [default: the run's]")
@click.option("--threads", type=int, help="CPU threads of torch.  [default: torch's]")
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
    """The file of RUN beside other ways to ship its network, each trained for as many epochs, at its own size.

    Model and data are those of the run unless told; interrupted, the same command goes on where it was.
    """
    from subcompress.training import run  # which imports torch

    origin = run.summary(run_folder).get("origin", {})
    model_name, data_name = model_name or origin.get("model"), data_name or origin.get("data")
    if model_name is None or data_name is None:
        raise SubcompressError("this run does not say of which model and data it is: give --model and --data")
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
            minimise=origin.get("minimize", origin.get("minimise") or None),
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
