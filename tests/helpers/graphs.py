"""Graphs that compute weights, and what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from subcompress.format.record import Record
from subcompress.onnx.checking import weights_only
from subcompress.onnx.nodes import DOMAIN, Nodes, short_names
from subcompress.onnx.pieces import is_wide
from subcompress.onnx.tracing import IR_VERSION, OPSET
from subcompress.onnx.unfolding import unfold

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")


def run(model: bytes, level: str = "ORT_ENABLE_ALL") -> list[np.ndarray]:
    """The outputs of a graph without inputs, at that level of optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {})


def computed(path: Path, record: Record) -> dict[str, np.ndarray]:
    """The record's tensors that nodes of a graph give under their own names."""
    data = path.read_bytes()
    given = {o for node in onnx.load_from_string(data).graph.node for o in node.output}
    names = {spec.name: spec.torch_dtype for spec in record.layout if spec.name in given}
    return dict(zip(names, run(weights_only(data, names)), strict=True))


def bare(record: Record) -> tuple[onnx.ModelProto, list[str]]:
    """A graph that gives the record's coded, fixed and mixed tensors, flat; and their names, in that order."""
    nodes = Nodes(short_names(()))
    outputs = unfold(record, nodes, [spec.name for spec in record.layout])
    kinds = {
        spec.name: onnx.TensorProto.DOUBLE if is_wide(spec, own) else onnx.TensorProto.FLOAT
        for spec, own in zip(record.layout, record.pieces, strict=True)
    }
    values = [helper.make_tensor_value_info(name, kinds[key], None) for key, name in outputs.items()]
    graph = helper.make_graph(nodes.nodes, "g", [], values, nodes.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=nodes.functions, ir_version=IR_VERSION)
    return model, list(outputs)


def unfolded(record: Record, level: str = "ORT_ENABLE_ALL") -> dict[str, np.ndarray]:
    """What that graph gives."""
    model, names = bare(record)
    return dict(zip(names, run(model.SerializeToString(), level), strict=True))
