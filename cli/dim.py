"""subcompress dim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from subcompress.errors import SubcompressError
from subcompress_cli import choices
from subcompress_cli.help import MEASUREMENT, Command, option
from subcompress_cli.options import (
    augment_option,
    data_options,
    jobs_options,
    json_option,
    model_option,
    output_option,
    print_json,
    restart_option,
    training_options,
    training_task_options,
    verbose_option,
)
from subcompress_cli.recipes import recipe_option, replaced
from subcompress_cli.streams import answer


@click.command(cls=Command)
@recipe_option
@model_option(required=True)
@data_options(required=True)
@augment_option
@training_task_options
@option(
    "--d",
    "ds",
    metavar="LIST",
    help="The dimensions to train in, such as 100,200,400. By default they are found on the way to the thresholds.",
    group=MEASUREMENT,
)
@option(
    "--predict",
    is_flag=True,
    help="Predict the dimension instead, from at most nine short trainings. Each takes a tenth of the epochs, but at "
    "least 200 steps.",
    group=MEASUREMENT,
)
@option(
    "--repeats",
    type=int,
    default=3,
    show_default=True,
    help="Number of trainings in each dimension, with different seeds.",
    group=MEASUREMENT,
)
@option(
    "--threshold",
    "thresholds",
    type=float,
    multiple=True,
    help="Also estimate the dimension that reaches this value of the metric. Can be repeated. With --predict, the "
    "value to reach, given at most once.",
    group=MEASUREMENT,
)
@option(
    "--baseline-lr", type=float, help="Adam's largest step in direct training. By default 0.002.", group=MEASUREMENT
)
@option(
    "--shuffle",
    type=click.Choice(choices.SHUFFLES),
    help="A control experiment of Li et al. 2018: shuffle the pixels, in the same way in all images, or the labels.",
    group=MEASUREMENT,
)
@training_options
@jobs_options
@output_option("The folder for dim.md, dim.json and dim.png.", "DIR")
@restart_option
@verbose_option
@json_option
def dim(
    model_name: str,
    data_name: str,
    data_dir: Path | None,
    ds: str | None,
    predict: bool,
    thresholds: tuple[float, ...],
    augment: str | None,
    loss: str,
    metric: str | None,
    output: Path,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the intrinsic dimension of a network on its data.

    As in Li et al. 2018, the network is trained in several dimensions. The command prints the accuracy in each and the
    dimension that reaches 0.9 of the baseline, with an interval. If the command is interrupted, run it again: it
    continues.
    """
    import subcompress
    from subcompress_cli.networks import data_with, factory, loss_and_metric, short
    from subcompress_cli.progress import listening

    options = replaced(click.get_current_context(), options)
    dimensions = None if ds is None or predict else _dimensions(ds)
    if predict:
        _check_predicts(ds, thresholds, options)
    task, data = loss_and_metric(loss, metric), data_with(data_name, data_dir, augment, model_name)
    build = factory(model_name, data)
    with listening(f"{short(model_name)} on {short(data_name)}", verbose) as listener:
        if predict:
            threshold = thresholds[0] if thresholds else None
            told = subcompress.predict_dimension(
                build, data, output, threshold=threshold, **task, **options, listener=listener
            )
            print_json(told.to_json()) if as_json else answer(repr(told))
            return
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


def _dimensions(ds: str) -> list[int]:
    """Read the list of --d. Raises SubcompressError."""
    try:
        return [int(d) for d in ds.split(",")]
    except ValueError as e:
        raise SubcompressError(f"--d must be a list of whole numbers, such as 100,200,400; got {ds}") from e


def _check_predicts(ds: str | None, thresholds: tuple[float, ...], options: dict[str, Any]) -> None:
    """Drop the options that only a measurement takes. Raises SubcompressError for those that were given."""
    dropped = {"shuffle": None, "repeats": 3, "baseline_lr": None}
    given = [name for name, usual in dropped.items() if options.pop(name, usual) != usual]
    if ds is not None or given or len(thresholds) > 1:
        raise SubcompressError(
            "--predict does not work with --d, --shuffle, --repeats or --baseline-lr, or with several --threshold: "
            "leave them out"
        )
