"""Networks and losses that differentiate themselves: forces from an energy, the residual of an equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import subcompress
from subcompress.data.splits import without_graph
from subcompress.training.preflight import check_first_of
from subcompress.training.tasks import Task


class Force(nn.Module):
    """Places, (N, 2) -> minus the gradient of a learned energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def residual(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of u'' = -u."""
    x = batch[0].detach().requires_grad_()
    first = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    return (torch.autograd.grad(first.sum(), x, create_graph=True)[0] + model(x)).square().mean()


def splits(width: int = 2) -> tuple[TensorDataset, ...]:
    x = torch.linspace(-1, 1, 32 * width).view(32, width)
    return (TensorDataset(x, -x),) * 3


OPTIONS = {"epochs": 1, "batch_size": 16, "threads": 1, "minimize": True}


def test_what_differentiates_runs_with_a_graph_and_leaves_none():
    runs = []

    def count(f):
        runs.append(torch.is_grad_enabled())
        return f()

    net, x = Force(), torch.ones(3, 2)
    found = without_graph(lambda: count(lambda: net(x)))
    assert runs == [False, True] and not found.requires_grad
    runs.clear()
    without_graph(lambda: count(lambda: nn.Linear(2, 1)(x)))
    assert runs == [False]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        without_graph(lambda: nn.Linear(3, 1)(x))


def test_a_network_that_differentiates_is_looked_at_before_training():
    check_first_of(Force(), "validation", splits()[1], Task.of("mse"))


def test_a_network_that_differentiates_is_fit_and_loaded(tmp_path):
    fit = subcompress.fit(Force, splits(), tmp_path / "run", d=4, loss="mse", **OPTIONS)
    subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    net = subcompress.load(tmp_path / "net.safetensors", Force())
    x, y = splits()[1].tensors
    assert float((net(x) - y).detach().square().mean()) == pytest.approx(fit.validation, rel=1e-4)


def test_a_loss_that_differentiates_is_measured_and_fit(tmp_path):
    def wave() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    fit = subcompress.fit(wave, splits(1), tmp_path / "run", d=4, loss=residual, **OPTIONS)
    assert fit.metric == "loss" and fit.validation > 0
