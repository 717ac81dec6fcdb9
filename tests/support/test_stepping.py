"""Optimizers that leave torch's compiler alone."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from made_data import Blobs, net, packed, three

from subcompress.support import stepping
from subcompress.training.optimizers import OPTIMIZERS


@pytest.fixture
def no_compiler(monkeypatch):
    """As in a process that has imported no compiler yet, and cannot."""
    for method in (torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.zero_grad):
        monkeypatch.delattr(inspect.unwrap(method), "__dynamo_disable", raising=False)
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)


def test_torchs_own_imports_it(no_compiler):
    """Else there is nothing to go around."""
    with pytest.raises(ImportError):
        torch.optim.Adam(net().parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fit_imports_no_compiler(name, no_compiler, tmp_path):
    assert packed(three(Blobs), tmp_path, epochs=2, optimiser=name)


@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_those_of_torch(fused):
    ours, theirs = net(), net()
    pair = [stepping.Adam(ours.parameters(), 0.1, fused=fused), torch.optim.Adam(theirs.parameters(), 0.1, fused=fused)]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for module, optimizer in zip((ours, theirs), pair, strict=True):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    ours, theirs = (optimizer.state_dict() for optimizer in pair)
    assert ours["param_groups"] == theirs["param_groups"] and ours["state"].keys() == theirs["state"].keys()
