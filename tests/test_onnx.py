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
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.format.facts import Facts, Input
from subcompress.onnx.checking import compare
from subcompress.onnx.sequences import padded
from subcompress.onnx.tracing import example_inputs, graph_of, lengths_of
from subcompress.rebuild.expand import expand
from subcompress.training.tasks import accuracy_of
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


class Counts(nn.Linear):
    """Makes a plain number of the batch size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.zeros(len(x), 3)


def test_a_batch_size_that_is_baked_in_is_said():
    with pytest.raises(
        SubcompressError, match=r"a graph takes batches of any size, and this one would not: .* len\(x\)"
    ):
        graph_of(Counts(4, 3).eval(), Facts((4,)))


def test_a_graph_that_is_right_at_the_traced_batch_size_alone_is_said():
    nodes = [
        helper.make_node("ReduceSum", ["input"], ["sum"], keepdims=1),
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("two", TensorProto.FLOAT, (), [2.0])),
        helper.make_node("Div", ["sum", "two"], ["mean"]),
        helper.make_node("Add", ["input", "mean"], ["output"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 1]) for n in ("input", "output")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.sum() / len(x)

    with pytest.raises(SubcompressError, match=r"differ from torch's by .* at batch size 1, and does not at"):
        compare(model.SerializeToString(), Centred(), Facts((1,)))


class Packs(nn.Module):
    """(N, 6, 4) and lengths (N,) -> (N, 2), by packed sequences."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options) -> None:
        super().__init__()
        self.rnn = kind(4, 5, batch_first=True, **options)
        self.head = nn.Linear(5 * (1 + self.rnn.bidirectional), 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        found, last = self.rnn(packed)
        whole, n = nn.utils.rnn.pad_packed_sequence(found, batch_first=True, total_length=7)
        last = last[0] if isinstance(last, tuple) else last
        return self.head(whole.sum(1) / n[:, None]) + last.sum((0, 2))[:, None]


PACKED = Facts(inputs=(Input("", "F32", (6, 4)), Input("", "I64", ())))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_padded_sequences_give_what_packed_ones_do(kind, options):
    torch.manual_seed(0)
    module, x, lengths = Packs(kind, **options).eval(), torch.rand(4, 6, 4), torch.tensor([2, 6, 1, 4])
    with torch.no_grad():
        expected = module(x, lengths)
        with padded(module):
            assert torch.allclose(module(x, lengths), expected, atol=1e-6)
        assert torch.equal(module(x, lengths), expected)
    assert "forward" not in vars(module.rnn)


def test_lengths_are_those_of_a_real_batch():
    assert lengths_of(Packs(), PACKED) == {"input_1"}
    assert example_inputs(PACKED, 3, lengths={"input_1"})["input_1"].tolist() == [6, 4, 2]
    assert example_inputs(PACKED, 1, lengths={"input_1"})["input_1"].tolist() == [3]
    free = Facts(inputs=(Input("x", "F32", (0, 4)), Input("lens", "I32", ())))
    assert lengths_of(nn.Identity(), free) == {"lens"}
    assert example_inputs(free, 1, 8, {"lens"})["lens"].tolist() == [8]
    assert lengths_of(nn.Identity(), Facts(inputs=(Input("x", "F32", (4,)), Input("kind", "I64", ())))) == frozenset()


@pytest.mark.slow
def test_graphs_of_packed_sequences():
    module = Packs().eval()
    model = graph_of(module, PACKED)
    compare(model.SerializeToString(), module, PACKED)
    assert {i.name for i in model.graph.initializer} >= module.state_dict().keys()
