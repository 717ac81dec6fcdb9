"""subcompress fit."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import subcompress
from subcompress.support.names import DEFAULT_ROLES as DEFAULT
from subcompress.support.names import ROLES
from subcompress.training.probe import kept_words
from subcompress_cli.errors import COMMAND
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
from subcompress_cli.options import FOLDER, base_option, json_option, print_json, restart_option, verbose_option
from subcompress_cli.progress import listening
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@model_option(required=True)
@data_options(required=True)
@click.option("--d", type=int, help="Coordinates: the size of the subspace.")
@click.option("--min-accuracy", type=float, metavar="A", help="The smallest file of at least this accuracy.")
@click.option("--max-drop", type=float, metavar="P", help="The smallest at most P below the direct training.")
@click.option("--target", type=float, metavar="V", help="The smallest whose metric is at least (most) V.")
@click.option("--bytes", "within", type=int, metavar="N", help="The best within N bytes, the whole file counted.")
@click.option("--baseline", metavar="B", help="What --max-drop counts from: a number, or safetensors weights.")
@click.option("--baseline-lr", type=float, metavar="LR", help="Its step.  [default: the best of a few on validation]")
@click.option("--seeds", type=int, default=3, show_default=True, help="Search: trainings whose mean meets the target.")
@click.option(
    "--max-fits",
    type=float,
    help="Maximum number of trainings of a search.  [default: 8; 2 more where --max-drop searches its baseline's step]",
)
@click.option("--max-minutes", type=float, metavar="M", help="Start no training of a search that would end later.")
@click.option("--bits", type=int, help="Bits a coordinate, before entropy coding.  [default: 4; 8 up to --d 64]")
@click.option(
    "--structured",
    default="random",
    show_default=True,
    help="Random starts that are orthogonal or sparse: start anew from the seed (random) or keep their values in the "
    "file (store). guess: judge every start by its values, as if the network could be built only once.",
)
@click.option("--drop", multiple=True, metavar="PATTERN", help="Buffers and frozen tensors that the file leaves out.")
@click.option("--rate", type=float, default=0.0, show_default=True, help="Loss that a bit of the file costs.")
@base_option
@click.option("--base-name", metavar="NAME", help="What the file calls it: hub:ORG/NAME[@COMMIT].  [default: its own]")
@click.option("--act-on", metavar="WHAT", help=f"Of the base: {', '.join(ROLES)}, patterns.  [default: {DEFAULT}]")
@click.option("--new", multiple=True, metavar="PATTERN", help="Tensors that start anew, beside the head.")
@augment_option
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
    augment: str | None,
    loss: str,
    metric: str | None,
    output: Path,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a network in d coordinates, or for the smallest file that meets a target, and write a run folder.

    Interrupted at any moment, the same command goes on where it was.
    """
    task, data = loss_and_metric(loss, metric), data_with(data_name, data_dir, augment, model_name)
    build = factory(model_name, data)
    origin = {
        "command": click.get_current_context().meta.get(COMMAND),
        "model": model_name,
        "data": data_name,
        "data_dir": None if data_dir is None else str(data_dir),
        "augment": augment,
        "loss": loss,
        "metric": metric,
        "minimize": options["minimise"],
        "base": os.path.abspath(options["base"]) if os.path.exists(options["base"] or "") else options["base"],
    }
    with listening(f"{short(model_name)} on {short(data_name)}", verbose) as listener:
        try:
            found = subcompress.fit(build, data, output, **task, **options, origin=origin, listener=listener)
        except subcompress.TargetMissedError as e:
            found = e.fit
    if as_json:
        print_json(found.to_json())
    else:
        _say(found, output)
    if found.failure:
        raise subcompress.SubcompressError(f"{found.failure}; {kept_words(found)}")


def _say(found: subcompress.Fit, output: Path) -> None:
    """What was found and what comes next, for a person."""
    for line in _search_lines(found):
        answer(line)
    size = f" {found.bytes} bytes," if found.bytes else ""
    answer(
        f"{found.D} weights in {found.d} coordinates of {found.bits} bits:{size} {found.metric} {found.validation:.4f} "
        f"on validation, {found.test:.4f} on test, {found.seconds:.1f} s"
    )
    if found.failure:
        return
    if found.bytes:
        answer(f"next: subcompress pack {output} -o net.safetensors")
    else:
        answer(f"{found.operator} is a reference: it is not exact on every device, and the run cannot be packed")


def _search_lines(found: subcompress.Fit) -> Iterator[str]:
    """What was searched and what it cost, and the frontier."""
    if not found.bytes:
        if found.target is not None:
            how = "meets" if found.reached else "misses"
            yield f"d = {found.d} {how} {found.target:.4g}, in {found.full_fits:.1f} full trainings"
        return
    if found.target is None and found.within is None:
        return
    values = [p.value for p in found.probes if p.at(found.d)]
    spread = f" +- {found.validation_spread:.4f}" if found.validation_spread is not None else ""
    if found.target is not None:
        how, mean = "meet" if found.reached else "miss", sum(values) / len(values)
        yield (
            f"{found.bytes} bytes {how} {found.target:.4g}: mean {found.metric} {mean:.4f}{spread} over {len(values)} "
            f"seeds at d = {found.d}"
        )
    else:
        yield f"the best within {found.within} bytes: {found.metric} {found.validation:.4f}{spread} between seeds"
    yield f"{len(found.probes)} probes, {found.full_fits:.1f} full trainings; the frontier, bytes and {found.metric}:"
    yield "  " + ", ".join(f"{p.bytes} {p.value:.4f}" for p in found.frontier)
