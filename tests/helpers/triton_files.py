"""Model repositories of Triton, as it reads them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from onnx import helper

NAN = float("nan")


def graph(
    inputs: dict[str, tuple[int, Any]], outputs: dict[str, tuple[int, Any]], nodes: list[onnx.NodeProto] | None = None
) -> onnx.ModelProto:
    """A graph of those names -> (type, shape); its first input passes through to its first output, unless told more."""
    nodes = nodes or [helper.make_node("Identity", [next(iter(inputs))], [next(iter(outputs))])]
    values = [[helper.make_tensor_value_info(n, *v) for n, v in of.items()] for of in (inputs, outputs)]
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(helper.make_graph(nodes, "g", *values), opset_imports=opsets, ir_version=8)


def parsed(text: str) -> Any:
    """The configuration as Triton's own schema reads it."""
    tritonclient = pytest.importorskip("tritonclient")
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"  # without grpc, which it does not need
    if "model_config_pb2" not in sys.modules:
        spec = importlib.util.spec_from_file_location("model_config_pb2", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["model_config_pb2"] = module
        spec.loader.exec_module(module)
    return text_format.Parse(text, sys.modules["model_config_pb2"].ModelConfig())
