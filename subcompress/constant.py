"""What the best answer that does not depend on the input is worth: a network that is no better has learned nothing."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from subcompress.data.held import Held, leaves
from subcompress.data.splits import batches, size
from subcompress.targets import counts

if TYPE_CHECKING:
    from subcompress.tasks import Task

FEW = 1_000
"""Examples that are read for it where they are not in memory."""


class Constant(nn.Module):
    """Gives `values`, once for each example of any input."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        n = len(next(leaves((args, kwargs))))
        return self.get_buffer("values").expand(n, *self.get_buffer("values").shape)


def best_constant(task: Task, train: Dataset[Any], validation: Dataset[Any], outputs: Any) -> Tensor | None:
    """The outputs for one example that suit the labels of the training split best; None where that is not known."""
    y = _labels(train, validation)
    if y is None or not len(y) or not (outputs is None or isinstance(outputs, Tensor)):
        return None
    if task.loss_name in ("bce", "mse", "l1") or not counts(y):
        return _of_values(task, y.float() if counts(y) else y, outputs)
    return _of_classes(task, y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y, outputs)


def constantly(task: Task, values: Tensor, validation: Dataset[Any]) -> float | None:
    """The metric of that answer; None where the loss or the metric does not take it."""
    from subcompress.tasks import evaluate

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # correlations warn of constants
            found = evaluate(Constant(values), validation, task)
    except Exception:  # the user's loss and metric: whatever they raise, the value is not known
        return None
    return found if math.isfinite(found) else None


def _labels(train: Dataset[Any], validation: Dataset[Any]) -> Tensor | None:
    """y of the training split, where it is one tensor that is in memory or soon there."""
    if isinstance(train, Held):
        found = train.y
    elif size(train) + (0 if isinstance(validation, Held) else size(validation)) > FEW:
        return None
    else:
        try:
            found = torch.cat([y for _, y in batches(train, FEW, seed=0)])
        except Exception:
            return None
    if not isinstance(found, Tensor) or found.is_complex() or found.ndim == 0:
        return None
    return found if isinstance(validation, Held) or size(validation) <= FEW else None


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
