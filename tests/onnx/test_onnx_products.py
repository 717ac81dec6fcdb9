"""Graphs beside a base: products as Gemm, transpositions that were spelled with shapes, constants as nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import run
from onnx import TensorProto, helper, numpy_helper

from subcompress.onnx.nodes import Nodes, short_names
from subcompress.onnx.products import use_gemm
from subcompress.onnx.slimming import slim
from subcompress.onnx.tracing import IR_VERSION, OPSET
from subcompress.onnx.transposing import exchange_last

DRAWN = np.random.default_rng(0)


def model(nodes, constants, outputs, sizes=()) -> onnx.ModelProto:
    """A graph without inputs; sizes: of values in it, by name."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [], values, constants)
    graph.value_info.extend(
        helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in dict(sizes).items()
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def constants(**arrays: np.ndarray) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def with_gemm(given: onnx.ModelProto, weights: dict[str, tuple[int, ...]]) -> tuple[list[str], onnx.ModelProto]:
    """The model after `use_gemm`, and the kinds of its nodes."""
    nodes = Nodes(short_names([*"abcdwxyz"]))
    nodes.nodes, nodes.constants = list(given.graph.node), list(given.graph.initializer)
    use_gemm(nodes, weights, [v.name for v in given.graph.output], {})
    return [n.op_type for n in nodes.nodes], model(nodes.nodes, nodes.constants, [v.name for v in given.graph.output])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3), (2, 1, 5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_a_transposed_weight_is_a_gemm(shape, bias):
    x, w, b = (DRAWN.normal(size=size).astype(np.float32) for size in (shape, (4, 3), (4,)))
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["p" if bias else "y"]),
        *([helper.make_node("Add", ["b", "p"], ["y"])] if bias else []),
    ]
    given = model(nodes, constants(x=x, w=w, b=b), ["y"])
    kinds, found = with_gemm(given, {"w": (4, 3), "b": (4,)})
    assert kinds.count("Gemm") == 1
    assert not {"MatMul", "Transpose", "Add"}.intersection(kinds)
    (expected,), (values,) = (run(m.SerializeToString()) for m in (given, found))
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        helper.make_node("Relu", ["t"], ["z"]),
        helper.make_node("MatMul", ["t", "w"], ["z"]),
        helper.make_node("MatMul", ["w", "t"], ["z"]),
    ],
)
def test_a_transposition_that_something_else_reads_stays(other):
    x, w = (DRAWN.normal(size=size).astype(np.float32) for size in ((2, 5, 3), (4, 3)))
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
        other,
    ]
    given = model(nodes, constants(x=x, w=w), ["y", "z"])
    kinds, found = with_gemm(given, {"w": (4, 3)})
    alone = other.input[0] == "w"  # a product, too
    assert kinds.count("Transpose") == (0 if alone else 1)
    for a, b in zip(run(given.SerializeToString()), run(found.SerializeToString()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_bias_of_another_length_is_added_afterwards():
    """It has one number for every column or one for each batch: Gemm would take it for another axis."""
    x, w, b = (DRAWN.normal(size=size).astype(np.float32) for size in ((2, 5, 3), (4, 3), (5, 1)))
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    given = model(nodes, constants(x=x, w=w, b=b), ["y"])
    kinds, found = with_gemm(given, {"w": (4, 3), "b": (5, 1)})
    assert "Add" in kinds
    np.testing.assert_allclose(run(found.SerializeToString())[0], run(given.SerializeToString())[0], rtol=1e-5)


def spelled(back: list[str]) -> list[onnx.NodeProto]:
    """The transposition of the last two axes of k as torch's exporter spells it; back: what its last shape lists."""
    slices = [helper.make_node("Slice", ["s", f"{n} first", f"{n} end"], [n]) for n in ("leading", "a", "b")]
    return [
        helper.make_node("Shape", ["k"], ["s"]),
        *slices,
        helper.make_node("Concat", ["minus", "a", "b"], ["flat"], axis=0),
        helper.make_node("Reshape", ["k", "flat"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Concat", back, ["back"], axis=0),
        helper.make_node("Reshape", ["t", "back"], ["y"]),
    ]


@pytest.mark.parametrize(
    ("back", "stated", "left"),
    [
        (["leading", "b", "a"], {"k": (2, 3, 4, 5)}, ["Transpose"]),
        (["leading", "a", "b"], {"k": (2, 3, 4, 5)}, None),
        (["leading", "b", "a"], {}, None),
    ],
)
def test_a_transposition_that_is_spelled_with_shapes_is_one_node(back, stated, left):
    least, most = -(1 << 63), (1 << 63) - 1
    bounds = {"leading": (least, -2), "a": (-2, -1), "b": (-1, most)}
    held = {
        f"{n} {end}": np.array([x]) for n, two in bounds.items() for end, x in zip(("first", "end"), two, strict=True)
    }
    k = DRAWN.normal(size=(2, 3, 4, 5)).astype(np.float32)
    given = model(spelled(back), constants(k=k, minus=np.array([-1]), **held), ["y"], stated)
    expected = run(given.SerializeToString())
    before = [n.op_type for n in given.graph.node]
    exchange_last(given.graph)
    assert [n.op_type for n in given.graph.node] == (left or before)
    assert run(given.SerializeToString())[0].tobytes() == expected[0].tobytes()


@pytest.mark.parametrize(
    ("array", "few"),
    [
        (np.arange(5, 517).reshape(1, 512), True),
        (np.zeros((1, 512), np.int64), True),
        (np.full(300, -0.0, np.float32), True),
        (np.where(np.arange(300) == 7, 0.0, -0.0).astype(np.float32), False),
        (np.arange(300) ** 2, False),
    ],
)
def test_long_constants_of_one_value_and_consecutive_numbers_are_nodes(array, few):
    graph = model([helper.make_node("Identity", ["c"], ["y"])], constants(c=array), ["y"]).graph
    nodes = Nodes(short_names("cy"))
    slim(graph, nodes, {}, [], True)
    found = model(nodes.nodes, nodes.constants, ["y"])
    found.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(array.dtype), None)
    )
    assert (found.ByteSize() < 200) == few
    values = run(found.SerializeToString())[0]
    assert (values.dtype, values.shape, values.tobytes()) == (array.dtype, array.shape, array.tobytes())
