"""Simplifies transpositions of the last two axes that an exporter writes as Reshape, Transpose, Reshape.

torch's exporter writes the transposition of attention's keys in this way. It takes nine nodes per layer, of which six
only compute shapes in every run.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from subcompress.onnx.products import sizes_in
from subcompress.onnx.slimming import needed

Symbols = list[int | str]
"""Sizes: numbers, or the size of an axis of the value in question, given by its index as text."""


def exchange_last(graph: onnx.GraphProto) -> None:
    """Replace Reshape(x, [-1, a, b]), Transpose [0, 2, 1], Reshape [.., b, a] of x [.., a, b] by one Transpose, and
    remove what nothing reads any more. Only where the number of axes of x is stated."""
    makers = {name: node for node in graph.node for name in node.output}
    constants = {
        t.name: list[int | str](numpy_helper.to_array(t).reshape(-1).tolist())
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.INT64
    }
    sizes = sizes_in(graph)
    for node in graph.node:
        chain = _chain(node, makers)
        if chain is None or (rank := len(sizes.get(chain.input[0], ()))) < 3:
            continue
        swap = makers[node.input[0]]
        shapes = _Shapes(makers, constants, chain.input[0], rank)
        *leading, a, b = shapes.axes
        flat, back = shapes.of(makers[swap.input[0]].input[1]), shapes.of(node.input[1])
        if flat == [-1, a, b] and back == [*leading, b, a]:
            perm = [*range(rank - 2), rank - 1, rank - 2]
            node.CopyFrom(onnx.helper.make_node("Transpose", [chain.input[0]], list(node.output), perm=perm))
    kept, _ = needed(graph.node, [v.name for v in graph.output])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _chain(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The first of Reshape, Transpose [0, 2, 1], Reshape if the node is the last; else None."""
    if node.op_type != "Reshape" or (swap := makers.get(node.input[0])) is None or swap.op_type != "Transpose":
        return None
    perm = [list(a.ints) for a in swap.attribute if a.name == "perm"]
    first = makers.get(swap.input[0])
    return first if perm == [[0, 2, 1]] and first is not None and first.op_type == "Reshape" else None


class _Shapes:
    """Evaluates values that are computed from constants and from the shape of one value with a known number of axes."""

    def __init__(
        self, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, Symbols], value: str, rank: int
    ) -> None:
        self.makers, self.constants, self.value = makers, constants, value
        self.axes: Symbols = [f"{i}" for i in range(rank)]

    def of(self, name: str, depth: int = 4) -> Symbols | None:
        """Return the numbers and sizes that a value lists. None if it is computed in another way."""
        if name in self.constants:
            return self.constants[name]
        node = self.makers.get(name)
        if node is None or not depth:
            return None
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "Shape" and node.input[0] == self.value and not attributes.get("start", 0):
            return None if "end" in attributes else self.axes
        parts = [part for each in node.input if (part := self.of(each, depth - 1)) is not None]
        if len(parts) < len(node.input):
            return None
        if node.op_type == "Concat":
            return [x for part in parts for x in part]
        if node.op_type == "Slice" and len(parts) == 3:  # a slice of one axis, without steps
            (first, *_), (end, *_) = parts[1:]
            return parts[0][first:end] if isinstance(first, int) and isinstance(end, int) else None
        return None
