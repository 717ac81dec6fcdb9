"""Writes products with transposed weights as Gemm, which reads weights in PyTorch's layout.

A runtime turns the transposition of a weight into a copy, one in every session. Gemm reads the weight in place, from a
file that all sessions map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from subcompress.onnx.nodes import Nodes
from subcompress.onnx.slimming import every_name
from subcompress.onnx.tracing import graphs_within

Sizes = tuple[str | int, ...]
"""The sizes of the axes of a value: numbers, or names for sizes that vary."""


def sizes_in(graph: onnx.GraphProto) -> dict[str, Sizes]:
    """Return the sizes of values that a graph states in full, by name."""
    found = {}
    for value in [*graph.value_info, *graph.input]:
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        if dims and all(dims):
            found[value.name] = tuple(dims)
    return found


def use_gemm(
    nodes: Nodes, weights: Mapping[str, tuple[int, ...]], outputs: Iterable[str], sizes: Mapping[str, Sizes]
) -> None:
    """Replace MatMul(x, Transpose(weight)), and an addition of a bias after it, by Gemm with the rows of x.

    weights: float32 weights, name -> shape. outputs: names of the graph's outputs. sizes: the sizes of other values, as
    far as they are known.
    """
    users = _users(nodes.nodes, outputs)
    matrices = {name for name, shape in weights.items() if len(shape) == 2}
    transposed = {
        node.output[0]: node.input[0]
        for node in nodes.nodes
        if node.op_type == "Transpose"
        and node.input[0] in matrices
        and _is_product(users.get(node.output[0], []), node)
    }
    old, nodes.nodes = nodes.nodes, []
    written = _Writer(nodes, users, weights, sizes)
    done: set[int] = set()
    for node in old:
        if id(node) in done or (node.output and node.output[0] in transposed):
            continue
        if node.op_type == "MatMul" and node.input[1] in transposed:
            weight = transposed[node.input[1]]
            done |= written.product(node, weight)
        else:
            nodes.nodes.append(node)


Users = dict[str, list[Any]]
"""Map each value to the nodes that read it. None stands for a subgraph of a node, and for an output."""


def _users(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> Users:
    found: Users = {name: [None] for name in outputs}
    for node in nodes:
        for name in node.input:
            found.setdefault(name, []).append(node)
        for inner in graphs_within(node):
            for name in every_name(inner):
                found.setdefault(name, []).append(None)
    return found


def _is_product(users: list[Any], node: onnx.NodeProto) -> bool:
    """Whether every reader of a transposition of two axes is a product that uses it as the right factor."""
    swaps = [list(a.ints) for a in node.attribute if a.name == "perm"] in ([], [[1, 0]])
    return swaps and all(u is not None and u.op_type == "MatMul" and u.input[0] != node.output[0] for u in users)


class _Writer:
    """Writes products. Nodes that several of them share are written once."""

    def __init__(
        self, nodes: Nodes, users: Users, weights: Mapping[str, tuple[int, ...]], sizes: Mapping[str, Sizes]
    ) -> None:
        self.nodes, self.users, self.weights, self.sizes = nodes, users, weights, sizes
        self._rows: dict[tuple[str, int], str] = {}
        self._leading: dict[str | Sizes, str] = {}
        self._shapes: dict[tuple[str, int], str] = {}

    def product(self, node: onnx.NodeProto, weight: str) -> set[int]:
        """Add the nodes for a product; return the identities of later ones that they make superfluous."""
        n, (x, result), shape = self.nodes, (node.input[0], node.output[0]), self.weights[weight]
        given, skipped = [self._rows_of(x, shape[1]), weight], set[int]()
        if (after := self._only_user(result)) is not None and (bias := self._bias(after, result, shape[0])):
            given.append(bias)
            skipped.add(id(after))
            result = after.output[0]
            after = self._only_user(result)
        n("Gemm", *given, transB=1)
        rows = n.nodes[-1]
        if after is None or not _sets_shape(after, result):
            n("Reshape", rows.output[0], self._shape(x, shape[0]))
            rows = n.nodes[-1]
        rows.output[0] = result
        return skipped

    def _rows_of(self, x: str, width: int) -> str:
        if (x, width) not in self._rows:
            self._rows[x, width] = self.nodes("Reshape", x, [-1, width])
        return self._rows[x, width]

    def _shape(self, x: str, width: int) -> str:
        """The shape of x with the given size in its last axis."""
        key: str | Sizes = self.sizes[x][:-1] if x in self.sizes else x
        if key not in self._leading:
            self._leading[key] = self.nodes("Shape", x, end=-1)
        if (whole := (self._leading[key], width)) not in self._shapes:
            self._shapes[whole] = self.nodes("Concat", whole[0], [width], axis=0)
        return self._shapes[whole]

    def _only_user(self, name: str) -> Any:
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 else None

    def _bias(self, node: onnx.NodeProto, product: str, width: int) -> str:
        """The other term of an addition if it is a weight of one axis, as long as the product's last; else empty."""
        if node.op_type != "Add":
            return ""
        other = node.input[1] if node.input[0] == product else node.input[0]
        return other if self.weights.get(other) == (width,) else ""


def _sets_shape(node: onnx.NodeProto, value: str) -> bool:
    """Whether a node gives a value a shape that does not depend on the one it has."""
    allowzero = any(a.name == "allowzero" and a.i for a in node.attribute)
    return node.op_type == "Reshape" and node.input[0] == value and allowzero
