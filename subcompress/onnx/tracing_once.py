"""Keeps graphs for the next file of the same network, because tracing takes seconds and a base has many fine-tunes."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import onnx
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from subcompress.format.facts import Facts, Input
from subcompress.onnx.tracing import graph_of
from subcompress.tensors.layout import Layout, raw_bytes

Key = tuple[tuple[Input, ...], tuple[int, ...], str, Layout, str]

_KEPT: WeakKeyDictionary[nn.Module, tuple[Key, onnx.ModelProto]] = WeakKeyDictionary()
"""For each network, the last graph without its weights, and what it was traced for."""

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def graph_once(module: nn.Module, facts: Facts) -> onnx.ModelProto:
    """Like `graph_of`, but trace a network only once while it and the facts, except the weights, stay the same.

    If a graph may hold values that were computed from the weights, it is traced each time.
    """
    state = module.state_dict()
    key = facts.inputs, facts.input_shape, facts.input_dtype, Layout.of(state), repr(module)
    kept = _KEPT.get(module)
    if kept is not None and kept[0] == key:
        return _with_weights(kept[1], state)
    model = graph_of(module, facts)
    if _is_general(model, state):
        _KEPT[module] = key, _without_weights(model, state)
    return model


def _is_general(model: onnx.ModelProto, state: Mapping[str, Tensor]) -> bool:
    """Whether all floating-point values in a graph are unchanged weights, or single numbers."""
    return all(
        tensor.raw_data == raw_bytes(state[tensor.name])
        if tensor.name in state
        else tensor.data_type not in FLOATS or numpy_helper.to_array(tensor).size == 1
        for tensor in model.graph.initializer
    )


def _without_weights(model: onnx.ModelProto, state: Mapping[str, Tensor]) -> onnx.ModelProto:
    kept = onnx.ModelProto()
    tensors = [t for t in model.graph.initializer if t.name in state]
    values = [t.raw_data for t in tensors]
    for tensor in tensors:
        tensor.ClearField("raw_data")
    kept.CopyFrom(model)
    for tensor, data in zip(tensors, values, strict=True):
        tensor.raw_data = data
    return kept


def _with_weights(kept: onnx.ModelProto, state: Mapping[str, Tensor]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(kept)
    for tensor in model.graph.initializer:
        if tensor.name in state:
            tensor.raw_data = bytes(raw_bytes(state[tensor.name]))
    return model
