"""A run is of one network: also where its code changes under the same name."""

from __future__ import annotations

import json

import pytest
import torch
from stopping import Stopping
from torch import nn

import subcompress
from subcompress import Data, Listener, Split, SubcompressError
from subcompress.subspace.observing import built
from subcompress.training import likeness
from subcompress.training.fitter import Fitter
from subcompress.training.settings import Settings
from subcompress.training.tasks import Task

FIT = {"d": 10, "epochs": 2, "batch_size": 16, "threads": 1}
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
DATA = Data(*[Split(X, X[:, :3].argmax(1))] * 3)

ACT = {"f": torch.relu}
"""What the network calls, and its source does not show."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        nn.init.zeros_(self.last.weight)

    def forward(self, x):
        return self.last(self.drop(ACT["f"](self.first(x))))


def outputs(make=Net, data=DATA):
    model, build = built(make, 0)
    return Fitter(model, data, Task.of(), Settings(), Listener(), build=build).outputs


def test_outputs_tell_code_weights_and_data_apart(monkeypatch):
    first = outputs()
    assert first is not None
    assert likeness.alike(first, json.loads(json.dumps(outputs())))
    assert not likeness.alike(first, outputs(data=Data(*[Split(X + 0.1, DATA.train.y)] * 3)))
    monkeypatch.setitem(ACT, "f", torch.tanh)
    assert not likeness.alike(first, outputs())  # although the last layer begins at zero


def test_another_order_of_additions_is_the_same_network():
    first = outputs()
    near = json.loads(json.dumps(first))
    near[0]["values"] = [v * (1 + 1e-4) + 1e-5 for v in near[0]["values"]]
    assert likeness.alike(first, near)
    near[0]["values"][0] += 0.1 * near[0]["size"]
    assert not likeness.alike(first, near)
    nans = [{"shape": [1], "size": float("nan"), "values": [float("nan")]}]
    assert likeness.alike(nans, json.loads(json.dumps(nans)))
    assert not likeness.alike(nans, [{"shape": [1], "size": 1.0, "values": [1.0]}])


def test_what_is_not_known_is_not_held_against_a_run(tmp_path):
    class Drawing(Net):
        def forward(self, x):
            return super().forward(x + torch.rand(1, generator=torch.Generator().manual_seed(id(object()) % 997)))

    class Raising(Net):
        def forward(self, x):
            raise ValueError("no")

    assert outputs(Raising) is None
    assert likeness.same_network(tmp_path, outputs())
    for text in ("", "null", "[1]", '{"a": 1}', '[{"shape": [1], "size": "x", "values": []}]'):
        (tmp_path / likeness.FILE).write_text(text)
        assert likeness.same_network(tmp_path, outputs())
    likeness.keep(tmp_path, outputs())
    assert likeness.same_network(tmp_path, None)


def test_a_run_of_other_code_is_no_run_of_this_network(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        subcompress.fit(Net, DATA, folder, **FIT, listener=Stopping(1))
    monkeypatch.setitem(ACT, "f", torch.tanh)
    with pytest.raises(SubcompressError, match=r"unfinished run of another network .*--restart to discard it"):
        subcompress.fit(Net, DATA, folder, **FIT)
    monkeypatch.setitem(ACT, "f", torch.relu)
    done = subcompress.fit(Net, DATA, folder, **FIT)
    assert subcompress.fit(Net, DATA, folder, **FIT) == done
    monkeypatch.setitem(ACT, "f", torch.tanh)
    again = subcompress.fit(Net, DATA, folder, **FIT)
    assert again != done
    assert subcompress.fit(Net, DATA, folder, **FIT) == again
