"""The graph of a module without its weights, for a session that is given them from outside."""

from __future__ import annotations

from onnx import TensorProto, helper
from torch import nn

from subcompress.facts import Facts
from subcompress.graph.tracing import graph_of


def lifted(module: nn.Module, facts: Facts, as_inputs: bool) -> tuple[bytes, list[str]]:
    """The graph and the names of the tensors of the state dict that it reads from outside. as_inputs: as inputs of the
    graph; else as initialisers whose data lie elsewhere. What it holds under other names stays inside.

    Raises SubcompressError where torch cannot export the module.
    """
    names = module.state_dict().keys()
    model = graph_of(module, facts)
    held = [tensor for tensor in model.graph.initializer if tensor.name in names]
    for tensor in held:
        if as_inputs:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(value)
            model.graph.initializer.remove(tensor)
        else:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="elsewhere")
    return model.SerializeToString(), [tensor.name for tensor in held]
