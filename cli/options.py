"""Options that commands share, and what commands print.

Nothing here imports torch or NumPy, so that help and completion answer at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from subcompress.errors import printable
from subcompress_cli import choices
from subcompress_cli.help import FILE, FIT, OUTPUT, SEARCH, TRAINING, Decorator, Known, option
from subcompress_cli.streams import answer

PATH = FOLDER = click.Path(path_type=Path)  # the library says what is wrong with a path, in one line

MODEL = "hf:DIR_OR_ID[@REVISION][,task=TASK][,labels=N][,weights=none][,dtype=auto]"
TEXTS = "FILE.csv|.tsv|.jsonl[,length=N][,packing=yes][,tokenizer=DIR_OR_ID]"
SETS = "hf:DIR_OR_ID[,config=C][,train=S][,validation=S][,test=S][,text=COLUMN]..."


def say(line: str) -> None:
    """Print a line on stderr, for a user who waits. What a file brings into it cannot steer the terminal."""
    click.echo(printable(line), err=True)


class Input(click.ParamType):  # type: ignore[type-arg]
    """A file to read: a path, or hub:ORG/NAME[@REV], which becomes the path of a checked copy in the cache."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path of the file. Raises SubcompressError for a repository that cannot be fetched."""
        from subcompress.hub import local

        return local(value, say=say)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files."""
        return [CompletionItem(incomplete, type="file")]


INPUT = Input()


def all_of(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(f: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed(options):
            f = each(f)
        return f

    return decorate


def model_option(of_file: str = "", **attributes: Any) -> Decorator:
    """--model NAME. of_file: what help says where the network is that of a file or a run, which is usually known."""
    text = (
        f"{of_file} NAME is written as for `fit`."
        if of_file
        else (
            f"The network to train: {', '.join(choices.MODELS)}; file.py:factory or package.module:factory, a function "
            f"without arguments that returns an nn.Module; or {MODEL}, a model of the library transformers. TASK is "
            f"{', '.join(choices.TASKS)} or the name of a class, AutoModelFor...; the default is {choices.TASKS[0]}."
        )
    )
    name = Known(*choices.MODELS)
    return option("--model", "model_name", type=name, metavar="NAME", help=text, group=FIT, **attributes)


def data_options(of_file: str = "", **attributes: Any) -> Decorator:
    """--data NAME and --data-dir DIR. of_file: what help says where a file is measured."""
    text = (
        f"{of_file} NAME is written as for `fit`."
        if of_file
        else (
            f"The data to train on: {', '.join(choices.DATA)}; file.py:factory, a function without arguments that "
            f"returns (train, validation, test), each a data set of (x, y) or a DataLoader; {TEXTS}, a table with the "
            "columns text, label and optionally text_pair and split (for task=causal-lm: text, or prompt and "
            f"completion, or messages); or {SETS}, the same columns, read with the library datasets."
        )
    )
    name = Known(*choices.DATA)
    return all_of(
        option("--data", "data_name", type=name, metavar="NAME", help=text, group=FIT, **attributes),
        option(
            "--data-dir", type=FOLDER, metavar="DIR", help="The folder with the files of mnist or cifar10.", group=FIT
        ),
    )


def task_options(loss: str = "cross-entropy", metric: str = "the one that goes with the loss") -> Decorator:
    """--loss and --metric of commands that train nothing of their own; the texts say what the defaults are."""
    losses, metrics = Known(*choices.LOSSES), Known(*choices.METRICS)
    text = "NAME is written as for `fit`.  [default: {}]"
    return all_of(
        option("--loss", type=losses, metavar="NAME", help=f"The loss. {text.format(loss)}", group=FIT),
        option("--metric", type=metrics, metavar="NAME", help=f"The metric. {text.format(metric)}", group=FIT),
    )


def training_task_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """--loss, --metric and --minimize or --maximize, of `fit` and `dim`."""
    options = (
        option(
            "--loss",
            type=Known(*choices.LOSSES),
            metavar="NAME",
            default="cross-entropy",
            show_default=True,
            help=f"The loss: {', '.join(choices.LOSSES)}; or file.py:f, f(module, batch) -> scalar. With data for "
            "language models, next-token takes the place of the default.",
            group=FIT,
        ),
        option(
            "--metric",
            type=Known(*choices.METRICS),
            metavar="NAME",
            help=f"The metric that is measured: {', '.join(choices.METRICS)}; torchmetrics:NAME,option=value; or "
            "file.py:f, f(outputs, y) -> float over a whole split, or an object with update, compute and reset. "
            "exact-match is the share of examples in which the network predicts every target token correctly from the "
            "correct tokens before it.  [default: the one that goes with the loss]",
            group=FIT,
        ),
        option(
            "--minimize/--maximize",
            default=None,
            help="Whether a smaller or a larger value of the metric is better.  [default: what the metric declares, "
            "otherwise larger]",
            group=FIT,
        ),
    )
    return all_of(*options)(f)


augment_option: Decorator = option(
    "--augment",
    type=Known(*choices.AUGMENTS),
    metavar="NAME",
    help=f"Change training inputs at random: {', '.join(choices.AUGMENTS)}; or file.py:f, f(x, generator) -> x.",
    group=FIT,
)


def base_option(text: str = "", group: str = FIT) -> Decorator:
    """--base BASE. text: what help says of it first."""
    text = text or "The base of FILE. Needed only if FILE is a fine-tune whose base cannot be fetched from the Hub."
    text += " BASE is a safetensors file, a torch state dict, a folder with either, or hub:ORG/NAME[@REV]."
    return option("--base", metavar="BASE", help=text, group=group)


def device_option(text: str) -> Decorator:
    """--device cpu, cuda or cuda:N."""
    return option(
        "--device",
        type=Known("auto", "cpu", "cuda"),
        metavar="[auto|cpu|cuda|cuda:N]",
        default="auto",
        show_default=True,
        help=f"{text} auto chooses CUDA if it works, otherwise the CPU.",
        group=TRAINING,
    )


threads_option: Decorator = option(
    "--threads", type=int, metavar="N", help="CPU threads that torch uses.  [default: torch's own]", group=TRAINING
)


training_options: Decorator = all_of(
    option(
        "--operator",
        type=click.Choice([choices.AUTO, *choices.OPERATORS]),
        metavar="NAME",
        default=choices.AUTO,
        show_default=True,
        help=f"The projection P from coordinates to weights: {', '.join((choices.AUTO, *choices.OPERATORS))}. auto "
        "chooses hadamard for images and scattered for other inputs. Only hadamard and scattered can be packed. The "
        "others are for comparison.",
        group=FILE,
    ),
    option("--epochs", type=int, help="Passes over the training split.  [default: 10]", group=TRAINING),
    option(
        "--steps",
        type=int,
        metavar="N",
        help="Train for N steps of one batch each, instead of --epochs.",
        group=TRAINING,
    ),
    option(
        "--batch-size",
        type=int,
        default=128,
        help="Examples in a training step.",
        group=TRAINING,
        show_default=True,
    ),
    option(
        "--shards",
        type=int,
        metavar="S",
        default=1,
        help="Cut each batch into S parts, which the workers share. S changes the file, as the batch size does; the "
        "number of workers does not. If S is above 1, --threads is 1 by default.",
        group=TRAINING,
        show_default=True,
    ),
    option(
        "--accumulate",
        type=int,
        metavar="N",
        default=1,
        help="Pass each batch, or each shard of it, through the network in N parts, one after the other, and sum the "
        "gradients. Memory then holds the activations of one part only.",
        group=TRAINING,
        show_default=True,
    ),
    option(
        "--checkpointing",
        is_flag=True,
        help="Save memory: compute the activations of a transformers model again in the backward pass instead of "
        "keeping them.",
        group=TRAINING,
    ),
    option(
        "--lr",
        type=float,
        help="Peak learning rate of the coordinates.  [default: 0.35 / RMS length of the rows of P; in n > 4,000 "
        "steps, sqrt(4,000 / n) of it]",
        group=TRAINING,
    ),
    option(
        "--optimizer",
        former=("--optimiser",),
        type=click.Choice(choices.OPTIMIZERS),
        default="adam",
        help="The optimizer of the coordinates. With few coordinates, eigen reaches the same accuracy with fewer.",
        group=TRAINING,
        show_default=True,
    ),
    option(
        "--seed",
        type=int,
        default=0,
        help="Seed of the subspace and of the training.",
        group=TRAINING,
        show_default=True,
    ),
    option(
        "--precision",
        type=click.Choice(choices.PRECISIONS),
        default="fp32",
        help="Precision of matrix products in training. Measurements and weights stay float32.",
        group=TRAINING,
        show_default=True,
    ),
    device_option("The device to train on."),
    threads_option,
    option(
        "--workers",
        type=int,
        metavar="N",
        help="Processes that read examples ahead, for data that are not in memory.  [default: 0]",
        group=TRAINING,
    ),
)
"""How to train: the options that `fit` and `dim` share."""


jobs_options: Decorator = all_of(
    option(
        "--jobs",
        type=int,
        metavar="N",
        default=1,
        show_default=True,
        help="Number of trainings to run at the same time. They share the GPUs, and the CPU threads unless --threads "
        "is given.",
        group=SEARCH,
    ),
    option(
        "--executor",
        type=click.Choice(choices.EXECUTORS),
        default="processes",
        show_default=True,
        help="How --jobs starts its other workers: as processes on this machine, as tasks on the Ray cluster of "
        "RAY_ADDRESS, or as Slurm jobs.",
        group=SEARCH,
    ),
)

json_option: Decorator = option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout.", group=OUTPUT
)
verbose_option: Decorator = option(
    "-v", "--verbose", is_flag=True, help="Also print how each tensor starts, one line per tensor.", group=OUTPUT
)
restart_option: Decorator = option(
    "--restart", is_flag=True, help="Discard the contents of the folder and begin again.", group=OUTPUT
)


def output_option(text: str, metavar: str, required: bool = True) -> Decorator:
    """-o, --output: where to write."""
    return option("-o", "--output", type=PATH, required=required, metavar=metavar, help=text, group=OUTPUT)


def print_json(value: Any) -> None:
    """Print one object on stdout."""
    answer(json.dumps(value, default=str))
