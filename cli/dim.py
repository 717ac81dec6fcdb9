"""subcompress dim."""

from pathlib import Path
from typing import Any

import click

import subcompress
from subcompress import SubcompressError
from subcompress_cli.networks import (
    augment_option,
    data_options,
    data_with,
    factory,
    loss_and_metric,
    model_option,
    short,
    task_options,
    training_options,
)
from subcompress_cli.options import FOLDER, json_option, print_json, restart_option, verbose_option
from subcompress_cli.progress import listening
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@model_option(required=True)
@data_options(required=True)
@click.option("--d", "ds", required=True, metavar="LIST", help="Dimensions to measure at: 100,200,400.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Seeds at each of them.")
@click.option("--threshold", "thresholds", type=float, multiple=True, help="One more threshold; may be repeated.")
@click.option("--shuffle", metavar="WHAT", help="The paper's controls: pixels or labels.")
@augment_option
@task_options
@training_options
@click.option("-o", "--output", type=FOLDER, required=True, metavar="DIR", help="For dim.md, dim.json and dim.png.")
@restart_option
@verbose_option
@json_option
def dim(
    model_name: str,
    data_name: str,
    data_dir: Path | None,
    ds: str,
    thresholds: tuple[float, ...],
    augment: str | None,
    loss: str,
    metric: str | None,
    output: Path,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the intrinsic dimension (Li et al. 2018): accuracy against d, with repeats, spread and a plot.

    Interrupted at any moment, the same command goes on where it was.
    """
    try:
        dimensions = [int(d) for d in ds.split(",")]
    except ValueError as e:
        raise SubcompressError(f"--d is a list of whole numbers, such as 100,200,400; given {ds}") from e
    task, data = loss_and_metric(loss, metric), data_with(data_name, data_dir, augment, model_name)
    build = factory(model_name, data)
    with listening(f"{short(model_name)} on {short(data_name)}", verbose) as listener:
        found = subcompress.measure_dimension(
            build,
            data,
            output,
            ds=dimensions,
            thresholds=thresholds,
            names=(short(model_name), short(data_name)),
            **task,
            **options,
            listener=listener,
        )
    if as_json:
        print_json(found.to_json())
        return
    answer(found.markdown())
    answer(f"written: {output / 'dim.md'}, dim.json, dim.png")
