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
    """A graph, the names of the tensors of the state dict that it reads from outside, and whether it serves any weights
    of that network, or only those that it was traced with: it may hold something made of them."""

    data: bytes
    names: tuple[str, ...]
    general: bool = True


def trace_weightless(module: nn.Module, facts: Facts, inputs: Collection[str] = ()) -> WeightlessGraph:
    """inputs: names of tensors that become inputs of the graph; of the others, what it reads become initializers whose
    data lie elsewhere. What it holds under other names stays inside.

    Raises SubcompressError where torch cannot export the module.
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
    """Other weights near these, so that nothing overflows and no variance becomes negative: each a few parts in a
    hundred larger or smaller. Tied tensors stay tied, integers stay."""
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
    """Within, the module holds these weights, in evaluation mode; afterwards it is as it was.

    A copy would not do: a tensor that shares a weight's memory without being in the state dict would keep its values,
    and the graph holds what it does not know by name as it finds it.
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
