"""Shrinking graphs: constants folded, short names, default attributes left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import onnx
import onnxscript.optimizer
from onnx import helper, numpy_helper

from subcompress.onnx.nodes import Nodes, short_names
from subcompress.onnx.tracing import OPSET, graphs_within, quiet
from subcompress.tensors.layout import raw_bytes

SPELLED_OUT = {"pads": 0, "strides": 1, "dilations": 1}
"""Attributes whose default consists of this number only. A node may leave them out if they have their default."""


WORTH = 16
"""The most values of a result that is computed in advance. Longer results, such as masks and tables, are shorter as
nodes."""


def simplified(model: onnx.ModelProto, weights: Collection[str]) -> onnx.ModelProto:
    """Compute in advance everything that depends on neither inputs nor weights: shapes, casts, constants.

    weights: initializers that become inputs, so that nothing that depends on them is computed.
    """
    kept = [i for i in model.graph.initializer if i.name in weights]
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.initializer[:]
    opened.graph.initializer.extend(i for i in model.graph.initializer if i.name not in weights)
    opened.graph.input.extend(helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in kept)
    try:
        with quiet("onnx"):
            found: onnx.ModelProto = onnxscript.optimizer.optimize(opened, output_size_limit=WORTH)
    except Exception:  # it is a saving, and does without what it does not understand: names that occur twice, say
        return model
    inputs = [i for i in found.graph.input if i.name not in weights]
    del found.graph.input[:]
    found.graph.input.extend(inputs)
    return found


def slim(
    graph: onnx.GraphProto, nodes: Nodes, replaced: dict[str, str], computed: Collection[str], spelled: bool = False
) -> None:
    """Add the nodes of a graph to `nodes`, without default attributes, and each of its constants once.

    replaced: maps names to those that take their place. computed: weights that `nodes` already compute. spelled:
    whether nodes compute long constants that consist of one value or of consecutive numbers.
    """
    names, outputs = dict(replaced), {v.name for v in graph.output}

    def constant(name: str, tensor: onnx.TensorProto) -> None:
        array = numpy_helper.to_array(tensor)
        value = _spelled(nodes, array) if spelled and array.size > WORTH else nodes.constant(array)
        if name in outputs:  # which needs a name of its own
            nodes.rename(nodes("Identity", value), name)
        else:
            names[name] = value

    for tensor in graph.initializer:
        if tensor.name not in computed:
            constant(tensor.name, tensor)
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain and node.attribute[0].name == "value":
            constant(node.output[0], node.attribute[0].t)
            continue
        copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain, output=node.output)
        copy.input.extend(names.get(name, name) for name in node.input)
        copy.attribute.extend(a for a in node.attribute if not _default(node, a))
        for inner in graphs_within(copy):
            _replace(inner, names)
        nodes.nodes.append(copy)


def _spelled(nodes: Nodes, array: np.ndarray) -> str:
    flat = array.reshape(-1)
    if (raw_bytes(flat) == raw_bytes(np.broadcast_to(flat[:1], flat.shape))) and array.dtype != object:
        return str(nodes("Expand", nodes.constant(flat[0]), list(array.shape)))
    first = int(flat[0]) if array.dtype == np.int64 else 0
    if array.dtype == np.int64 and np.array_equal(flat, np.arange(first, first + flat.size)):
        return str(nodes("Reshape", nodes("Range", first, first + flat.size, 1), list(array.shape)))
    return nodes.constant(array)


def shorten(graph: onnx.GraphProto, kept: Collection[str]) -> dict[str, str]:
    """Give all values names of one or two letters. Constants come first, because a few of them occur very often.

    Returns the new names by the old ones. Names in `kept` stay.
    """
    constants = short_names(kept)
    new = {name: name for name in kept} | {i.name: next(constants) for i in graph.initializer}
    values = (name for name in short_names(new.values()) if len(name) > 1)  # names of one length make nodes alike
    _shorten(graph, new, values)
    return new


def _shorten(graph: onnx.GraphProto, new: dict[str, str], values: Iterator[str]) -> None:
    for tensor in graph.initializer:
        tensor.name = new[tensor.name]
    for node in graph.node:
        for inner in graphs_within(node):
            new.update((name, next(values)) for i in [*inner.initializer, *inner.input] if (name := i.name))
            for given in inner.input:
                given.name = new[given.name]
            _shorten(inner, new, values)
        new.update((name, next(values)) for name in node.output if name and name not in new)
        node.input[:] = [name and new[name] for name in node.input]
        node.output[:] = [name and new[name] for name in node.output]
    for output in graph.output:
        output.name = new[output.name]


def needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that these outputs depend on, in their order, and the names of all values that are read."""
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
            for inner in graphs_within(node):
                read |= every_name(inner)
    return kept[::-1], read


def every_name(graph: onnx.GraphProto) -> set[str]:
    """Return the names of values in a graph and in its subgraphs."""
    found = {v.name for v in [*graph.input, *graph.output, *graph.initializer]}
    for node in graph.node:
        found |= {*node.input, *node.output}
        for inner in graphs_within(node):
            found |= every_name(inner)
    return found


def _default(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    """Return whether the attribute has its default value, so that the node means the same without it."""
    value = helper.get_attribute_value(attribute)
    if attribute.name in SPELLED_OUT and not node.domain:
        return set(value) == {SPELLED_OUT[attribute.name]}
    if attribute.name == "kernel_shape" and node.op_type in ("Conv", "ConvTranspose"):
        return True  # it is that of the weights
    if node.domain:
        return False
    declared = onnx.defs.get_schema(node.op_type, OPSET).attributes.get(attribute.name)
    if declared is None or declared.default_value.type != attribute.type:
        return False
    return bool(helper.get_attribute_value(declared.default_value) == value)


def _replace(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Use the replacements of names within a subgraph."""
    own = {v.name for v in [*graph.input, *graph.initializer]} | {o for node in graph.node for o in node.output}
    outside = {old: new for old, new in names.items() if old not in own}
    for node in graph.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
        for inner in graphs_within(node):
            _replace(inner, outside)
    for output in graph.output:  # a branch may give a value from outside
        output.name = outside.get(output.name, output.name)
