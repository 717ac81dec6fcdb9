"""What a family of networks is: a network as its authors write it, data, and the goal of a fit in a subspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

Splits = tuple[Dataset[Any], Dataset[Any], Dataset[Any]]
"""Training, validation and test, map-style data sets of (x, y)."""

Batch = tuple[Any, Any]
"""x, a tensor or a dict of them by name, and y."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
    "bce": functional.binary_cross_entropy_with_logits,
}
"""Losses that a family may name, as `subcompress.fit` names them."""

STEPS = (2e-3, 6e-3, 2e-2)
"""Largest steps of Adam that direct training tries; the best one on the validation split counts."""


@dataclass(frozen=True)
class Trained:
    """What the check of a family looks at: the packed file loaded into a fresh network, and what belongs to it.

    file: the packed file; rebuilt: the fresh network with its weights; start: the network before a fit of that seed;
    direct: trained in all of its weights, from `direct_start`; data: the three splits, stacked, each (x, y).
    """

    file: Path
    rebuilt: nn.Module
    start: Mapping[str, Tensor]
    direct: nn.Module
    direct_start: Mapping[str, Tensor]
    data: tuple[Batch, ...]


@dataclass(frozen=True, eq=False)
class Family:
    """make_net(): the network, its start drawn from torch's generator; load(): its data.

    d: coordinates, None for as many as there are weights. loss: a name of LOSSES or f(model, batch); metric: f(outputs,
    y), None for the loss itself; minimize: less is better. goal: the value that the validation split should show, None
    for 90 % of direct training (an error at most twice as large). base: makes the folder that a fit starts from.
    error: words that the error of a fit should hold, where an error is the goal. check: f(trained) -> a line for
    everything else that is wrong. steps: of direct training; options: more arguments of `fit`.
    """

    name: str
    make_net: Callable[[], nn.Module]
    load: Callable[[], Splits]
    d: int | None
    epochs: int
    batch_size: int = 32
    loss: str | Callable[[nn.Module, Batch], Tensor] = "cross-entropy"
    metric: Callable[[Any, Any], Tensor] | None = None
    minimize: bool = False
    goal: float | None = None
    base: Callable[[], Path] | None = None
    error: tuple[str, ...] = ()
    check: Callable[[Trained], list[str]] | None = None
    steps: tuple[float, ...] = STEPS
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric_name(self) -> str:
        """What the table calls the metric."""
        if self.metric is not None:
            return self.metric.__name__.replace("_", " ")
        return "loss"

    def loss_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch, ()."""
        if callable(self.loss):
            return self.loss(model, batch)
        return LOSSES[self.loss](outputs_of(model, batch[0]), batch[1])

    def value(self, model: nn.Module, batch: Batch) -> float:
        """The metric of a whole split in one call, of a model in evaluation mode."""
        model.eval()
        with torch.no_grad():
            if self.metric is None:
                return float(self.loss_of(model, batch))
            return float(self.metric(outputs_of(model, batch[0]), batch[1]))

    def bound(self, direct: float) -> float:
        """The value that a fit should reach, where direct training reaches that one."""
        if self.goal is not None:
            return self.goal
        return 2 * direct if self.minimize else 0.9 * direct

    def meets(self, value: float, bound: float) -> bool:
        """Whether a value is at least as good as the bound."""
        return value <= bound if self.minimize else value >= bound


def outputs_of(model: nn.Module, x: Any) -> Any:
    """The model's outputs for a batch of inputs; for a transformers model, its logits."""
    found = model(**x) if isinstance(x, dict) else model(x)
    return getattr(found, "logits", found)


def stacked(split: Dataset[Any]) -> Batch:
    """All examples of a split as one batch."""
    if isinstance(split, TensorDataset):
        x, y = split.tensors
        return x, y
    pairs = [split[i] for i in range(len(split))]  # type: ignore[arg-type]
    return torch.utils.data.default_collate(pairs)


def rows(batch: Batch, i: Tensor) -> Batch:
    """The examples of those numbers."""
    x, y = batch
    return ({k: v[i] for k, v in x.items()} if isinstance(x, dict) else x[i]), y[i]


def reals(t: Tensor) -> Tensor:
    """The real numbers of a tensor, in double precision, flattened."""
    t = t.detach()
    return (torch.view_as_real(t) if t.is_complex() else t).double().reshape(-1)


def named_starts(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """Share of the examples whose largest output is the label's."""
    return (outputs.argmax(1) == y).double().mean()


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return functional.mse_loss(outputs, y)
