"""The examples of many solutions, with a linear network on small digits: what a walk keeps, and what a block moves."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from places import EXAMPLES
from torch import nn

import subcompress


def example(name: str) -> ModuleType:
    """A fresh copy of an example, with a small network."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    module.MODELS = {"lenet": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))}
    return module


@pytest.fixture(scope="module")
def digits() -> subcompress.Data:
    return subcompress.load_data("digits")


@pytest.mark.slow
def test_members_are_short_files_on_the_optimum_that_keep_its_accuracy(digits, tmp_path):
    rashomon = example("rashomon")
    rashomon.MEMBERS, rashomon.STEPS, rashomon.LOWEST = 3, 3, 0.5
    files = rashomon.make(digits, tmp_path)
    optimum = subcompress.load(files[0], rashomon.MODELS["lenet"]())
    x, y = digits.validation[torch.arange(len(digits.validation))]
    for file in files[1:]:
        member = subcompress.load(file, rashomon.MODELS["lenet"](), base=optimum.state_dict())
        assert rashomon.accuracy(rashomon.outputs(member, x), y) >= 0.5
        assert not torch.equal(member[1].weight, optimum[1].weight)
    lines = rashomon.table(digits, files)
    assert lines[0].startswith(f"4 files, {sum(f.stat().st_size for f in files):,} bytes in all.")
    assert len({line.count("|") for line in lines[4:]}) == 1


def test_a_walk_that_would_lose_accuracy_stays_at_the_optimum(digits):
    rashomon = example("rashomon")
    sub = subcompress.Subspace.of(rashomon.MODELS["lenet"], 20)
    rashomon.walk(sub, *digits.validation[torch.arange(50)])  # nothing is learned: below LOWEST everywhere
    assert not sub.z.any()


def test_a_block_of_pixels_that_are_alike_is_not_needed():
    rashomon = example("rashomon")
    torch.manual_seed(0)
    x, net = torch.randn(64, 1, 28, 28), rashomon.MODELS["lenet"]()
    x[:, :, :7, :7] = 1
    alone = rashomon.needs(net, x, net(x).argmax(1), [[0], [1], [1, 0]])
    assert alone[0] == 0
    assert alone[1] == alone[2] > 0


def test_a_task_moves_its_own_block_alone(digits):
    continual = example("continual")
    continual.D, continual.STEPS, continual.BATCH = 20, 3, 8
    sub = subcompress.Subspace.of(continual.MODELS["lenet"], 60)
    pairs = [continual.task_of(digits.train, task) for task in range(2)]
    continual.learn(sub, 0, pairs[0], slice(0, 20), 0)
    first = sub.z.detach().clone()
    assert first[:20].all() and not first[20:].any()
    continual.learn(sub, 1, pairs[1], slice(20, 40), 1)
    assert torch.equal(sub.z[:20], first[:20])
    assert sub.z[20:40].all() and not sub.z[40:].any()


def test_the_table_of_tasks_reads_one_file_in_two_ways(digits, tmp_path):
    continual = example("continual")
    continual.D, continual.STEPS, continual.BATCH = 20, 1, 8
    lines = continual.table(digits, tmp_path)
    rows = [line.split(" | ") for line in lines[1:-1]]
    assert len(rows) == 5
    assert rows[-1][2] == rows[-1][4]  # no block comes after the last task's
    assert f"{(tmp_path / 'tasks.safetensors').stat().st_size:,} |" in lines[-1]
