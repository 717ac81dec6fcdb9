"""Options and look-ups of the commands that take a network or data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from subcompress.support import lazy
from subcompress.support.names import AUGMENTS, AUTO, DATA, EXACT, LOSSES, METRICS, MODELS, OPERATORS, OPTIMISERS
from subcompress_cli import texts
from subcompress_cli.options import FOLDER, Decorator

if TYPE_CHECKING:
    from torch import nn

    from subcompress import Data
    from subcompress_cli import loading
else:
    loading = lazy.module("subcompress_cli.loading")  # which imports torch, and help texts do not


def model_option(**kwargs: Any) -> Decorator:
    """--model NAME."""
    known = ", ".join(MODELS)
    text = f"{known}; or file.py:factory, package.module:factory: no argument, returns an nn.Module; or {texts.MODEL}."
    return click.option("--model", "model_name", metavar="NAME", help=f"A network: {text}", **kwargs)


def data_options(**kwargs: Any) -> Decorator:
    """--data NAME and --data-dir DIR."""
    known = ", ".join(DATA)
    text = (
        f"Data: {known}; or file.py:factory: no argument, returns (train, validation, test), datasets of (x, y) or "
        f"DataLoaders; or {texts.DATA}, with columns text, label and perhaps text_pair and split, for a network of "
        "transformers."
    )

    def all_of(f: Callable[..., Any]) -> Callable[..., Any]:
        f = click.option("--data-dir", type=FOLDER, metavar="DIR", help="Where the files of named data lie.")(f)
        return click.option("--data", "data_name", metavar="NAME", help=text, **kwargs)(f)

    return all_of


def augment_option(f: Callable[..., Any]) -> Callable[..., Any]:
    """--augment NAME."""
    text = f"Random changes of training inputs: {', '.join(AUGMENTS)}; or file.py:f, f(x, generator) -> x."
    return click.option("--augment", metavar="NAME", help=text)(f)


def data_with(name: str, folder: Path | None, augment: str | None, model_name: str) -> Data:
    """The data set, with the augmentation of that name. model_name: see `data_of`. Raises SubcompressError."""
    data = loading.data_of(name, folder, model_name)
    if augment is None:
        return data
    from subcompress.data import augment_of

    return replace(data, augment=augment_of(loading.function_of(augment, "--augment", AUGMENTS)))


def task_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """--loss, --metric and --minimize or --maximize."""
    losses, metrics = ", ".join(LOSSES), ", ".join(METRICS)
    f = click.option(
        "--minimize/--maximize",
        "minimise",
        default=None,
        help="Less of the metric is better, or more.  [default: as the metric says, else more]",
    )(f)
    f = click.option(
        "--metric",
        metavar="NAME",
        help=f"{metrics}; torchmetrics:NAME,option=value; or file.py:f, f(outputs, y) -> float of a whole split, or an "
        "object with update, compute and reset.  [default: goes with the loss]",
    )(f)
    return click.option(
        "--loss",
        metavar="NAME",
        default="cross-entropy",
        show_default=True,
        help=f"{losses}; or file.py:f, f(module, batch) -> scalar.",
    )(f)


def training_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """How to train: what `fit` and `dim` share."""
    for option in (
        click.option("--device", default="auto", show_default=True, help="auto (CUDA where it works), cpu or cuda."),
        click.option("--threads", type=int, help="CPU threads of torch.  [default: torch's]"),
        click.option("--workers", type=int, metavar="N", help="Processes that read data not in memory.  [default: 0]"),
        click.option("--precision", default="fp32", show_default=True, help="Of products in training: fp32 or bf16."),
        click.option("--batch-size", type=int, default=128, show_default=True, help="Examples a step."),
        click.option("--lr", type=float, help="Largest step of a coordinate.  [default: 0.35 / row length of P]"),
        click.option("--optimiser", default="adam", show_default=True, help=f"Of z: {', '.join(OPTIMISERS)}."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the subspace and of the training."),
        click.option("--steps", type=int, metavar="N", help="Steps of a batch each, in place of --epochs."),
        click.option("--epochs", type=int, help="Passes over the training split.  [default: 10]"),
        click.option(
            "--operator",
            default=AUTO,
            show_default=True,
            help=f"P: {', '.join((AUTO, *OPERATORS))}. Only {' and '.join(EXACT)} pack.",
        ),
    ):
        f = option(f)
    return f


def network(name: str, seed: int, data: Data) -> nn.Module:
    """The network of that name, or the user's, to learn these data. Raises SubcompressError."""
    return loading.model_of(name, seed, data.facts)


def factory(name: str, data: Data) -> Callable[[], nn.Module]:
    """What builds the network of that name, or the user's, to learn these data."""
    return loading.factory_of(name, data.facts)


def data_set(name: str | None, folder: Path | None, model_name: str | None) -> Data | None:
    """The data set of that name, None where none is named. model_name: see `data_of`."""
    return None if name is None else loading.data_of(name, folder, model_name)


def loss_and_metric(loss: str | None, metric: str | None) -> dict[str, Any]:
    """The arguments of `fit` for a loss and a metric."""
    return {
        "loss": loading.function_of(loss, "--loss", LOSSES),
        "metric": loading.function_of(metric, "--metric", METRICS),
    }


def short(name: str) -> str:
    """A name to print: without the folders of a file."""
    return name.partition(",")[0].rpartition("/")[2]
