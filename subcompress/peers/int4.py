"""Four-bit weights after training: rounded to nearest, a scale an output channel, unfolded by `DequantizeLinear`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from subcompress.peers.bench import Bench, Row, fails

OPSET = 21
"""The first opset whose DequantizeLinear takes four-bit integers."""


def int4(bench: Bench) -> list[Row]:
    """Matrices and kernels of 4 bits, the rest as it was."""
    import onnx  # loaded only where it is needed

    module, seconds = bench.direct
    model, began = onnx.load_from_string(bench.graph(module)), time.perf_counter()
    with fails(f"the graph does not convert to opset {OPSET}"):
        model = onnx.version_converter.convert_version(model, OPSET)
    _round(model)
    data = model.SerializeToString()
    took = time.perf_counter() - began
    size = bench.write("int4.onnx", data)
    return [Row("4-bit weights", size, bench.value_of_graph(data), seconds + took, "rounded, a scale a channel")]


def _round(model: Any) -> None:
    """Replace every float32 initializer of two axes or more of an onnx.ModelProto."""
    from onnx import TensorProto, helper, numpy_helper

    graph, nodes = model.graph, []
    for initial in list(graph.initializer):
        if initial.data_type != TensorProto.FLOAT or len(initial.dims) < 2:
            continue
        w = numpy_helper.to_array(initial)
        reach = np.abs(w.reshape(len(w), -1)).max(1)
        scale = np.where(reach > 0, reach / 7, 1).astype(np.float32)
        q = np.clip(np.round(w / scale.reshape(-1, *[1] * (w.ndim - 1))), -7, 7).astype(np.int64)
        name = initial.name
        graph.initializer.remove(initial)
        graph.initializer.append(helper.make_tensor(f"{name}.q", TensorProto.INT4, w.shape, q.reshape(-1).tolist()))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.scale"], [name], axis=0))
    for node in reversed(nodes):
        graph.node.insert(0, node)
