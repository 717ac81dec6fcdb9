"""What the shards of a step give, combined: exact sums, buffers, losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn

from subcompress import SubcompressError
from subcompress.subspace.module import Subspace
from subcompress.training.loop import DeadRunError, TrainOptions, train
from subcompress.training.sharding import Shards, Step, exact
from subcompress.training.tasks import Task

HERE = Path(__file__)
SMALL = {"batch_size": 32, "shards": 4, "threads": 1, "device": "cpu"}


def mixed() -> nn.Module:
    """Running statistics, a count of batches, and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(150, 4)
    )


# --- sums ---


def test_sums_are_the_same_in_any_order():
    g = torch.Generator().manual_seed(1)
    parts = [torch.randn(50, generator=g) * 10.0 ** torch.randint(-30, 30, (50,), generator=g) for _ in range(7)]
    e = max(exact.exponent(p) for p in parts)
    units = [exact.integers(p, e, 7) for p in parts]
    forwards, backwards = sum(units), sum(reversed(units))
    assert torch.equal(forwards, backwards)
    true = torch.stack([p.double() for p in parts]).mean(0)
    assert (exact.mean(forwards, e, 7) - true).abs().max() <= true.abs().max() * 2**-50


@pytest.mark.parametrize("count", [1, 2, 3, 4, 64, 1000])
def test_equal_numbers_are_their_own_mean_and_the_largest_do_not_overflow(count):
    x = torch.tensor([3.4e38, -3.4e38, 1.1, 1e30, 0.0, float(torch.finfo().max)])
    e = exact.exponent(x)
    total = exact.integers(x, e, count) * count
    assert exact.mean(total, e, count).float()[[0, 1, 3, 4, 5]].equal(x[[0, 1, 3, 4, 5]])
    small = torch.tensor([1e-45, -3e-42, 2e-38])
    e = exact.exponent(small)
    assert exact.mean(exact.integers(small, e, count) * count, e, count).float().equal(small)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int32, torch.bool]
)
def test_a_buffer_of_any_dtype_comes_back(dtype):
    x = torch.tensor([[0, 1], [1, 1], [0, 5]]).to(dtype)
    assert exact.of_words(exact.words(x), x).equal(x)
    if x.is_floating_point() or x.is_complex():
        assert exact.of_reals(exact.reals(x).double(), x).equal(x)


# --- one step, in this process ---


class Counting(nn.Module):
    """Buffers of every kind that a forward pass changes, by what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("least", torch.tensor(torch.inf))
        self.register_buffer("still", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean += x.mean(0)
            self.seen += 1 + int(x[0, 0])
            if bool(x[0, 0] == 1):
                self.least.fill_(float(x.min()))
        return self.layer(x)


def test_a_step_combines_what_shards_leave():
    """The mean of numbers; of integers, and of what is not finite, what the first shard has. Each begins alike."""
    subspace = Subspace.of(Counting, 3)
    inputs = [torch.full((4, 2), float(i)) for i in (4, 1, 7)]
    step, coming, seeds = Step(Shards(3), subspace, 5), iter(inputs), []

    def work(drawn: torch.Generator) -> Tensor:
        seeds.append((drawn.initial_seed(), torch.initial_seed()))
        with subspace.materialized() as module:
            assert module.seen == 0
            loss = module(next(coming)).square().mean()
            loss.backward()
        return loss

    loss, module = step.run(0, work), subspace.module
    assert module.mean.tolist() == [4.0, 4.0]
    assert module.seen == 5
    assert module.least == torch.inf
    assert len({s for s, _ in seeds}) == 3 and all(a == b for a, b in seeds)
    subspace.z.grad, combined = None, subspace.z.grad.clone()
    with subspace.materialized() as net:
        whole = torch.stack([net(x).square().mean() for x in inputs]).mean()
        whole.backward()
    assert torch.allclose(loss, whole, rtol=1e-6)
    assert torch.allclose(combined, subspace.z.grad, rtol=1e-5)


def test_what_is_not_finite_in_a_shard_is_in_the_whole():
    subspace = Subspace.of(mixed, 10)
    losses = iter([1.0, float("inf")])

    def work(drawn: torch.Generator) -> Tensor:
        loss = subspace.z.sum() + next(losses)
        loss.backward()
        return loss

    assert Step(Shards(2), subspace, 0).run(0, work).isnan()
    assert subspace.z.grad.isfinite().all()  # the loss says it


def test_a_dead_run_dies_as_without_shards(monkeypatch):
    monkeypatch.setattr("subcompress.training.judging.WINDOW", 5)
    calls = []

    def loss(module: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        return module(batch[0]).square().mean() * (float("nan") if len(calls) > 5 else 1.0)

    with pytest.raises(DeadRunError, match="the loss is nan"):
        train(Subspace.of(mixed, 10), networks.blobs(), Task.of(loss), TrainOptions(10, 0.01, 32, shards=4))


def test_nan_among_the_examples_is_named(monkeypatch):
    monkeypatch.setattr("subcompress.training.judging.WINDOW", 5)
    data = networks.blobs()
    order = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    data.train.x[order[4 * 32 + 9]] = torch.nan  # behind the check of the data; in the batch of a verdict
    with pytest.raises(SubcompressError, match="the training split holds nan or inf"):
        train(Subspace.of(mixed, 10), data, Task.of(), TrainOptions(10, 0.01, 32, shards=4))
