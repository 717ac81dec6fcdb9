"""ONNX: the weights bit for bit, any batch size, nothing of this machine in the file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.expand import expand
from subcompress.graph.checking import compare
from subcompress.graph.tracing import example_inputs
from subcompress.tasks import accuracy_of
from subcompress_models import MODELS


@pytest.fixture(scope="module")
def graph(small_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return subcompress.unpack(small_file, path, MODELS["lenet"]())


def test_the_weights_are_inside_bit_for_bit(graph, small_file):
    held = {i.name: numpy_helper.to_array(i) for i in onnx.load(graph).graph.initializer}
    for name, tensor in expand(format.read(small_file)[0]).items():
        assert held[name].tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_outputs_are_torchs_at_any_batch_size(graph, small_file, n):
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    x = torch.randn(n, 1, 28, 28)
    net = subcompress.load(small_file, MODELS["lenet"]())
    with torch.no_grad():
        assert np.allclose(session.run(["output"], {"input": x.numpy()})[0], net(x).numpy(), atol=1e-4)


def test_nothing_of_this_machine_is_in_the_file(graph):
    data = graph.read_bytes()
    here = [str(p).encode() for p in (Path.cwd(), Path.home(), sys.prefix, graph.parent)]
    for trace in (*here, b"site-packages", b".py", b"stack_trace", b"Traceback"):
        assert trace not in data
    model = onnx.load(graph)
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    onnx.checker.check_model(model, full_check=True)


def test_metadata_tells_the_receiver_what_to_do(graph):
    found = {p.key: p.value for p in onnx.load(graph).metadata_props}
    assert json.loads(found["labels"]) == list("0123456789")
    assert json.loads(found["mean"]) == [0.2244]
    assert json.loads(found["input_shape"]) == [1, 28, 28]
    assert len(found["weights_digest"]) == 32


def test_verify_measures_the_same_accuracy_in_onnx_runtime(small_file, digits):
    found = subcompress.verify(small_file, digits, MODELS["lenet"]())
    assert found.ok
    assert set(found.backends) >= {"numpy", "torch"}
    assert found.test_accuracy == accuracy_of(subcompress.load(small_file, MODELS["lenet"]()), digits.test)


def test_a_graph_that_differs_is_not_kept(graph, small_file):
    net = subcompress.load(small_file, MODELS["lenet"]())
    net.fc3.bias.data += 1
    with pytest.raises(SubcompressError, match="differ from torch's by"):
        compare(graph.read_bytes(), net, format.read(small_file)[0].facts)


class Stubborn(nn.Module):
    """A layout like LeNet's, and a forward that nothing can trace."""

    def __init__(self) -> None:
        super().__init__()
        for name, child in MODELS["lenet"]().named_children():
            self.add_module(name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 3 else torch.zeros(int(x.max() * 5))


def test_a_model_that_cannot_be_exported_says_why(small_file, tmp_path):
    with pytest.raises(SubcompressError, match=r"torch.onnx cannot export this model \(.+\): unpack to .safetensors"):
        subcompress.unpack(small_file, tmp_path / "net.onnx", Stubborn())
    assert list(tmp_path.iterdir()) == []


def test_examples_have_the_files_shape_and_dtype(small_file):
    facts = format.read(small_file)[0].facts
    assert example_inputs(facts, 3)["input"].shape == (3, 1, 28, 28)
    assert torch.equal(example_inputs(facts, 3)["input"], example_inputs(facts, 3)["input"])
