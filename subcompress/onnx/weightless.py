"""Graphs of modules without their weights, for sessions that receive the weights separately."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts
from subcompress.format.record import Record
from subcompress.onnx.checking import compare
from subcompress.onnx.tracing import graph_of
from subcompress.rebuild.expand import expand
from subcompress.subspace.copying import own_memory
from subcompress.subspace.unwrapping import fitting


@dataclass(frozen=True)
class WeightlessGraph:
    """A graph, the names of the tensors that it reads from outside, and whether it works with any weights.

    If it does not, it may hold values that were computed from the weights with which it was traced.
    """

    data: bytes
    names: tuple[str, ...]
    general: bool = True


def trace_weightless(module: nn.Module, facts: Facts, inputs: Collection[str] = ()) -> WeightlessGraph:
    """Trace the graph of a module without its weights.

    inputs: names of tensors that become inputs of the graph. Other tensors that the graph reads become initializers
    whose data lie elsewhere. Values that it holds under other names stay inside. Raises SubcompressError if torch
    cannot export the module.
    """
    names = module.state_dict().keys()
    model = graph_of(module, facts)
    held = [tensor for tensor in model.graph.initializer if tensor.name in names]
    for tensor in held:
        if tensor.name in inputs:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(value)
            model.graph.initializer.remove(tensor)
        else:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="elsewhere")
    return WeightlessGraph(model.SerializeToString(), tuple(tensor.name for tensor in held))


def weightless_graph_of(record: Record, module: nn.Module, inputs: Collection[str] = ()) -> WeightlessGraph:
    """Trace the record's network without its weights and compare the graph with torch.

    It is compared with the record's weights, and with others, which tells whether the graph is general. The module is
    left unchanged. Raises SubcompressError for a module with another layout, and if ONNX Runtime computes something
    else.
    """
    module = fitting(module, record.layout)
    state = expand(record)
    with loaded_weights(module, state):
        found = trace_weightless(module, record.facts, inputs)
        compare(found.data, module, record.facts, _select(found, state))
    others = _perturbed(state)
    with loaded_weights(module, others):
        try:
            compare(found.data, module, record.facts, _select(found, others))
        except SubcompressError:
            return WeightlessGraph(found.data, found.names, general=False)
    return found


def _select(found: WeightlessGraph, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] for name in found.names}


def _perturbed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights close to these: each is a few percent larger or smaller.

    So nothing overflows, and no variance becomes negative. Tied tensors stay tied, and integers do not change.
    """
    generator = torch.Generator().manual_seed(0)
    made: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in made:
            factor = 1 + 0.05 * torch.randn(tensor.shape, generator=generator).clamp(-3, 3)
            floats = tensor.is_floating_point() or tensor.is_complex()
            made[id(tensor)] = (tensor * factor.to(tensor.real.dtype)) if floats else tensor
    return {name: made[id(tensor)] for name, tensor in state.items()}


@contextmanager
def loaded_weights(module: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Within the block, the module holds these weights, in evaluation mode. Afterwards it is as before.

    A copy of the module would not work. A tensor that shares a weight's memory without being in the state dict would
    keep its old values, and the graph would hold these.
    """
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training = [(part, part.training) for part in module.modules()]
    try:
        own_memory(module).load_state_dict(state, strict=True)
        module.eval()
        yield
    finally:
        module.load_state_dict(before, strict=True)
        for part, mode in training:
            part.training = mode
