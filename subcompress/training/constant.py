"""What the best answer that does not depend on the input is worth: a network that is no better has learned nothing."""

from __future__ import annotations

import math
import warnings
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from subcompress.data.in_memory import InMemory, tensors_in
from subcompress.data.reading import OnDemand, on_demand
from subcompress.data.splits import batches, size
from subcompress.data.targets import counts, main_tensor, one_hot_classes

if TYPE_CHECKING:
    from subcompress.training.tasks import Task

LABELS = 1_000
"""Examples of a training split that is not in memory, whose labels the answer comes from."""

ANSWERED = 20_000
"""Examples of a validation split that is not in memory, on which the answer is measured."""

MOST_BYTES = 1 << 28
"""The most bytes of labels that are read, because dense labels are large."""

PART = 100
"""Examples that are read at a time, few enough for several processes to share the labels."""


class Constant(nn.Module):
    """Gives `values`, once for each example of any input."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        n = len(next(tensors_in((args, kwargs))))
        return self.get_buffer("values").expand(n, *self.get_buffer("values").shape)


def best_constant(task: Task, train: Dataset[Any], outputs: Any) -> Tensor | None:
    """The outputs for one example that suit the labels of the training split best; None if that is not known."""
    y, main = _labels(train), main_tensor(outputs)
    if y is None or not len(y) or (outputs is not None and main is None):
        return None
    outputs, y = main, one_hot_classes(y) if task.loss_name == "cross-entropy" else y
    if task.loss_name in ("bce", "mse", "l1") or not counts(y):
        return _of_values(task, y.float() if counts(y) else y, outputs)
    return _of_classes(task, y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y, outputs)


def value_of_constant(task: Task, values: Tensor, validation: Dataset[Any]) -> float | None:
    """The metric of that answer; None if the loss or the metric does not take it, or the data set raises."""
    from subcompress.training.tasks import evaluate

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # correlations warn of constants
            found = evaluate(Constant(values), _part(validation, ANSWERED), task)
    except Exception:  # the user's loss and metric: whatever they raise, the value is not known
        return None
    return found if math.isfinite(found) else None


def _labels(train: Dataset[Any]) -> Tensor | None:
    """y of the training split, or of a part of it that is read in one pass, where it is one tensor."""
    try:
        found = train.y if isinstance(train, InMemory) else _labels_read(_part(train, LABELS))
    except Exception:  # what the data set raises is told where it is learned from
        return None
    return found if isinstance(found, Tensor) and not found.is_complex() and found.ndim else None


def _labels_read(split: Dataset[Any]) -> Tensor:
    """y of all examples, as far as they take no more than `MOST_BYTES`."""
    parts: list[Tensor] = []
    with closing(batches(split, PART, seed=0)) as pairs:
        for _, y in pairs:
            parts.append(y)
            if sum(t.nbytes for t in parts) >= MOST_BYTES:
                break
    return torch.cat(parts)


def _part(split: Dataset[Any], most: int) -> Dataset[Any]:
    """A split in memory, or small enough, as it is; of any other, the given number of examples, evenly spaced: the
    examples of one class often lie side by side."""
    if isinstance(split, InMemory) or size(split) <= most:
        return split
    whole = on_demand(split)
    chosen = Subset(whole.examples, [i * size(split) // most for i in range(most)])
    return OnDemand(chosen, whole.collate, whole.workers, whole.prepare)


def _of_classes(task: Task, y: Tensor, outputs: Tensor | None) -> Tensor | None:
    """Logarithms of the class frequencies, (C,); a class that does not occur counts as half an example."""
    if y.ndim != 1 or (outputs is None and task.loss_name != "cross-entropy"):
        return None
    y = y.long()[y.long() >= 0]  # the rest is left out by the loss
    if not len(y) or (outputs is not None and (outputs.ndim != 2 or int(y.max()) >= outputs.shape[1])):
        return None
    found = torch.bincount(y, minlength=0 if outputs is None else outputs.shape[1])
    return (found.double().clamp_min(0.5) / len(y)).log().float()


def _of_values(task: Task, y: Tensor, outputs: Tensor | None) -> Tensor | None:
    """The mean of y, or what suits the loss better: its median, its logit, its logarithm."""
    if outputs is not None:
        if len(outputs) and outputs.ndim == 2 and outputs.shape[1] == 1 and y.ndim == 1:
            y = y.reshape(-1, 1)
        elif len(outputs) and outputs.ndim == 1 and y.ndim == 2 and y.shape[1] == 1:
            y = y.reshape(-1)
        if y.shape[1:] != outputs.shape[1:]:
            return None
    if "l1" in (task.metric_name, task.loss_name) and task.metric_name != "mse":
        return y.median(0).values
    mean, least = y.double().mean(0), 0.5 / len(y)
    if task.loss_name == "bce":
        mean = mean.clamp(least, 1 - least).logit()
    elif task.loss_name == "cross-entropy":
        mean = mean.clamp_min(least).log()
    return mean.to(y.dtype)
