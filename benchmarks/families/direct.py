"""Direct training, what a fit in a subspace is measured against: Adam in all of the weights, one cycle of the step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from families.family import Batch, Family, named_starts, rows


@dataclass(frozen=True)
class Direct:
    """value: on the validation split; step: the largest one of Adam, the best of those tried; start: of the weights."""

    value: float
    step: float
    model: nn.Module
    start: dict[str, Tensor]


def made(family: Family, seed: int) -> nn.Module:
    """The network as that seed starts it."""
    torch.manual_seed(seed)
    return family.make_net()


def orders(n: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """The numbers of the examples of each batch; what does not fill one is left out."""
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(n, generator=drawn)[: n // batch_size * batch_size].split(batch_size)


def adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam for what is not frozen. The fused one, three times as fast on small networks, cannot handle complex
    weights."""
    moving = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(moving, lr=lr, fused=not any(p.is_complex() for p in moving))


def train(family: Family, model: nn.Module, data: Batch, lr: float, seed: int) -> nn.Module:
    """The model itself, trained for the family's epochs, in evaluation mode."""
    total = len(data[1]) // family.batch_size * family.epochs
    optimizer = adam(model, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total)
    torch.manual_seed(seed)
    model.train()
    for i in orders(len(data[1]), family.batch_size, family.epochs, seed):
        optimizer.zero_grad()
        family.loss_of(model, rows(data, i)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def best_direct(family: Family, data: tuple[Batch, ...], seed: int) -> Direct:
    """Direct training with the step that is best on the validation split."""
    net, found = made(family, seed), []
    for lr in family.steps:
        model = train(family, copy.deepcopy(net), data[0], lr, seed)
        found.append(Direct(family.value(model, data[1]), lr, model, named_starts(net)))
    return (min if family.minimize else max)(found, key=lambda d: d.value)
