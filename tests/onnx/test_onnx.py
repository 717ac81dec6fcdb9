"""ONNX: the weights bit for bit, any batch size, nothing of this machine in the file."""

from __future__ import annotations

import importlib
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
from subcompress.onnx import tracing
from subcompress.onnx.checking import accuracy_of_graph, compare
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
        SubcompressError, match=r"a graph must take batches of any size, and this one would not: .* len\(x\)"
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

    class Centered(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.sum() / len(x)

    with pytest.raises(SubcompressError, match=r"differ from torch's by .* at batch size 1, but not at"):
        compare(model.SerializeToString(), Centered(), Facts((1,)))


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


class Several(nn.Module):
    """Any number of inputs, of which the second is bfloat16, to a dictionary."""

    def __init__(self):
        super().__init__()
        self.n = nn.Linear(3, 4)

    def forward(self, *args):
        found = self.n(args[0] + args[1].float())
        return {"hidden": found.bfloat16(), "loss": None, "logits": 2 * found}


SEVERAL = Facts(inputs=(Input("", "F32", (3,)), Input("", "BF16", (3,))))


def test_any_number_of_inputs_of_bfloat16_to_a_dictionary():
    module = Several().eval()
    model = graph_of(module, SEVERAL)
    assert [o.name for o in model.graph.output] == ["hidden", "logits"]
    axes = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input]
    assert axes == [["batch", 3], ["batch", 3]]
    compare(model.SerializeToString(), module, SEVERAL)
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer) + np.float32(1)
        initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    with pytest.raises(SubcompressError, match="outputs differ from torch's"):
        compare(model.SerializeToString(), module, SEVERAL)


class Gives(nn.Module):
    def __init__(self, found):
        super().__init__()
        self.register_buffer("state", torch.zeros(1))
        self.found = found

    def forward(self, *args):
        return self.found


X, Y = torch.zeros(2), torch.ones(2)


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ({"a": X, "logits": Y}, ["a", "logits"]),
        ({"logits": X, "loss": None, "n": 3}, ["output"]),
        ({"a": X, "b": Y, "loss": None, "more": ()}, ["a", "b"]),
        ({"a": X, "b": (Y, X)}, ["output_0", "output_1", "output_2"]),
        ({"a": X, "state": Y}, ["output_0", "output_1"]),  # a tensor's name
        ({"a": X, "input": Y}, ["output_0", "output_1"]),
        ({"a b": X, 3: Y}, ["output_0", "output_1"]),
        ((X, Y), ["output_0", "output_1"]),
        (X, ["output"]),
    ],
)
def test_outputs_are_called_by_the_keys_of_a_dictionary(found, names):
    assert list(tracing._outputs(Gives(found), (X,), {})) == names


def test_accuracy_is_that_of_the_logits():
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Neg", ["input"], ["a"]), helper.make_node("Identity", ["input"], ["logits"])]
    ends = [[value(n, TensorProto.FLOAT, ["n", 3]) for n in names] for names in (["input"], ["a", "logits"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    split = subcompress.Split(torch.eye(3), torch.arange(3))
    assert accuracy_of_graph(model.SerializeToString(), split) == 1


@pytest.mark.parametrize(
    ("forward", "axes"),
    [
        (lambda self, *args: None, {"args": (0, 1)}),
        (lambda self, x, *args: None, {"x": 0, "args": (1,)}),
        (lambda self, a, b=None: None, {"a": 0, "b": 1}),
        (lambda self: None, (0, 1)),
    ],
)
def test_axes_are_given_as_forward_takes_its_inputs(forward, axes):
    module = type("Net", (nn.Module,), {"forward": forward})()
    assert tracing._shapes(module, [0, 1], ()) == axes


def test_torchs_table_of_operators_is_read_once():
    from subcompress.onnx import registry

    place = importlib.import_module(registry.PLACE).ONNXRegistry
    before = place.__dict__["from_torchlib"]
    with registry.operators_read_once():
        first, second = (place.from_torchlib(opset_version=18) for _ in range(2))
    assert first is not second and first.functions is not second.functions
    assert first.functions == second.functions and len(first.functions) > 100
    assert first.opset_version == 18
    assert place.__dict__["from_torchlib"] is before


def test_composite_operators_are_asked_for_once_in_an_export(monkeypatch):
    from subcompress.onnx import registry

    place, asked = importlib.import_module(registry.COMPOSITE), []
    monkeypatch.setattr(place, registry.ASKS, lambda: asked.append(1))
    before = place.__dict__[registry.ASKS]
    for exports in (1, 2):
        with registry.operators_read_once():
            operators = [place._collect_all_valid_cia_ops() for _ in range(2)]
        assert operators[0] == operators[1] and len(operators[0]) > 100
        assert len(asked) == exports and place.__dict__[registry.ASKS] is before
