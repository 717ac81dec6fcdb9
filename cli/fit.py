"""subcompress fit."""

from pathlib import Path
from typing import Any

import click

import subcompress
from subcompress_cli.loading import data_of
from subcompress_cli.options import (
    FOLDER,
    data_options,
    json_option,
    loss_and_metric,
    model_option,
    network,
    print_json,
    restart_option,
    short,
    task_options,
    training_options,
    verbose_option,
)
from subcompress_cli.progress import listening


@click.command()
@model_option(required=True)
@data_options(required=True)
@click.option("--d", type=int, help="Coordinates: the size of the subspace. Without it, the smallest is searched.")
@click.option("--min-accuracy", type=float, metavar="A", help="Search the smallest d of at least this accuracy.")
@click.option("--max-drop", type=float, metavar="P", help="Search: at most P below the network trained directly.")
@click.option("--target", type=float, metavar="V", help="Search: the metric, whichever it is, is at least (most) V.")
@click.option("--baseline", metavar="B", help="What --max-drop counts from: a number, or safetensors weights.")
@click.option("--seeds", type=int, default=3, show_default=True, help="Search: trainings whose mean meets the target.")
@click.option("--max-fits", type=float, default=8.0, show_default=True, help="Search: trainings at the most.")
@click.option("--bits", type=int, help="Bits a coordinate, before entropy coding.  [default: 4; 5 in a search]")
@click.option("--structured", default="store", show_default=True, help="Orthogonal, sparse, tables: store or random.")
@task_options
@training_options
@click.option("-o", "--output", type=FOLDER, required=True, metavar="RUN", help="The run folder to write.")
@restart_option
@verbose_option
@json_option
def fit(
    model_name: str,
    data_name: str,
    data_dir: Path | None,
    loss: str,
    metric: str | None,
    output: Path,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a network in d coordinates, or in as few as meet a target, and write a run folder.

    Interrupted at any moment, the same command goes on where it was.
    """
    module, task = network(model_name, options["seed"]), loss_and_metric(loss, metric)
    data = data_of(data_name, data_dir)
    with listening(f"{short(model_name)} on {short(data_name)}", verbose) as listener:
        found = subcompress.fit(module, data, output, **task, **options, listener=listener)
    if as_json:
        print_json(found.to_json())
        return
    if found.target is not None:
        click.echo(_search_line(found))
    click.echo(
        f"{found.D} weights in {found.d} coordinates of {found.bits} bits: {found.metric} {found.validation:.4f} on "
        f"validation, {found.test:.4f} on test, {found.seconds:.1f} s"
    )
    if found.operator == "hadamard":
        click.echo(f"next: subcompress pack {output} -o net.safetensors")
    else:
        click.echo(f"{found.operator} is a reference: it is not exact on every device, and the run cannot be packed")


def _search_line(found: subcompress.Fit) -> str:
    values = [p.value for p in found.probes if p.d == found.d and not p.warm]
    mean = sum(values) / len(values)
    spread = f" +- {found.validation_spread:.4f}" if found.validation_spread is not None else ""
    range_ = f"{found.d_spread['low']:.0f} to {found.d_spread['high']:.0f}" if found.d_spread else ""
    lines = [
        f"d = {found.d} meets {found.target:.4g}: mean {found.metric} {mean:.4f}{spread} over {len(values)} seeds",
        f"by the fitted line each seed alone crosses at d = {range_}; {len(found.probes)} probes, "
        f"{found.full_fits:.1f} full trainings",
    ]
    return "\n".join(lines)
