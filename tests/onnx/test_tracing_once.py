"""A network is traced once for all files of its weights, unless its graph may hold something made of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from subcompress.format.facts import Facts
from subcompress.onnx import tracing_once
from subcompress.onnx.tracing_once import graph_once

FACTS = Facts((3,))


@pytest.fixture
def traced(monkeypatch) -> list[nn.Module]:
    """The networks that were traced; what is traced holds the weights, and what their `baked` says."""
    found = []

    def graph_of(module: nn.Module, facts: Facts) -> onnx.ModelProto:
        found.append(module)
        held = {n: t.numpy() for n, t in module.state_dict().items()} | getattr(module, "baked", {})
        tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
        return helper.make_model(helper.make_graph([], "g", [], [], tensors))

    monkeypatch.setattr(tracing_once, "graph_of", graph_of)
    return found


def weights(module: nn.Module, facts: Facts = FACTS) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in graph_once(module, facts).graph.initializer}


def test_another_fine_tune_takes_the_graph_with_its_own_weights(traced):
    net = nn.Linear(3, 2)
    net.baked = {"scale": np.array(3, np.float32), "ids": np.arange(9)}
    before = weights(net)
    with torch.no_grad():
        net.weight += 1
    after = weights(net, Facts((3,), labels=("no", "yes")))
    assert traced == [net]
    assert (after["weight"] == net.weight.detach().numpy()).all()
    assert (before["weight"] != after["weight"]).all()
    assert after["scale"] == 3


@pytest.mark.parametrize("change", ["facts", "layout", "network", "another"])
def test_what_is_different_is_traced_anew(traced, change):
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))
    weights(net)
    facts = Facts((4,)) if change == "facts" else FACTS
    if change == "layout":
        net[0] = nn.Linear(3, 5)
    if change == "network":
        net[1].p = 0.2
    weights(nn.Sequential(*net) if change == "another" else net, facts)
    assert len(traced) == 2


def test_a_graph_with_other_numbers_is_traced_each_time(traced):
    """They may be made of the weights, and would be those of another file."""
    net = nn.Linear(3, 2)
    net.baked = {"doubled": 2 * net.weight.detach().numpy()}
    weights(net)
    weights(net)
    assert len(traced) == 2
