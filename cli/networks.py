"""Networks, data, losses and metrics by their names on the command line. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from subcompress import Data
from subcompress.data import AUGMENTS, augment_of
from subcompress.training.tasks import LOSSES, METRICS
from subcompress_cli.loading import data_of, factory_of, function_of, model_of


def data_with(name: str, folder: Path | None, augment: str | None, model_name: str) -> Data:
    """The data set of that name, with the augmentation of that name. model_name: see `data_of`.

    Raises SubcompressError.
    """
    data = data_of(name, folder, model_name)
    return data if augment is None else replace(data, augment=augment_of(function_of(augment, "--augment", AUGMENTS)))


def network(name: str, seed: int, data: Data) -> nn.Module:
    """The network of that name, or the user's, to learn these data. Raises SubcompressError."""
    return model_of(name, seed, data.facts)


def factory(name: str, data: Data) -> Callable[[], nn.Module]:
    """The function that builds the network of that name, or the user's, to learn these data."""
    return factory_of(name, data.facts)


def data_set(name: str | None, folder: Path | None, model_name: str | None) -> Data | None:
    """The data set of that name, None if none is named. model_name: see `data_of`."""
    return None if name is None else data_of(name, folder, model_name)


def loss_and_metric(loss: str | None, metric: str | None) -> dict[str, Any]:
    """The arguments of `fit` for a loss and a metric."""
    return {"loss": function_of(loss, "--loss", LOSSES), "metric": function_of(metric, "--metric", METRICS)}


def short(name: str) -> str:
    """Return a name for display: without the folders of a file."""
    return name.partition(",")[0].rpartition("/")[2]
