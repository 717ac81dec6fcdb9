"""Exporting to ONNX: a graph with its weights inside, or one that computes them from seed and coordinates."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from subcompress.errors import SubcompressError
from subcompress.format.record import Entry, Record, Tied, Unchanged
from subcompress.onnx.checking import check_weights, compare
from subcompress.onnx.nodes import DOMAIN, Nodes, short_names
from subcompress.onnx.on_base import ExternalBase
from subcompress.onnx.pieces import repeats
from subcompress.onnx.products import sizes_in, use_gemm
from subcompress.onnx.slimming import every_name, needed, shorten, simplified, slim
from subcompress.onnx.tracing import IR_VERSION, describe
from subcompress.onnx.tracing_once import graph_once
from subcompress.onnx.transposing import exchange_last
from subcompress.onnx.unfolding import unfold
from subcompress.tensors.layout import TensorSpec, raw_bytes

LIMIT = (1 << 31) - (1 << 20)
"""The most bytes of weights in one protobuf message, which leaves room for the graph around them."""

TELLING = 64
"""If two tensors of at least this many bytes have equal values, one was made from the other."""


def export(record: Record, module: nn.Module, path: Path) -> None:
    """Write the graph of `module` (see `graph_of`), which holds the record's weights.

    Raises SubcompressError if torch cannot export the module, or ONNX Runtime computes something else.
    """
    model = _traced(record, module)
    describe(model, record)
    data = model.SerializeToString()
    compare(data, module, record.facts)
    path.write_bytes(data)


def export_self_unfolding(record: Record, module: nn.Module, path: Path) -> None:
    """Like `export`, but write a graph that computes its weights.

    Nodes of standard operators compute the weights from the record's seed and coordinates (subcompress.onnx.unfolding).
    The result equals that of `expand` bit for bit. ONNX Runtime computes it once, when a session starts.

    If the record has a base, the graph reads the base's values from the base's own files (`on_base.files_of`), which
    lie in the folder of `path`.

    Raises SubcompressError as `export` does, and if the graph holds a coded tensor in another form than the file does.
    """
    state = module.state_dict()
    folder = None if record.base is None else path.parent
    model = _traced(record, module)
    found = _origins(model.graph, record, state)
    short = simplified(model, found.keys())
    unfolding = _unfolding(short, record, found)
    if unfolding.base is not None:
        unfolding.base.check(path.parent)
        unfolding.base.describe(unfolding.model, path.parent)
    data = unfolding.model.SerializeToString()
    compare(data, module, record.facts, folder=folder)
    check_weights(data, unfolding.computed(state), folder)
    path.write_bytes(data)


def _traced(record: Record, module: nn.Module) -> onnx.ModelProto:
    if record.layout.nbytes > LIMIT:
        raise SubcompressError(
            f"an ONNX graph can hold 2 GB; the weights of this file take {record.layout.nbytes} bytes: "
            "unpack to .safetensors instead"
        )
    return graph_once(module, record.facts)


@dataclass(frozen=True)
class _Origin:
    """Where an initializer comes from: the tensor of the state dict, the order of its axes, its dtype and sizes."""

    name: str
    axes: tuple[int, ...] | None
    data_type: int
    dims: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it holds float32 values in the file's order."""
        return self.axes is None and self.data_type == TensorProto.FLOAT

    def arranged(self, state: dict[str, Tensor]) -> Tensor:
        """Return its values, with the axes in order."""
        return state[self.name] if self.axes is None else state[self.name].permute(self.axes)


def _origins(graph: onnx.GraphProto, record: Record, state: dict[str, Tensor]) -> dict[str, _Origin]:
    """Map the initializers that nodes will compute to their origins: a tensor itself, one that is tied to it, or one
    with its axes permuted."""
    first: dict[str, str] = {}
    for spec, entry in zip(record.layout, record.entries, strict=True):
        first[spec.name] = first[record.layout.tensors[entry.index].name] if isinstance(entry, Tied) else spec.name
    coded = [s.name for s, e in zip(record.layout, record.entries, strict=True) if repeats(e, s) or _is_read(e, s)]
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
                    f"the graph changes the file's tensor {tensor.name} in another way than exchanging its "
                    "axes: give the model that the file was made from, or leave unfolding out"
                )
    return found


def _is_read(entry: Entry, spec: TensorSpec) -> bool:
    """Whether a graph reads a tensor from the base's file. It does not if the values are shorter than the reference."""
    return isinstance(entry, Unchanged) and spec.nbytes >= TELLING


def _arrangement(tensor: Tensor, data: bytes) -> tuple[int, ...] | None:
    """Return the order of axes in which the tensor has these bytes: () for its own order, None if there is none."""
    if tensor.nbytes != len(data):
        return None
    if raw_bytes(tensor) == data:
        return ()
    if 1 < tensor.ndim <= 5 and not tensor.is_complex():
        for axes in itertools.permutations(range(tensor.ndim)):
            if raw_bytes(tensor.permute(axes)) == data:
                return axes
    return None


@dataclass
class _Unfolding:
    """A graph that computes weights, their names in it by origin, and the base that it reads, if there is one."""

    model: onnx.ModelProto
    made: dict[_Origin, str]
    base: ExternalBase | None

    def computed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights that nodes compute, by name. Others are read directly from the base's file."""
        given = {name for node in self.model.graph.node for name in node.output}
        return {name: origin.arranged(state) for origin, name in self.made.items() if name in given}


def _unfolding(model: onnx.ModelProto, record: Record, found: dict[str, _Origin]) -> _Unfolding:
    """Return the model with nodes that compute the tensors found in it."""
    graph = model.graph
    if record.base is not None:
        exchange_last(graph)
    nodes = Nodes(short_names(every_name(graph) | found.keys()))
    base = None if record.base is None else ExternalBase(record, nodes)
    made = _computed(nodes, record, found, base)
    slim(graph, nodes, {name: made[origin] for name, origin in found.items()}, found.keys(), base is not None)
    outer = [v.name for v in [*graph.input, *graph.output]]
    if base is None:
        outer += made.values()
    else:
        use_gemm(nodes, {made[o]: o.dims for o in made if o.is_plain}, outer, sizes_in(graph))
        nodes.nodes, read = needed(nodes.nodes, outer)
        nodes.constants = [c for c in nodes.constants if c.name in read]
    whole = helper.make_graph(nodes.nodes, "g", list(graph.input), list(graph.output), nodes.constants)
    names = shorten(whole, outer)
    opsets = [*model.opset_import, helper.make_opsetid(DOMAIN, 1)]
    result = helper.make_model(whole, opset_imports=opsets, functions=[*model.functions, *nodes.functions])
    result.ir_version = IR_VERSION
    describe(result, record)
    return _Unfolding(result, {origin: names[name] for origin, name in made.items() if name in names}, base)


def _computed(nodes: Nodes, record: Record, found: dict[str, _Origin], base: ExternalBase | None) -> dict[_Origin, str]:
    """Add nodes or references that give the tensors; return the names of their values. Computed ones keep theirs."""
    flat = unfold(record, nodes, {origin.name for origin in found.values()}, base)
    specs = {spec.name: spec for spec in record.layout}
    made: dict[_Origin, str] = {}
    for name, origin in found.items():
        if origin in made:
            continue
        spec = specs[origin.name]
        if origin.name not in flat:
            assert base is not None, "only a base's tensors are read"
            value = base.kept(spec, origin.dims if origin.axes is None else spec.shape)
            made[origin] = value if origin.axes is None else nodes("Transpose", value, perm=list(origin.axes))
            continue
        value = _finished(nodes, flat[origin.name], origin, spec.shape)
        nodes.rename(value, name)
        if value == flat[origin.name]:
            flat[origin.name] = name
        made[origin] = name
    return made


def _finished(nodes: Nodes, value: str, origin: _Origin, shape: tuple[int, ...]) -> str:
    """Convert flat float32 values to the dtype, shape and order of axes of the initializer."""
    if origin.data_type != TensorProto.FLOAT:
        value = nodes("Cast", value, to=origin.data_type)
    sizes = origin.dims if origin.axes is None else shape
    if len(sizes) != 1:
        value = nodes("Reshape", value, list(sizes), **({"allowzero": 1} if 0 in sizes else {}))
    return value if origin.axes is None else str(nodes("Transpose", value, perm=list(origin.axes)))
