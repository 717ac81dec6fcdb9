"""Whether a network looks trained: then a fit says that it may start there."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn
from trained import FIT, Notes, net

import subcompress
from subcompress.subspace.roles import looks_trained


@pytest.mark.parametrize("kind", networks.CASES)
def test_no_fresh_network_looks_trained(kind):
    assert not any(looks_trained(net(kind, seed)) for seed in range(5))


def test_trained_networks_get_a_warning(trained, tmp_path):
    module, notes = net(), Notes()
    module.load_state_dict(trained)
    assert looks_trained(module)
    subcompress.fit(module, networks.blobs(), tmp_path / "a", **FIT | {"epochs": 1}, listener=notes)
    assert any("looks trained" in n and "--base" in n for n in notes.notes)
    for i, options in enumerate(({"base": module}, {})):
        notes = Notes()
        args = (module if options else net(), networks.blobs(), tmp_path / f"b{i}")
        subcompress.fit(*args, **FIT | {"epochs": 1}, **options, listener=notes)
        assert not any("looks trained" in n for n in notes.notes)


def test_a_trained_transformer_looks_trained():
    """Its layer norms have moved."""
    module, data = net("transformer"), networks.tokens()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(data.train.x), data.train.y).backward()
        optimizer.step()
    assert looks_trained(module)
