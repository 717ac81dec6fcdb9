"""subcompress fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from subcompress.support.world import rank
from subcompress_cli import choices
from subcompress_cli.errors import COMMAND
from subcompress_cli.help import BASE, FILE, FIT, GOAL, SEARCH, Command, option
from subcompress_cli.options import (
    augment_option,
    base_option,
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

if TYPE_CHECKING:
    import subcompress


@click.command(cls=Command)
@recipe_option
@model_option(required=True)
@data_options(required=True)
@option(
    "--packing",
    is_flag=True,
    help="For a language model: join the training texts into examples of equal length instead of padding them.",
    group=FIT,
)
@augment_option
@training_task_options
@option("--d", type=int, help="Train in exactly d coordinates.", group=GOAL)
@option(
    "--bytes",
    type=int,
    metavar="N",
    help="Find the best file of at most N bytes. With --d, that file has exactly d coordinates.",
    group=GOAL,
)
@option(
    "--min-accuracy",
    type=float,
    metavar="A",
    help="Find the smallest file whose validation accuracy is at least A, such as 0.95.",
    group=GOAL,
)
@option(
    "--max-drop",
    type=float,
    metavar="P",
    help="Find the smallest file whose accuracy is at most P below that of direct training (of all weights), such as "
    "0.01.",
    group=GOAL,
)
@option(
    "--target",
    type=float,
    metavar="V",
    help="Find the smallest file whose metric is at least V, or at most V if a smaller metric is better.",
    group=GOAL,
)
@option(
    "--baseline",
    metavar="B",
    help="The result of direct training, for --max-drop: its metric as a number, or a safetensors file of the trained "
    "weights.  [default: train the network directly]",
    group=GOAL,
)
@option(
    "--baseline-lr",
    type=float,
    metavar="LR",
    help="The learning rate of the direct training for --max-drop.  [default: the best of a few on the validation "
    "split]",
    group=GOAL,
)
@option(
    "--knob",
    type=click.Choice(choices.KNOBS),
    default=choices.KNOBS[0],
    show_default=True,
    help="What is varied to meet a target. price: the price of a bit, with a coordinate for each weight, which suits "
    "networks of a few thousand weights.",
    group=SEARCH,
)
@option(
    "--seeds",
    type=int,
    default=3,
    show_default=True,
    help="Number of trainings with different seeds, at the d that is found and near it. Their mean must meet the "
    "target.",
    group=SEARCH,
)
@option(
    "--max-fits",
    type=float,
    help="The most that a search may cost, in full trainings. A short training counts as a fraction of one.  "
    "[default: 8, plus 1 for each job beyond the first, plus 2 if --max-drop has to find the learning rate of its "
    "baseline]",
    group=SEARCH,
)
@option(
    "--max-minutes", type=float, metavar="M", help="Start no training that would end after M minutes.", group=SEARCH
)
@option(
    "--bits",
    type=int,
    help="Bits of a coordinate before entropy coding, 2 to 8.  [default: 4, or 8 if d is at most 64]",
    group=FILE,
)
@option(
    "--rate",
    type=float,
    default=0.0,
    show_default=True,
    help="What each bit of the coordinates adds to the loss in training, such as 1e-5. A higher rate gives a smaller "
    "file.",
    group=FILE,
)
@option(
    "--structured",
    type=click.Choice(choices.STRUCTURED),
    default="random",
    show_default=True,
    help="What to do with tensors that the network initializes as random orthogonal or sparse matrices. random: "
    "replace them with independent random values from the seed. store: keep their values in the file. guess: judge "
    "all initial values from one build of the network, without comparing several builds.",
    group=FILE,
)
@option(
    "--drop",
    multiple=True,
    metavar="PATTERN",
    help="Leave buffers and frozen tensors whose names match PATTERN out of the file. They are rebuilt as zeros. Can "
    "be repeated.",
    group=FILE,
)
@base_option("Fine-tune these public weights instead of training from random ones.", BASE)
@option(
    "--base-name",
    metavar="NAME",
    help="The name of the base to write into the file, by which others find it: hub:ORG/NAME[@COMMIT].  [default: the "
    "name given with --base]",
    group=BASE,
)
@option(
    "--act-on",
    metavar="WHAT",
    help=f"What to train on the base, separated by commas: {', '.join(choices.ROLES)}, or patterns of tensor names. "
    "lora[:RANK] trains two low-rank factors that are added to each linear layer (rank "
    f"{choices.RANKS['lora']} by default); sketch[:RANK] trains a small matrix between singular directions of the "
    f"base's own weight (rank {choices.RANKS['sketch']} by default). Patterns of layers may follow either.  "
    f"[default: {choices.ACT_ON}]",
    group=BASE,
)
@option(
    "--new",
    multiple=True,
    metavar="PATTERN",
    help="Start tensors whose names match PATTERN from the seed instead of from the base. A head that the base lacks "
    "does so without this option. Can be repeated.",
    group=BASE,
)
@training_options
@jobs_options
@output_option("The run folder to write.", "RUN")
@restart_option
@verbose_option
@json_option
def fit(
    model_name: str,
    data_name: str,
    data_dir: Path | None,
    packing: bool,
    augment: str | None,
    loss: str,
    metric: str | None,
    output: Path,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a network in d coordinates and write a run folder.

    Give --d, or a goal: the smallest file that meets a target, or the best file within a number of bytes. If the
    command is interrupted, run it again: it continues where it stopped and ends with the same file.
    """
    import subcompress
    from subcompress.training.probe import kept_words
    from subcompress_cli.networks import data_with, factory, loss_and_metric, short
    from subcompress_cli.progress import listening
    from subcompress_cli.texts import packed

    options = replaced(click.get_current_context(), options)
    data_name = packed(data_name) if packing else data_name
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
        "minimize": options["minimize"],
        "base": os.path.abspath(options["base"]) if os.path.exists(options["base"] or "") else options["base"],
    }
    with listening(f"{short(model_name)} on {short(data_name)}", verbose) as listener:
        try:
            found = subcompress.fit(
                build,
                data,
                output,
                **task,
                **replaced(click.get_current_context(), options),
                origin=origin,
                listener=listener,
            )
        except subcompress.TargetMissedError as e:
            found = e.fit
    if rank():  # the first worker says it
        click.get_current_context().exit(1 if found.failure else 0)
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
    if found.target is None:
        spread = "" if found.validation_spread is None else f" +- {found.validation_spread:.4f}"
        yield f"the best within {found.within} bytes: {found.metric} {found.validation:.4f}{spread} between seeds"
    elif found.reached:
        why = found.mean_words or f"{found.metric} {found.validation:.4f}"
        yield f"{found.bytes} bytes meet {found.target:.4g}: {why}"
    else:
        yield f"{found.bytes} bytes miss {found.target:.4g}: {found.metric} {found.validation:.4f}"
    cost = f"{len(found.probes)} trainings, as long as {found.full_fits:.1f} full ones"
    yield f"{cost}; the frontier, bytes and {found.metric}:"
    yield "  " + ", ".join(f"{p.bytes} {p.value:.4f}" for p in found.frontier)
