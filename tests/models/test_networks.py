"""Any network: fitted, packed, unpacked into a fresh one, with the outputs of the fitted one, and ONNX where it can
be."""

from __future__ import annotations

import copy

import networks
import onnx
import pytest
import safetensors.torch
import torch
from graphs import computed

import subcompress
from subcompress import format
from subcompress.data.in_memory import tensors_in
from subcompress.data.splits import batches, call
from subcompress.format.record import Coded
from subcompress.rebuild.expand import expand
from subcompress.tensors.layout import raw_bytes
from subcompress.training.tasks import Task, evaluate


@pytest.fixture(params=networks.CASES)
def name(request):
    return request.param


def test_the_file_rebuilds_the_fitted_network_exactly(fitted, name, tmp_path):
    found, file, _ = fitted(name)
    case = networks.CASES[name]
    dense = subcompress.unpack(file, tmp_path / "dense.safetensors")
    torch.manual_seed(4)
    fresh, loaded = case.make(), subcompress.load(file, case.make())
    fresh.load_state_dict(safetensors.torch.load_file(dense), strict=True)
    fresh.eval()
    x, _ = next(batches(case.data().test, 16))
    with torch.no_grad():
        for a, b in zip(tensors_in(call(fresh, x)), tensors_in(call(loaded, x)), strict=True):
            assert torch.equal(a, b)
    if name != "dict":  # whose data are noisy
        task = Task.of(case.options.get("loss", "cross-entropy"), case.options.get("metric"))
        assert evaluate(loaded, case.data().test, task) == found.test
    assert subcompress.verify(file).ok


def test_it_learns(fitted, name):
    """Better than the network is before anything is trained, by the metric it is judged by."""
    found, _, module = fitted(name)
    case = networks.CASES[name]
    task = Task.of(case.options.get("loss", "cross-entropy"), case.options.get("metric"))
    untrained = evaluate(copy.deepcopy(module), case.data().validation, task)
    assert task.better(found.validation, untrained), (found.validation, untrained)


PLAIN = ("batch norm", "graph", "dict")
"""The plain graph is checked for these: that which computes its weights itself has its outputs checked too."""

MARKED = [n if n in PLAIN else pytest.param(n, marks=pytest.mark.slow) for n in networks.CASES]


@pytest.mark.parametrize("name", MARKED)
def test_onnx_computes_the_same(fitted, name, tmp_path):
    _, file, _ = fitted(name)
    case = networks.CASES[name]
    assert subcompress.unpack(file, tmp_path / "net.onnx", case.make()).stat().st_size > 1_000


TRACED = (*PLAIN, "complex", "regression")
"""Those whose graphs compute their weights in the default run: convolutions with statistics, several inputs, inputs by
name, complex weights, and a scalar. To trace each of the others takes seconds, to slim that of the GRU seven."""

UNFOLDED = [n if n in TRACED else pytest.param(n, marks=pytest.mark.slow) for n in networks.CASES]


@pytest.mark.parametrize("name", UNFOLDED)
def test_the_graph_computes_the_files_weights_itself(fitted, name, tmp_path):
    """`unpack` checks them before it keeps the graph; here they are had from the graph that was kept."""
    _, file, _ = fitted(name)
    path = subcompress.unpack(file, tmp_path / "net.onnx", networks.CASES[name].make(), self_unfolding=True)
    record = format.read(file)[0]
    inside = {i.name for i in onnx.load(path).graph.initializer}
    coded = [s.name for s, e in zip(record.layout, record.entries, strict=True) if isinstance(e, Coded)]
    assert not inside.intersection(coded)
    found, expected = computed(path, record), expand(record)
    assert found
    for tensor, values in found.items():
        assert values.tobytes() == raw_bytes(expected[tensor]), tensor
