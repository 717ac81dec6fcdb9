"""Eight-bit quantization after training, by ONNX Runtime's own tool."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from subcompress.data.in_memory import InMemory
from subcompress.data.splits import batches, size
from subcompress.peers.bench import Bench, Row, SkippedError, fails

CALIBRATION = 256
"""Training examples that the ranges of the activations are taken from."""


def int8(bench: Bench) -> list[Row]:
    """`quantize_static`: weights and activations of 8 bits, a scale a channel."""
    module, seconds = bench.direct
    train = bench.data.train
    if not isinstance(train, InMemory):
        raise SkippedError("calibration takes a training split in memory")
    graph, began = bench.graph(module), time.perf_counter()
    data = _quantized(graph, train)
    took = time.perf_counter() - began
    size = bench.write("int8.onnx", data)
    return [Row("ONNX Runtime int8", size, bench.value_of_graph(data), seconds + took, "static, a scale a channel")]


def _quantized(graph: bytes, train: InMemory) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from subcompress.onnx.tracing import inputs_by_name

    order = torch.arange(min(CALIBRATION, size(train)))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = batches(train, 32, order=order)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: t.numpy() for name, t in inputs_by_name(batch[0]).items()}

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with fails("the tool fails on this graph"), tempfile.TemporaryDirectory() as folder:
            plain, ready, out = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
            plain.write_bytes(graph)
            quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)  # which trips over Constants
            quantize_static(str(ready), str(out), Reader(), per_channel=True, weight_type=QuantType.QInt8)
            return out.read_bytes()
    finally:
        logging.root.setLevel(level)
