"""Exporting to ONNX: a graph with its weights inside, or one that computes them from seed and coordinates."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from subcompress.errors import SubcompressError
from subcompress.format.record import Record, Tied
from subcompress.onnx.checking import check_weights, compare
from subcompress.onnx.nodes import DOMAIN, Nodes, short_names
from subcompress.onnx.pieces import repeats
from subcompress.onnx.slimming import every_name, shorten, simplified, slim
from subcompress.onnx.tracing import IR_VERSION, describe, graph_of
from subcompress.onnx.unfolding import unfold
from subcompress.tensors.layout import raw_bytes

LIMIT = (1 << 31) - (1 << 20)
"""Bytes of a protobuf message at most, with room for the graph around the weights."""

TELLING = 64
"""Bytes from which equal values mean that one tensor was made from the other."""


def export(record: Record, module: nn.Module, path: Path) -> None:
    """Write the graph of `module` (see `graph_of`), which holds the record's weights.

    Raises SubcompressError where torch cannot export the module or ONNX Runtime computes something else.
    """
    model = _traced(record, module)
    describe(model, record)
    data = model.SerializeToString()
    compare(data, module, record.facts)
    path.write_bytes(data)


def export_self_unfolding(record: Record, module: nn.Module, path: Path) -> None:
    """`export` without the weights: nodes of standard operators compute them, bit for bit those of `expand`, from the
    record's seed and coordinates (subcompress.onnx.unfolding). ONNX Runtime does so once, when a session starts.

    Raises SubcompressError as `export` does, and where the graph holds a coded tensor in a form that is not the file's.
    """
    state = module.state_dict()
    model = _traced(record, module)
    found = _origins(model.graph, record, state)
    short = simplified(model, found.keys())
    unfolding, made = _unfolding(short, record, found)
    data = unfolding.SerializeToString()
    compare(data, module, record.facts)
    check_weights(data, {name: origin.arranged(state) for origin, name in made.items()})
    path.write_bytes(data)


def _traced(record: Record, module: nn.Module) -> onnx.ModelProto:
    if record.layout.nbytes > LIMIT:
        raise SubcompressError(
            f"an ONNX graph holds at most 2 GB; this file's weights take {record.layout.nbytes} bytes: "
            "unpack to .safetensors instead"
        )
    return graph_of(module, record.facts)


@dataclass(frozen=True)
class _Origin:
    """The origin of an initializer: the tensor of the state dict, the order of its axes, its dtype and sizes."""

    name: str
    axes: tuple[int, ...] | None
    data_type: int
    dims: tuple[int, ...]

    def arranged(self, state: dict[str, Tensor]) -> Tensor:
        """Return its values, with the axes in order."""
        return state[self.name] if self.axes is None else state[self.name].permute(self.axes)


def _origins(graph: onnx.GraphProto, record: Record, state: dict[str, Tensor]) -> dict[str, _Origin]:
    """Map initializers to their origins, for those that nodes compute: a tensor, a tied one's, or one with its axes
    permuted."""
    first: dict[str, str] = {}
    for spec, entry in zip(record.layout, record.entries, strict=True):
        first[spec.name] = first[record.layout.tensors[entry.index].name] if isinstance(entry, Tied) else spec.name
    coded = [s.name for s, e in zip(record.layout, record.entries, strict=True) if repeats(e, s)]
    found = {}
    for tensor in graph.initializer:
        data = numpy_helper.to_array(tensor).tobytes()
        named = first.get(tensor.name)
        if named is not None and named not in coded:
            continue
        candidates = [named] if named else coded
        if named is None and (len(data) < TELLING or data == data[:8] * (len(data) // 8)):
            continue
        for name in candidates:
            if (axes := _arrangement(state[name], data)) is not None:
                found[tensor.name] = _Origin(name, axes or None, tensor.data_type, tuple(tensor.dims))
                break
        else:
            if named:
                raise SubcompressError(
                    f"a graph holds the file's tensors as they are or with axes exchanged; {tensor.name} is neither: "
                    "give the model the file was made from, or leave unfolding out"
                )
    return found


def _arrangement(tensor: Tensor, data: bytes) -> tuple[int, ...] | None:
    """Return the order of axes in which the tensor has these bytes, () for its own, None if there is none."""
    if tensor.nbytes != len(data):
        return None
    if raw_bytes(tensor) == data:
        return ()
    if 1 < tensor.ndim <= 5 and not tensor.is_complex():
        for axes in itertools.permutations(range(tensor.ndim)):
            if raw_bytes(tensor.permute(axes)) == data:
                return axes
    return None


def _unfolding(
    model: onnx.ModelProto, record: Record, found: dict[str, _Origin]
) -> tuple[onnx.ModelProto, dict[_Origin, str]]:
    """Return the model with nodes that compute the tensors found in it, and the name of each."""
    graph = model.graph
    nodes = Nodes(short_names(every_name(graph) | found.keys()))
    flat = unfold(record, nodes, {origin.name for origin in found.values()})
    shapes = {spec.name: spec.shape for spec in record.layout}
    made: dict[_Origin, str] = {}
    for name, origin in found.items():
        if origin not in made:
            value = _finished(nodes, flat[origin.name], origin, shapes[origin.name])
            nodes.rename(value, name)
            if value == flat[origin.name]:
                flat[origin.name] = name
            made[origin] = name
    slim(graph, nodes, {name: made[origin] for name, origin in found.items()}, found.keys())
    whole = helper.make_graph(nodes.nodes, "g", list(graph.input), list(graph.output), nodes.constants)
    shorten(whole, [v.name for v in [*graph.input, *graph.output]] + list(made.values()))
    opsets = [*model.opset_import, helper.make_opsetid(DOMAIN, 1)]
    result = helper.make_model(whole, opset_imports=opsets, functions=[*model.functions, *nodes.functions])
    result.ir_version = IR_VERSION
    describe(result, record)
    return result, made


def _finished(nodes: Nodes, value: str, origin: _Origin, shape: tuple[int, ...]) -> str:
    """Convert flat float32 values to what the initializer was."""
    if origin.data_type != TensorProto.FLOAT:
        value = nodes("Cast", value, to=origin.data_type)
    sizes = origin.dims if origin.axes is None else shape
    if len(sizes) != 1:
        value = nodes("Reshape", value, list(sizes), **({"allowzero": 1} if 0 in sizes else {}))
    return value if origin.axes is None else str(nodes("Transpose", value, perm=list(origin.axes)))
