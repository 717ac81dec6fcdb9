"""What is learned and how it is judged: a loss f(module, batch) and a metric f(outputs, y). A new one is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from subcompress.data.held import Held, Tree
from subcompress.data.splits import batches, call, size
from subcompress.errors import SubcompressError, memory_ran_out

Loss = Callable[[nn.Module, tuple[Tree, Tree]], Tensor]
Metric = Callable[[Any, Any], "float | Tensor"]


def _of_outputs(f: Callable[[Any, Any], Tensor]) -> Loss:
    def loss(module: nn.Module, batch: tuple[Tree, Tree]) -> Tensor:
        x, y = batch
        return f(call(module, x), y)

    return loss


def _alike(f: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """f of outputs and y of one shape: torch would stretch (N, 1) and (N,) to (N, N)."""

    def checked(outputs: Tensor, y: Tensor) -> Tensor:
        if outputs.shape != y.shape:
            raise SubcompressError(
                f"outputs and y have one shape; given {tuple(outputs.shape)} and {tuple(y.shape)}: reshape the one "
                f"or the other"
            )
        return f(outputs, y)

    return checked


_mse, _l1 = _alike(functional.mse_loss), _alike(functional.l1_loss)


def _accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.argmax(1) == y).double().mean()


def _binary_accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    return ((outputs > 0) == (y > 0.5)).double().mean()


LOSSES: dict[str, tuple[Loss, str]] = {
    "cross-entropy": (_of_outputs(functional.cross_entropy), "accuracy"),
    "mse": (_of_outputs(_mse), "mse"),
    "l1": (_of_outputs(_l1), "l1"),
    "bce": (_of_outputs(_alike(functional.binary_cross_entropy_with_logits)), "binary-accuracy"),
}
"""By name: f(module, (x, y)) -> scalar, and the metric that goes with it."""

METRICS: dict[str, tuple[Metric | None, bool]] = {
    "accuracy": (_accuracy, False),
    "binary-accuracy": (_binary_accuracy, False),
    "mse": (_mse, True),
    "l1": (_l1, True),
    "loss": (None, True),
}
"""By name: f(outputs, y) -> float (None: the loss itself), and whether less is better."""


@dataclass(frozen=True)
class Task:
    """loss(module, (x, y)) -> scalar; metric(outputs, y) -> float, or None for the loss; minimise: less is better."""

    loss: Loss
    metric: Metric | None
    loss_name: str
    metric_name: str
    minimise: bool = False

    @classmethod
    def of(cls, loss: str | Loss = "cross-entropy", metric: str | Metric | None = None, minimise: bool = False) -> Task:
        """A task from names or functions. Without a metric, the one that goes with the loss; a loss of the user's
        own is its own metric. Raises SubcompressError for unknown names."""
        if isinstance(loss, str) and loss not in LOSSES:
            raise SubcompressError(f"--loss is one of {', '.join(LOSSES)} or file.py:f; {loss!r} is none of them")
        if isinstance(metric, str) and metric not in METRICS:
            raise SubcompressError(f"--metric is one of {', '.join(METRICS)} or file.py:f; {metric!r} is none of them")
        f, usual = LOSSES[loss] if isinstance(loss, str) else (loss, "loss")
        name = loss if isinstance(loss, str) else _name(loss)
        if metric is None or isinstance(metric, str):
            metric_name = metric or usual
            g, less = METRICS[metric_name]
            return cls(f, g, name, metric_name, minimise or less)
        return cls(f, metric, name, _name(metric), minimise)

    @property
    def is_accuracy(self) -> bool:
        """Whether the metric is the share of examples whose largest output is the label's."""
        return self.metric is _accuracy

    def better(self, a: float, b: float) -> bool:
        """Whether a is better than b."""
        return a < b if self.minimise else a > b

    def meets(self, value: float, target: float) -> bool:
        """Whether a value is at least as good as the target."""
        return value <= target if self.minimise else value >= target

    def loss_of(self, module: nn.Module, batch: tuple[Tree, Tree]) -> Tensor:
        """The loss of a batch. Raises SubcompressError where the model or the loss raises, or it is no scalar."""
        try:
            loss = self.loss(module, batch)
        except SubcompressError:
            raise
        except Exception as e:
            if memory_ran_out(e):
                raise
            mode = "training" if module.training else "evaluation"
            words = " ".join(str(e).split())[:300]
            raise SubcompressError(
                f"the model or the loss ({self.loss_name}) raises {type(e).__name__} in {mode} mode: {words}"
            ) from e
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"{tuple(loss.shape)} tensor" if isinstance(loss, Tensor) else type(loss).__name__
            raise SubcompressError(f"a loss is a scalar tensor; {self.loss_name} gave a {given}: take its mean or sum")
        return loss

    def measure(self, module: nn.Module, batch: tuple[Tree, Tree]) -> float:
        """The metric of one batch, for a module in evaluation mode."""
        if self.metric is None:
            with torch.enable_grad():  # losses through derivatives of the inputs need it
                return float(self.loss_of(module, batch).detach())
        with torch.no_grad():
            outputs = call(module, batch[0])
            try:
                return float(self.metric(outputs, batch[1]))
            except SubcompressError:
                raise
            except Exception as e:
                if memory_ran_out(e):
                    raise
                words = " ".join(str(e).split())[:300]
                raise SubcompressError(f"the metric ({self.metric_name}) raises {type(e).__name__}: {words}") from e

    def guess(self, split: Dataset[Any]) -> float | None:
        """What the best constant answer costs, where that is known: the entropy of the labels, in nats."""
        if self.loss_name != "cross-entropy" or not isinstance(split, Held) or not isinstance(split.y, Tensor):
            return None
        y = split.y.reshape(-1)
        if y.is_floating_point() or int(y.min()) < 0:
            return None
        return guessing_loss(y) or None  # one class: nothing to guess


def evaluate(module: nn.Module, split: Dataset[Any], task: Task, batch_size: int = 1000) -> float:
    """The metric of a module in evaluation mode, its mean over the examples of a split."""
    module.eval()
    device = next(iter(module.parameters()), next(iter(module.buffers()), torch.empty(0))).device
    sums = []
    order, batch_size = split.swept(batch_size) if isinstance(split, Held) else (None, batch_size)
    left = size(split)
    for batch in batches(split, batch_size, device, order):
        n = min(batch_size, left)
        left -= n
        sums.append(task.measure(module, batch) * n)
    total = math.fsum(sums)
    if task.is_accuracy and math.isfinite(total) and abs(total - round(total)) < 1e-6 * max(1.0, total):
        total = round(total)  # a count
    return total / size(split)


def accuracy_of(module: nn.Module, split: Dataset[Any]) -> float:
    """Share of the split that the module, in evaluation mode, puts first."""
    return evaluate(module, split, Task.of())


def guessing_loss(y: Tensor) -> float:
    """Entropy of the labels in nats: the cross-entropy of the best constant answer."""
    p = torch.bincount(y).double() / len(y)
    return float(-torch.special.xlogy(p, p).sum())


def _name(f: Any) -> str:
    return getattr(f, "__name__", type(f).__name__)
